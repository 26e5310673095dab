"""Nested dicts, lists and tuples of tensors, as optimizers and clients remember them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import torch

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value):
    """`value` with every tensor replaced by `function` of it; other leaves as they are."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


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
