"""What `torch.save` wrote, read in two steps: first what it says it holds, then the tensors.

`describe` makes no tensor and runs nothing: where the file has tensors it gives `TensorClaim`s,
whose sizes are those of bytes that are there. A caller looks at them and then lets `build` make
the tensors. Only tensors and plain types are read; both of torch's formats are (zip, and the one
before 2020 in which the published ImageNet weights come).
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.tensors import map_leaves

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DEEPEST = 24  # dicts in lists in dicts ...
EXPANSION = 8  # times the file's bytes that its tensors may take: some share their bytes
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


class UnsafeFile(ValueError):  # noqa: N818
    """The file holds something that is not read, or is damaged; the message is one line."""


@dataclass(frozen=True)
class TensorClaim:
    """A tensor that a file says it holds: `elements` of `dtype` lie under the name `storage`."""

    storage: str
    dtype: torch.dtype
    elements: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it is made."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Description:
    """content: plain types and claims. storages: the bytes of a claim's storage, by its name."""

    content: object
    read_storage: Callable[[str], bytes]


def describe(raw: bytes) -> Description:
    """What a file says it holds; `UnsafeFile` where that is not read, damaged, or more than the
    file's own bytes can be. What follows after torch's own bytes, a checksum say, is not looked at.
    """
    try:
        archive = zipfile.is_zipfile(io.BytesIO(raw))
        content, sizes, read_storage = _open_zip(raw) if archive else _open_legacy(raw)
    except UnsafeFile:
        raise
    except Exception as error:  # damaged bytes make pickle and zipfile raise nearly anything
        raise UnsafeFile(f"damaged, or not a file of tensors ({type(error).__name__})") from error
    _refuse_expansion(content, len(raw), sizes)
    return Description(content, read_storage)


def build(description: Description) -> object:
    """The content with its tensors, on the CPU, each with memory of its own."""
    storages: dict[str, bytearray] = {}

    def made(value: object) -> object:
        if not isinstance(value, TensorClaim):
            return value
        if value.storage not in storages:
            storages[value.storage] = bytearray(description.read_storage(value.storage))
        if not math.prod(value.shape):
            return torch.empty(value.shape, dtype=value.dtype)
        flat = torch.frombuffer(storages[value.storage], dtype=value.dtype)
        return flat.as_strided(value.shape, value.stride, value.offset).clone()

    return map_leaves(made, description.content)


def _refuse_expansion(content: object, file_bytes: int, sizes: dict[str, int]) -> None:
    """Raise `UnsafeFile` where the content is larger than the file: entries that are repeated
    again and again by reference, tensors stretched over few numbers."""
    entries, tensor_bytes, waiting = 0, 0, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, TensorClaim):
            _refuse_claim(value, sizes)
            tensor_bytes += value.nbytes
        elif isinstance(value, (dict, list, tuple)):
            entries += len(value)
            if entries <= file_bytes:
                inside = value.values() if isinstance(value, dict) else value
                waiting.extend((item, depth + 1) for item in inside)
        if entries > file_bytes or tensor_bytes > EXPANSION * file_bytes or depth > DEEPEST:
            raise UnsafeFile("expands to far more than the file itself holds")


def _refuse_claim(claim: TensorClaim, sizes: dict[str, int]) -> None:
    numbers = (claim.elements, claim.offset, *claim.shape, *claim.stride)
    if (
        len(claim.shape) != len(claim.stride)
        or len(claim.shape) > 8
        or any(type(number) is not int or not 0 <= number < 2**63 for number in numbers)
        or sizes.get(claim.storage) != claim.elements * claim.dtype.itemsize
    ):
        raise UnsafeFile("a tensor's size does not fit the bytes that are there")
    reach = sum((n - 1) * step for n, step in zip(claim.shape, claim.stride, strict=True))
    if math.prod(claim.shape) and (
        claim.offset + reach >= claim.elements or math.prod(claim.shape) > claim.elements
    ):
        raise UnsafeFile("a tensor is larger than the bytes that are there")


