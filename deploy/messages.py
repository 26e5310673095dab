"""What travels on Flower: weights as one tensor, what else is shared, numbers, training flags.

One tensor, because Flower handles each array of a message by itself: DenseNet121's 727 entries
take minutes where one takes seconds. Everything is bytes, numbers and text; nothing is pickled.
"""

import io
import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from local_update import ClientUpdate
from options import FREE_ON_RESUME, build_parser, check_values
from utils.errors import UserError
from utils.schema import (
    any_number,
    anything,
    choice,
    record,
    refuse,
    sequence,
    shown,
    shown_shape,
    text,
    whole,
)
from utils.tensors import to_host

SHARED_TYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
LONGEST_HEADER = 1024  # bytes of an array's own description
LONGEST_SIDE = 100_000
LARGEST_SITE = 10**8  # images
LARGEST_SHARED = 64 * 2**20  # bytes of one tensor


def few_bytes(value: object, place: str) -> None:
    """A check: bytes, not too many."""
    if not isinstance(value, bytes) or len(value) > LARGEST_SHARED:
        refuse(place, f"at most {LARGEST_SHARED} bytes", value)


MOST_SHARED = 1000
TENSORS = record(
    {
        "names": sequence(text(100), 0, MOST_SHARED),
        "types": sequence(choice(*SHARED_TYPES), 0, MOST_SHARED),
        "shapes": sequence(text(100), 0, MOST_SHARED),
        "bytes": sequence(few_bytes, 0, MOST_SHARED),
    }
)
UPDATE = record(
    {
        "weights": anything,  # checked by `unpack_weights`
        "numbers": record({"num_samples": whole(1, LARGEST_SITE)}),
        "stats": record({"loss": any_number}, rest=any_number),
        "shared": anything,  # checked by `unpack_tensors`
        "shown": anything,
        "report": record({"client": whole(0, 10**6), "recalled": whole(-1, 10**9)}),
    }
)
INTRODUCTION = record(
    {
        "site": record(
            {
                "client": whole(0, 10**6),
                "labeled": choice(True, False),
                "num_samples": whole(1, LARGEST_SITE),
            }
        )
    }
)


def pack_weights(weights: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """A state dict as the bytes of its entries, one after the other, in one array."""
    parts = [value.contiguous().reshape(-1) for value in to_host(weights).values()]
    return ArrayRecord(
        {"weights": Array(torch.cat([part.view(torch.uint8) for part in parts]).numpy())}
    )


def unpack_weights(
    arrays: ArrayRecord, like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict that was packed; names, shapes and types are those of `like`, on the CPU.

    Raises `ValueError`, before anything is copied, where the bytes are not those of such a state
    dict.
    """
    sizes = [value.nbytes for value in like.values()]
    packed = torch.frombuffer(bytearray(_array_bytes(arrays, sum(sizes))), dtype=torch.uint8)
    return {
        # A clone, because a view of another type must begin at a multiple of that type's size.
        name: part.clone().view(value.dtype).reshape(value.shape)
        for (name, value), part in zip(like.items(), packed.split(sizes), strict=True)
    }


def _array_bytes(arrays: ArrayRecord, expected: int) -> memoryview:
    """The `expected` bytes of the one array of weights.

    Flower's own way to the array believes its header, and reserves what that claims.
    """
    if not isinstance(arrays, ArrayRecord) or list(arrays) != ["weights"]:
        raise ValueError("weights did not arrive as one array of bytes")
    array = arrays["weights"]
    if array.stype != "numpy.ndarray" or array.dtype != "uint8":
        raise ValueError("weights did not arrive as one array of bytes")
    if tuple(array.shape) != (expected,):
        raise ValueError(f"weights of {shown_shape(array.shape)} bytes arrived, not {expected}")
    head = io.BytesIO(array.data[:LONGEST_HEADER])
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("of another version")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
    except Exception as error:  # damaged bytes make numpy raise many kinds
        raise ValueError("weights arrived with a damaged header") from error
    content = memoryview(array.data)[head.tell() :]
    if shape != (expected,) or dtype != np.uint8 or fortran_order or len(content) != expected:
        raise ValueError(f"weights arrived as {len(content)} bytes, not {expected}")
    return content


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> ConfigRecord:
    """A few small named tensors: their bytes, beside what is needed to read them again."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    packed = ConfigRecord()
    if plain:  # Flower does not take empty lists
        packed["names"] = list(plain)
        packed["types"] = [str(value.dtype).removeprefix("torch.") for value in plain.values()]
        packed["shapes"] = [json.dumps(list(value.shape)) for value in plain.values()]
        packed["bytes"] = [value.numpy().tobytes() for value in plain.values()]
    return packed


def unpack_tensors(packed: ConfigRecord) -> dict[str, torch.Tensor]:
    """The tensors that were packed, on the CPU; `ValueError` for anything else."""
    if not isinstance(packed, ConfigRecord):
        raise ValueError("what is shared did not arrive as named tensors")
    if not packed:
        return {}
    TENSORS(_plain(packed), "what is shared")
    columns = [packed[key] for key in ("names", "types", "shapes", "bytes")]
    if len({len(column) for column in columns}) > 1:
        raise ValueError("the lists of what is shared differ in length")
    return {name: _tensor(name, *parts) for name, *parts in zip(*columns, strict=True)}


def _tensor(name: str, kind: str, shape_text: str, content: bytes) -> torch.Tensor:
    dtype = SHARED_TYPES[kind]
    try:
        shape = json.loads(shape_text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the shape of {shown(name)} is no list of numbers") from error
    sequence(whole(0, LONGEST_SIDE), 0, 5)(shape, f"the shape of {shown(name)}")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(
            f"{shown(name)} has {len(content)} bytes for a shape of {shown_shape(shape)}"
        )
    if dtype == torch.bool and content.strip(b"\0\1"):
        raise ValueError(f"{shown(name)} holds bytes that are neither true nor false")
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


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
    content: RecordDict, like: Mapping[str, torch.Tensor], client: int, labeled: bool
) -> tuple[ClientUpdate, int]:
    """The `ClientUpdate` and `recalled` that were packed, of the client of that number, which is
    `labeled` or not.

    Raises `ValueError`, one line, for anything else: every field is checked before its bytes are
    looked at.
    """
    UPDATE({name: _plain(content[name]) for name in content}, "")
    if content["report"]["client"] != client:
        raise ValueError(f"it answers as client {content['report']['client']}")
    update = ClientUpdate(
        unpack_weights(content["weights"], like),
        content["numbers"]["num_samples"],
        labeled,
        unpack_tensors(content["shared"]),
        {name: float(value) for name, value in content["stats"].items()},
        unpack_tensors(content["shown"]),
        client=client,
    )
    return update, content["report"]["recalled"]


def unpack_introduction(content: RecordDict) -> dict:
    """client, labeled, num_samples: who a node says it is. `ValueError` for anything else."""
    INTRODUCTION({name: _plain(content[name]) for name in content}, "")
    return dict(content["site"])


def _plain(found: Mapping) -> dict:
    return {name: found[name] for name in found}


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
