"""Central differential privacy for the averaged parameters: clipped updates, noise on their mean.

Two federations are neighbours where, in every round, one client's change of the parameters is in
one of them replaced by no change at all. Who takes part, and each client's share in the mean (its
number of images), are public and the same in both; leaving a client out and giving its share to
the others is another relation, under which the mean can move up to twice as far.

It hides one client from whoever sees the global parameters; the server itself sees every update.
Noised are the parameters alone: BatchNorm's statistics and the mean relation matrix, which go to
the sites with them, are taken as public, and what they say about a client is not covered.
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
    """Standard deviation of the noise on each parameter: `multiplier` times how far the mean
    moves, at most, where one client's change, at most `norm` long, is replaced by none.

    shares: the clients' weights in the mean, of those alone whose answers count in this round.
    """
    return multiplier * norm * max(shares) / sum(shares)


def epsilon(multiplier: float, rounds: int, delta: float = DELTA) -> float:
    """Epsilon after `rounds` rounds, by zero-concentrated differential privacy (Bun and Steinke
    2016): the Gaussian mechanism, its composition, and the conversion to (epsilon, delta)."""
    rho = rounds / (2 * multiplier**2)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def guarantee(multiplier: float, rounds: int) -> str:
    """What is promised after `rounds` rounds, for the log."""
    return (
        f"differential privacy of a client's changes: epsilon {epsilon(multiplier, rounds):.1f} "
        f"at delta {DELTA:g} after all rounds, for the parameters alone (not BatchNorm's "
        "statistics, the relation matrix or the number of images)"
    )


def secret_generator() -> torch.Generator:
    """Noise from the system's randomness: whoever could compute it again could take it off."""
    generator = torch.Generator()
    generator.seed()
    return generator
