"""Central differential privacy for the averaged parameters: clipped updates, noise on their mean.

It hides from whoever sees the global parameters whether one client took part; the server itself
sees every update. BatchNorm's statistics and the relation matrix are sent as they are: the
guarantee does not cover them.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import torch

DELTA = 1e-5


def clip_update(
    weights: Mapping[str, torch.Tensor],
    received: Mapping[str, torch.Tensor],
    parameters: Collection[str],
    norm: float,
) -> dict[str, torch.Tensor]:
    """`weights` with the change of the entries `parameters` since `received` scaled to `norm` at
    most (2-norm over all of them together); every other entry, BatchNorm's statistics, as it is.
    """
    changes = {name: weights[name] - received[name].to(weights[name]) for name in parameters}
    length = math.sqrt(sum(change.double().square().sum().item() for change in changes.values()))
    scale = min(1.0, norm / length) if length else 1.0
    clipped = {name: received[name].to(change) + scale * change for name, change in changes.items()}
    return dict(weights) | clipped


def add_noise(
    weights: Mapping[str, torch.Tensor],
    parameters: Collection[str],
    deviation: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """`weights` with Gaussian noise of standard `deviation` on the entries `parameters` alone."""
    noised = {}
    for name in parameters:
        draw = torch.randn(weights[name].shape, generator=generator) * deviation
        noised[name] = weights[name] + draw.to(weights[name])
    return dict(weights) | noised


def noise_deviation(multiplier: float, norm: float, shares: Sequence[float]) -> float:
    """Standard deviation that hides one client: `multiplier` times how far one client whose
    update is at most `norm` long can move the mean. shares: the clients' weights in it."""
    return multiplier * norm * max(shares) / sum(shares)


def epsilon(multiplier: float, rounds: int, delta: float = DELTA) -> float:
    """Epsilon after `rounds` rounds that all clients take part in, by zero-concentrated
    differential privacy (Bun and Steinke 2016, proposition 1.3 and lemma 2.3)."""
    rho = rounds / (2 * multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def secret_generator() -> torch.Generator:
    """Noise from the system's randomness: whoever could compute it again could take it off."""
    generator = torch.Generator()
    generator.seed()
    return generator