def _open_zip(raw: bytes):
    archive = zipfile.ZipFile(io.BytesIO(raw))
    names = archive.namelist()
    top = next(name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl"))
    if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        raise UnsafeFile("compressed inside, which no file of torch is")
    if f"{top}byteorder" in names and archive.read(f"{top}byteorder") != b"little":
        raise UnsafeFile("written on a machine of another byte order")
    folder = f"{top}data/"
    sizes = {
        part.filename.removeprefix(folder): part.file_size
        for part in archive.infolist()
        if part.filename.startswith(folder)
    }
    content = _Reader(io.BytesIO(archive.read(f"{top}data.pkl"))).load()
    return content, sizes, lambda key: archive.read(folder + key)


def _open_legacy(raw: bytes):
    stream = io.BytesIO(raw)
    if _Reader(stream).load() != LEGACY_MAGIC or _Reader(stream).load() != LEGACY_PROTOCOL:
        raise UnsafeFile("not a file of tensors")
    if _Reader(stream).load().get("little_endian") is not True:
        raise UnsafeFile("written on a machine of another byte order")
    reader = _Reader(stream)
    content = reader.load()
    places, sizes = {}, {}
    for key in _Reader(stream).load():
        elements = int.from_bytes(stream.read(8), "little")
        size = elements * reader.dtype_of_storage[key].itemsize
        places[key], sizes[key] = stream.tell(), size
        if size > len(raw) - stream.tell():
            raise UnsafeFile("cut off: a tensor's bytes are missing")
        stream.seek(size, io.SEEK_CUR)
    return content, sizes, lambda key: raw[places[key] : places[key] + sizes[key]]


class _Entries(dict):
    """Stands for an OrderedDict, and takes the attributes that a state dict carries."""


def _make_entries(*pairs) -> _Entries:
    if pairs:
        raise UnsafeFile("an ordered dictionary in a form that is not read")
    return _Entries()


def _make_claim(storage, offset, size, stride, *_) -> TensorClaim:
    key, dtype, elements = storage
    return TensorClaim(key, dtype, elements, offset, tuple(size), tuple(stride))


def _first(value, *_):
    return value


MAKERS = {
    ("collections", "OrderedDict"): _make_entries,
    ("torch._utils", "_rebuild_tensor"): _make_claim,
    ("torch._utils", "_rebuild_tensor_v2"): _make_claim,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


# The pure Python unpickler: the one in C reserves what a file's numbers ask for.
class _Reader(pickle._Unpickler):
    """Makes plain types and claims; whatever else a pickle names is an `UnsafeFile`."""

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, encoding="utf-8")
        self.dtype_of_storage: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str):
        maker = MAKERS.get((module, name))
        if maker is None:
            raise UnsafeFile(
                f"holds {ascii(f'{module}.{name}')[1:61]}: only tensors and plain types are read"
            )
        return maker

    def persistent_load(self, description):
        kind, dtype, key, _location, elements, *view = description
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise UnsafeFile("a tensor's bytes in a form that is not read")
        if not isinstance(key, str) or self.dtype_of_storage.setdefault(key, dtype) != dtype:
            raise UnsafeFile("a tensor's bytes in a form that is not read")
        return key, dtype, elements

    def refuse_operation(self) -> None:
        """What a file of tensors has no use for: sets, objects, references to code."""
        raise UnsafeFile("holds something else than tensors and plain types")

    def set_item(self) -> None:
        """SETITEM, for keys that can be hashed without danger."""
        _refuse_keys(self.stack[-2:-1])
        super().load_setitem()

    def set_items(self) -> None:
        """SETITEMS, likewise."""
        _refuse_keys(self.stack[::2])
        super().load_setitems()

    # The operations that torch itself reads from a file that it does not trust.
    dispatch = dict.fromkeys(range(256), refuse_operation) | {
        ord(operation): pickle._Unpickler.dispatch[ord(operation)]
        for operation in (
            *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD),
            *(pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.EMPTY_LIST),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINFLOAT, pickle.LONG1),
            *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINUNICODE),
            *(pickle.SHORT_BINSTRING, pickle.BINPERSID, pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.BINPUT, pickle.LONG_BINPUT),
        )
    }
    dispatch[ord(pickle.SETITEM)] = set_item
    dispatch[ord(pickle.SETITEMS)] = set_items


def _refuse_keys(keys: list) -> None:
    if not all(type(key) in (str, int, bool, float, type(None)) for key in keys):
        raise UnsafeFile("names that are neither text nor numbers")
