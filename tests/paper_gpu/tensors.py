"""Tensors that say they are on a GPU, keep their numbers on the processor, and are strict.

A `DeviceError` is what a real GPU would answer, or what it would leave to chance: tensors of
several devices in one call, a generator of another device, `.numpy()`, a read of what another
stream still writes, and memory of another stream that is used without `record_stream`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.paper_gpu.streams import FIRST, Moment, Stream, bench

CPU = torch.device("cpu")
VIEWS = {
    *("view", "_unsafe_view", "view_as", "_reshape_alias", "as_strided", "alias", "detach"),
    *("permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "lift_fresh", "diagonal"),
    *("slice", "select", "narrow", "unbind", "split", "split_with_sizes", "chunk"),
}
# Results that the host needs before it can go on.
READ_BY_HOST = {
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal"),
    *("unique_consecutive", "_unique2"),
}
BETWEEN_DEVICES = {"_to_copy", "copy_", "_foreach_copy_", "_foreach_copy"}
# A tensor without dimensions may stay on the CPU, but not for these.
ALL_ON_ONE = ("_fused", "mm", "addmm", "_foreach", "convolution", "stack", "cat")
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class DeviceError(RuntimeError):
    """A GPU would refuse it, or its result would depend on chance."""


class Memory:
    """One piece of a device's memory: when it was last written, whose it is, who else uses it."""

    def __init__(self):
        self.written: Moment | None = None
        self.owner: int | None = None  # the stream that it was allocated for
        self.users: set[int] = set()  # streams of `record_stream`


_memory: dict[tuple[torch.device, int], Memory] = {}


def memory_of(tensor: "PaperTensor") -> Memory:
    """That of a tensor and of its views."""
    key = (tensor.place, tensor.inner.untyped_storage().data_ptr())
    return _memory.setdefault(key, Memory())


def forget_memory() -> None:
    """A new test begins."""
    _memory.clear()


class PaperTensor(torch.Tensor):
    """`inner`, a tensor on the processor, as if it were on the device `place`."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device):
        paper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",
            requires_grad=False,
        )
        paper.inner, paper.place = inner, torch.device(place)
        return paper

    def __init__(self, *_, **__):
        pass

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def __deepcopy__(self, memo: dict):
        if id(self) in memo:
            return memo[id(self)]
        copy = self.detach().clone()
        if getattr(self, "_is_param", False):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __repr__(self) -> str:
        return f"PaperTensor({self.inner!r}, {self.place})"

    def record_stream(self, stream: Stream) -> None:
        memory_of(self).users.add(id(stream))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.numpy:
            raise DeviceError(f"numpy: of a tensor on {args[0].place}")
        if function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if function is torch.Tensor.to and isinstance(args[0], PaperTensor):
            args, kwargs = _without_a_move(args, kwargs)
            if args is None:
                return kwargs["unchanged"]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def _without_a_move(args: Sequence, kwargs: dict):
    """The arguments of `tensor.to` without a device that the tensor is on already, which torch
    would compare with the wrapper's own; (None, {"unchanged": tensor}) where nothing is left to
    do."""
    tensor, *rest = args
    if rest and isinstance(rest[0], torch.Tensor):  # as another tensor is
        rest = [rest[0].device, rest[0].dtype, *rest[1:]]
        args = (tensor, *rest)
    wanted = kwargs.get("device", rest[0] if rest else None)
    if not isinstance(wanted, (str, torch.device)) or torch.device(wanted) != tensor.place:
        return args, kwargs
    rest = rest[1:] if "device" not in kwargs else rest
    kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    if not rest and not any(value not in (None, False) for value in kwargs.values()):
        return None, {"unchanged": tensor}
    if "dtype" not in kwargs and not any(isinstance(value, torch.dtype) for value in rest):
        kwargs["dtype"] = tensor.dtype
    return (tensor, *rest), {name: value for name, value in kwargs.items() if value is not None}


class PaperGenerator(torch.Generator):
    """A generator of a paper device: its numbers are the processor's."""

    places: dict[int, torch.device] = {}

    def __new__(cls, device: torch.device | str = "cpu"):
        place = torch.device(device)
        if place.type == "cuda":
            place = torch.device("cuda", place.index or 0)
        made = super().__new__(cls, CPU if place.type == "cuda" else place)
        made.place = place
        cls.places[made._cdata] = place
        return made

    device = property(lambda self: self.place)


class PaperMode(TorchDispatchMode):
    """Sends what concerns a paper GPU to `run`, in the thread that enters it."""

    def __enter__(self):
        self.lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.lifted)
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        of_paper = any(isinstance(leaf, PaperTensor) for leaf in tree_leaves((args, kwargs)))
        names_paper = wanted is not None and torch.device(wanted).type in ("cuda", "meta")
        if of_paper or names_paper or kwargs.get("pin_memory"):
            return run(function, args, kwargs)
        return function(*args, **kwargs)


