"""The server's average of the clients' models."""

import math
from collections.abc import Iterable, Mapping

import torch

StateDict = Mapping[str, torch.Tensor]


def FedAvg(updates: Iterable[tuple[StateDict, float]]) -> dict[str, torch.Tensor]:  # noqa: N802
    """Weighted average of whole state dicts, BatchNorm statistics included.

    updates: (state dict, finite weight > 0) of each client, consumed one after the other; only the
    running average is held. Weights need not sum to 1: N_k gives N_k / N, all 1 gives the mean.
    Integer entries (BatchNorm's step counter) are averaged and rounded to integers. No input is
    changed; the result shares no memory with any. The order of the clients is the order of
    summation, so a fixed order gives identical bits.

    Raises `ValueError` when there is no update, a weight is not positive and finite, or names or
    shapes differ from the first client's, naming the entry.
    """
    average: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    total = 0.0
    for weights, weight in updates:
        if not 0 < weight < math.inf:
            raise ValueError(f"a client's weight must be positive and finite, not {weight}")
        if not average:
            dtypes = {name: value.dtype for name, value in weights.items()}
            average = {name: _accumulator(value) for name, value in weights.items()}
        _check_alike(average, weights)
        total += weight
        # mean + (new - mean) * share keeps equal models exactly equal, unlike sum and divide.
        _lerp(average, weights, weight / total)
        del weights  # while the next client trains, only the average is held
    if not average:
        raise ValueError("FedAvg needs at least one client's weights")
    return {
        name: value if value.dtype == dtypes[name] else value.round().to(dtypes[name])
        for name, value in average.items()
    }


def _accumulator(value: torch.Tensor) -> torch.Tensor:
    value = value.detach()
    return value.clone() if value.is_floating_point() else value.double()


def _check_alike(average: StateDict, weights: StateDict) -> None:
    odd = sorted(average.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"FedAvg: entry {odd[0]!r} is not in every client's weights")
    for name, value in weights.items():
        if value.shape != average[name].shape:
            raise ValueError(
                f"FedAvg: entry {name!r} has shape {tuple(value.shape)}, "
                f"the first client's has {tuple(average[name].shape)}"
            )


def _lerp(average: StateDict, weights: StateDict, share: float) -> None:
    names = list(average)
    for dtype in {average[name].dtype for name in names}:
        same = [name for name in names if average[name].dtype == dtype]
        torch._foreach_lerp_(
            [average[name] for name in same],
            [weights[name].detach().to(dtype) for name in same],
            share,
        )
