"""Nested dicts, lists and tuples of tensors, as optimizers and clients remember them."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache

import torch


def derive_seed(seed: int, *owner: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every part of `owner`, and on nothing else."""
    text = "/".join(map(str, (seed, *owner)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *owner: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device` for `owner`, for instance ("client", 3, "round", 17)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *owner))


def net_device(net: torch.nn.Module) -> torch.device:
    """The device a network lives on."""
    return next(net.parameters()).device


def copy_weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the whole state dict, on the network's device."""
    return copy_tensors(dict(net.state_dict()))


@torch.no_grad()
def set_tensors(targets: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy `values` into the tensors of `targets`, by name, in few launches; devices may differ.

    Every target must be among the values (`KeyError`), of the same shape (`RuntimeError`).
    """
    places = defaultdict(list)
    for name, target in targets.items():
        places[target.device, target.dtype].append(name)  # one launch has one type
    for (device, _), names in places.items():
        near = placed([values[name] for name in names], device)
        torch._foreach_copy_([targets[name] for name in names], near)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on `device`; where that is a GPU nobody waits for what it still does."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor)
    return pinned.to(device, non_blocking=True)


def copy_tensors(value, device: torch.device | None = None):
    """A deep copy of nested dicts and lists of tensors and plain types, tensors on `device`."""
    return _with_copies(value, device, lambda tensor: True)


def placed(value, device: torch.device):
    """`value` with the tensors that are elsewhere copied to `device`, together."""
    return _with_copies(value, device, lambda tensor: tensor.device != device)


@torch.no_grad()
def _with_copies(value, device: torch.device | None, wanted: Callable[[torch.Tensor], bool]):
    """`value` with copies, on `device`, of the `wanted` tensors: few launches on one device, one
    transfer between two for all tensors of a type."""
    places = defaultdict(dict)
    for _, tensor in named_tensors(value):
        if wanted(tensor):
            places[tensor.device, tensor.dtype][id(tensor)] = tensor.detach()
    copies: dict[int, torch.Tensor] = {}
    for (source, _), group in places.items():
        if device in (None, source):
            made = [torch.empty_like(tensor) for tensor in group.values()]
            torch._foreach_copy_(made, list(group.values()))
        else:
            made = _transferred(list(group.values()), device)
        copies |= zip(group, made, strict=True)
    return map_tensors(lambda tensor: copies.get(id(tensor), tensor.detach()), value)


def _transferred(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies of tensors of one device and type on another `device`, as parts of one flat tensor."""
    # Those of odd lengths last: kernels are faster on memory that begins at a multiple of 16 bytes.
    order = sorted(range(len(tensors)), key=lambda place: tensors[place].nbytes % 16 > 0)
    dense = [t if _is_dense(t) else t.contiguous() for t in (tensors[place] for place in order)]
    flat = torch.cat([tensor.as_strided((tensor.numel(),), (1,)) for tensor in dense]).to(device)
    parts = flat.split([tensor.numel() for tensor in dense])
    made = {
        place: part.as_strided(tensor.shape, tensor.stride())
        for place, part, tensor in zip(order, parts, dense, strict=True)
    }
    return [made[place] for place in range(len(tensors))]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie side by side, in any of the orders that networks use."""
    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.is_contiguous() or (
        tensor.dim() in orders and tensor.is_contiguous(memory_format=orders[tensor.dim()])
    )


LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value):
    """`value` with every tensor replaced by `function` of it; other leaves as they are."""
    return map_leaves(
        lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, value
    )


def map_leaves(function: Callable[[object], object], value):
    """`value` with everything that is no dict, list or tuple replaced by `function` of it."""
    if isinstance(value, Mapping):
        return {key: map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def to_host(value):
    """`value` with every tensor on the CPU, copied after what its GPU has been asked to do so far.

    The copies run on a stream of their own, beside what other threads ask of the GPU meanwhile.
    """
    on_gpus = [tensor for _, tensor in named_tensors(value) if tensor.is_cuda]
    with ExitStack() as copying:
        for device in {tensor.device for tensor in on_gpus}:
            stream = copy_stream(device, "from")
            stream.wait_stream(torch.cuda.current_stream(device))
            copying.enter_context(torch.cuda.stream(stream))
        for tensor in on_gpus:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return placed(value, torch.device("cpu"))


@cache
def copy_stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    """A GPU's one stream for copies "to" it, or for those "from" it, which wait for its work.

    PyTorch keeps what a stream's copies took for later copies of that stream: fresh streams, of
    which there are 32, would keep it once each.
    """
    return torch.cuda.Stream(device)


def named_tensors(value, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(path like "optimizer/state/0/exp_avg", tensor) of every tensor in `value`."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from named_tensors(item, f"{name}/{key}" if name else str(key))


def find_non_finite(value, limit: float = math.inf) -> str | None:
    """Name of the first floating tensor in `value` with NaN, an infinity or a magnitude > limit.

    One transfer per device for healthy values, however many tensors there are.
    """
    floating = [
        (name, tensor.detach())
        for name, tensor in named_tensors(value)
        if tensor.is_floating_point() and tensor.numel()
    ]
    suspicious = set()
    for device in dict.fromkeys(tensor.device for _, tensor in floating):
        here = [(name, tensor) for name, tensor in floating if tensor.device == device]
        # No element is larger than its tensor's 2-norm, which is the cheapest thing to compute.
        norms = torch._foreach_norm([tensor for _, tensor in here], 2)
        small = torch.stack([norm.float() for norm in norms]) <= min(limit, LARGEST_FLOAT32)
        suspicious |= {
            name for (name, _), fine in zip(here, small.tolist(), strict=True) if not fine
        }
    for name, tensor in floating:
        if name in suspicious and not (tensor.abs().max() <= limit and tensor.isfinite().all()):
            return name
    return None