def run(function, args: Sequence, kwargs: Mapping):
    """One call of torch with paper tensors: checked, then computed on the processor."""
    name = function._schema.name.split("::")[1]
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    papers = [leaf for leaf in leaves if isinstance(leaf, PaperTensor)]
    plain = [leaf for leaf in leaves if not isinstance(leaf, PaperTensor)]
    places = {paper.place for paper in papers}
    if places:
        bench().last_place = next(iter(places))
    target = _target(kwargs.get("device"), places)
    _refuse_mixed_devices(name, args, places, plain)
    _refuse_foreign_generator(name, kwargs.get("generator"), target)
    for paper in papers:
        _refuse_races(name, paper, target)
    inner = {key: tree_map(_unwrapped, value) for key, value in kwargs.items()}
    pinned = bool(inner.pop("pin_memory", None))
    late = bool(inner.pop("non_blocking", False)) if name == "_to_copy" else False
    if "device" in inner:
        inner["device"] = CPU
    _count_waits(name, args, places, target, plain, late)
    found = function(*tree_map(_unwrapped, args), **inner)
    if (target.type == "cuda" or places) and name not in VIEWS:
        bench().launch(name)
    if name in READ_BY_HOST:
        return found
    if name in ("copy_", "_foreach_copy_"):
        first = args[0] if name == "copy_" else args[0][0]
        target = getattr(first, "place", CPU)
    if target.type == "cuda" and function._schema.is_mutable:
        _note_writes(function, args, target)
    wrapped = tree_map(lambda value: _wrapped(value, target, name, pinned), found)
    if not places and target.type != "cuda":
        return wrapped
    return return_and_correct_aliasing(function, args, dict(kwargs), wrapped)


def _target(wanted, places: set[torch.device]) -> torch.device:
    """Where the result is to be."""
    if wanted is None:
        return next(iter(places), CPU)
    wanted = torch.device(wanted)
    if wanted.type == "meta":  # what a wrapper says, asked from within torch
        return next(iter(places), bench().last_place)
    return FIRST if wanted.type == "cuda" and wanted.index is None else wanted


def _unwrapped(value):
    return value.inner if isinstance(value, PaperTensor) else value


def _wrapped(value, target: torch.device, name: str, pinned: bool):
    if not isinstance(value, torch.Tensor):
        return value
    if target.type != "cuda":
        if pinned:
            value.pinned = True
        return value
    paper = PaperTensor(value, target)
    if name not in VIEWS:
        stream = bench().current(target)
        memory = _memory[target, value.untyped_storage().data_ptr()] = Memory()
        memory.written, memory.owner = stream.tick(), id(stream)
    return paper


def _refuse_mixed_devices(name: str, args: Sequence, places: set, plain: Sequence) -> None:
    if name in BETWEEN_DEVICES or not places:
        return
    if len(places) > 1:
        raise DeviceError(f"{name}: tensors on {' and '.join(sorted(map(str, places)))}")
    if not plain:
        return
    if name in INDEXING and isinstance(args[0], PaperTensor):
        bench().wait(f"{name} with an index on the CPU")
    elif any(tensor.dim() for tensor in plain) or name.startswith(ALL_ON_ONE):
        raise DeviceError(f"{name}: tensors on {next(iter(places))} and cpu")


def _refuse_foreign_generator(name: str, generator, target: torch.device) -> None:
    if generator is None:
        return
    place = PaperGenerator.places.get(generator._cdata, CPU)
    if place != target:
        raise DeviceError(f"{name}: a generator of {place} for a tensor on {target}")


def _refuse_races(name: str, paper: PaperTensor, target: torch.device) -> None:
    memory, stream = memory_of(paper), bench().current(paper.place)
    if memory.written is not None and not stream.comes_after(memory.written):
        raise DeviceError(f"{name}: reads what another stream writes without waiting for it")
    to_host = name == "_to_copy" and target.type == "cpu"
    foreign = memory.owner not in (None, id(stream)) and id(stream) not in memory.users
    if foreign and not to_host and name not in VIEWS:
        raise DeviceError(f"{name}: uses memory of another stream without record_stream")


def _count_waits(
    name: str,
    args: Sequence,
    places: set,
    target: torch.device,
    plain: Sequence,
    late: bool,
) -> None:
    wait = bench().wait
    if name in READ_BY_HOST:
        wait(name)
    if name == "index" and any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
    ):
        wait("index by a bool mask")
    if name == "_to_copy" and places and target.type == "cpu":
        wait("copy to the host")
    pinned = late and any(getattr(tensor, "pinned", False) for tensor in plain)
    if name == "_to_copy" and not places and target.type == "cuda" and not pinned:
        wait("copy from pageable memory")
    if name in ("copy_", "_foreach_copy_"):
        pairs = [args[:2]] if name == "copy_" else zip(args[0], args[1], strict=True)
        for one, other in pairs:
            if isinstance(one, PaperTensor) != isinstance(other, PaperTensor):
                wait(f"{name} between host and device")


def _note_writes(function, args: Sequence, target: torch.device) -> None:
    moment = bench().current(target).tick()
    for value, argument in zip(args, function._schema.arguments, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for leaf in tree_leaves(value):
                if isinstance(leaf, PaperTensor):
                    memory_of(leaf).written = moment
