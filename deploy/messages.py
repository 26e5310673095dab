"""What travels on Flower: weights as one tensor, what else is shared, numbers, training flags.

One tensor, because Flower handles each array of a message by itself: DenseNet121's 727 entries
take minutes where one takes seconds. Everything is bytes, numbers and text; nothing is pickled.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from local_update import ClientUpdate
from options import FREE_ON_RESUME, build_parser, check_values
from utils.errors import UserError

SHARED_TYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


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


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> ConfigRecord:
    """A few small named tensors: their bytes, beside what is needed to read them again."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    record = ConfigRecord()
    if plain:  # Flower does not take empty lists
        record["names"] = list(plain)
        record["types"] = [str(value.dtype).removeprefix("torch.") for value in plain.values()]
        record["shapes"] = [json.dumps(list(value.shape)) for value in plain.values()]
        record["bytes"] = [value.numpy().tobytes() for value in plain.values()]
    return record


def unpack_tensors(record: ConfigRecord) -> dict[str, torch.Tensor]:
    """The tensors that were packed, on the CPU; `ValueError` or `KeyError` for anything else."""
    if not record:
        return {}
    tensors = {}
    for name, kind, shape, content in zip(
        *(record[key] for key in ("names", "types", "shapes", "bytes")), strict=True
    ):
        if kind not in SHARED_TYPES:
            raise ValueError(f"{name} is of the type {kind}")
        flat = torch.frombuffer(bytearray(content), dtype=SHARED_TYPES[kind])
        tensors[name] = flat.reshape(json.loads(shape))
    return tensors


def pack_update(update: ClientUpdate, client: int, recalled: int) -> RecordDict:
    """A client's answer. `recalled` is the round whose memory it went on from, -1 for none."""
    return RecordDict(
        {
            "weights": pack_weights(update.weights),
            "numbers": MetricRecord({"num_samples": update.num_samples}),
            "stats": MetricRecord(update.stats),
            "shared": pack_tensors(update.shared),
            "shown": pack_tensors(update.shown),
            "report": ConfigRecord({"client": client, "recalled": recalled}),
        }
    )


def unpack_update(
    content: RecordDict, like: Mapping[str, torch.Tensor], labeled: bool
) -> ClientUpdate:
    """The `ClientUpdate` that was packed, of a client that is `labeled` or not.

    Raises `ValueError`, `KeyError` or `RuntimeError` for anything else.
    """
    return ClientUpdate(
        unpack_weights(content["weights"], like),
        int(content["numbers"]["num_samples"]),
        labeled,
        unpack_tensors(content["shared"]),
        {name: float(value) for name, value in content["stats"].items()},
        unpack_tensors(content["shown"]),
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
