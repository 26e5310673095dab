"""Weights cast to the precision of a pass together, instead of one by one as autocast does it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

CAST_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)  # whose weights autocast casts


class _Cast(torch.autograd.Function):
    """The weights in another type, and their gradients back in the weights' own, each in one
    launch over all of them; the numbers are those of casts one by one."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _copies(weights, dtype)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *_copies(gradients, ctx.dtype))


def _copies(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


@contextmanager
def cast_together(layers: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """In the block `layers` have their weights in `dtype`; gradients reach the weights themselves.

    layers: one at least, all with weights of one type.
    """
    weights = [layer.weight for layer in layers]
    for layer, cast in zip(layers, _Cast.apply(dtype, *weights), strict=True):
        layer._parameters["weight"] = cast
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer._parameters["weight"] = weight
