"""Nested dicts, lists and tuples of tensors, as optimizers and clients remember them."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

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
    weights = net.state_dict()
    copies = {name: torch.empty_like(value) for name, value in weights.items()}
    set_tensors(copies, weights)
    return copies


@torch.no_grad()
def set_tensors(targets: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Copy `values` into the tensors of `targets`, by name, in few launches; devices may differ.

    Every target must be among the values (`KeyError`), of the same shape (`RuntimeError`).
    """
    for dtype in {value.dtype for value in targets.values()}:  # one launch has one type
        names = [name for name, value in targets.items() if value.dtype == dtype]
        torch._foreach_copy_([targets[name] for name in names], [values[name] for name in names])


def copy_tensors(value, device: torch.device | None = None):
    """A deep copy of nested dicts and lists of tensors and plain types, tensors on `device`."""
    return map_tensors(lambda tensor: tensor.detach().to(device=device, copy=True), value)


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
    devices = {tensor.device for _, tensor in named_tensors(value) if tensor.is_cuda}
    with ExitStack() as copying:
        for device in devices:
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            copying.enter_context(torch.cuda.stream(stream))
        return map_tensors(lambda tensor: tensor.detach().cpu(), value)


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
