"""What travels on Flower: weights as one tensor, relation matrices, numbers, the training flags.

One tensor, because Flower handles each array of a message by itself: DenseNet121's 727 entries
take minutes where one takes seconds. Everything is bytes, numbers and text; nothing is pickled.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from confuse_matrix import RelationMatrix
from local_update import ClientUpdate
from options import FREE_ON_RESUME, build_parser, check_values
from utils.errors import UserError


def pack_weights(weights: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """A state dict as the bytes of its entries, one after the other, in one array."""
    parts = [value.detach().cpu().contiguous().reshape(-1) for value in weights.values()]
    return ArrayRecord(
        {"weights": Array(torch.cat([part.view(torch.uint8) for part in parts]).numpy())}
    )


def unpack_weights(
    record: ArrayRecord, like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict that was packed; names, shapes and types are those of `like`, on the CPU.

    Raises `ValueError` where the bytes are not those of such a state dict.
    """
    if list(record) != ["weights"] or record["weights"].dtype != "uint8":
        raise ValueError("weights did not arrive as one array of bytes")
    packed = torch.from_numpy(record["weights"].numpy().copy())
    expected = sum(value.nbytes for value in like.values())
    if packed.shape != (expected,):
        raise ValueError(f"weights of shape {tuple(packed.shape)} arrived, not {expected} bytes")
    sizes = [value.nbytes for value in like.values()]
    return {
        # A clone, because a view of another type must begin at a multiple of that type's size.
        name: part.clone().view(value.dtype).reshape(value.shape)
        for (name, value), part in zip(like.items(), packed.split(sizes), strict=True)
    }


def pack_matrix(name: str, matrix: RelationMatrix | None) -> dict[str, bytes]:
    """Entries of a ConfigRecord; none where there is no matrix."""
    if matrix is None:
        return {}
    log_rows, present = matrix.to("cpu")
    return {
        f"{name}_log_rows": log_rows.to(torch.float32).numpy().tobytes(),
        f"{name}_present": present.numpy().tobytes(),
    }


def unpack_matrix(name: str, record: ConfigRecord, num_classes: int) -> RelationMatrix | None:
    """The matrix that was packed, on the CPU, or None; `ValueError` where its size is another."""
    if f"{name}_log_rows" not in record:
        return None
    log_rows = torch.frombuffer(bytearray(record[f"{name}_log_rows"]), dtype=torch.float32)
    present = torch.frombuffer(bytearray(record[f"{name}_present"]), dtype=torch.bool)
    return RelationMatrix(log_rows.reshape(num_classes, num_classes), present.reshape(num_classes))


def pack_update(update: ClientUpdate, client: int, recalled: int) -> RecordDict:
    """A client's answer. `recalled` is the round whose memory it went on from, -1 for none."""
    matrices = pack_matrix("matrix", update.matrix) | pack_matrix("pseudo", update.pseudo_matrix)
    numbers = {"num_samples": update.num_samples, "loss": update.loss}
    return RecordDict(
        {
            "weights": pack_weights(update.weights),
            "numbers": MetricRecord(numbers),
            "stats": MetricRecord(update.stats),
            "report": ConfigRecord({"client": client, "recalled": recalled, **matrices}),
        }
    )


def unpack_update(
    content: RecordDict, like: Mapping[str, torch.Tensor], num_classes: int
) -> ClientUpdate:
    """The `ClientUpdate` that was packed; `ValueError` or `KeyError` for anything else."""
    report, numbers = content["report"], content["numbers"]
    return ClientUpdate(
        unpack_weights(content["weights"], like),
        int(numbers["num_samples"]),
        float(numbers["loss"]),
        unpack_matrix("matrix", report, num_classes),
        {name: float(value) for name, value in content["stats"].items()},
        unpack_matrix("pseudo", report, num_classes),
    )


def pack_flags(args: Namespace) -> str:
    """The flags that decide what is computed, as JSON; paths and the like stay at the server."""
    return json.dumps(
        {
            name: value
            for name, value in vars(args).items()
            if name not in FREE_ON_RESUME and not isinstance(value, Path)
        }
    )


def unpack_flags(text: str) -> Namespace:
    """The flags that were packed, checked; all others have their defaults. `UserError` if odd."""
    args = build_parser().parse_args([])
    received = json.loads(text)
    if unknown := sorted(received.keys() - vars(args).keys()):
        raise UserError(f"flag --{unknown[0]} is not known here: install the server's version")
    vars(args).update(received)
    check_values(args)
    return args
