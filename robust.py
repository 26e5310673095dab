"""Averages that a few wrong clients cannot take over, from the literature.

With FedAvg one client of any number can put the global model anywhere. Each rule here looks at all
models of a round at once (they are held until the round's last client is done). What it costs an
honest federation, and what it does not hold off, stands in docs/RELIABILITY.md.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from FedAvg import FedAvg, StateDict

Updates = Iterable[tuple[StateDict, float]]
STATISTICS = ("running_mean", "running_var")  # BatchNorm's, which an optimizer never touches


def median(models: Sequence[StateDict]) -> dict[str, torch.Tensor]:
    """The median of each coordinate over the models, of an even number the mean of the two in the
    middle (Yin, Chen, Ramchandran, Bartlett 2018, definition 1). Every client counts once."""
    return trimmed_mean(models, (len(models) - 1) // 2)


def trimmed_mean(models: Sequence[StateDict], cut: int) -> dict[str, torch.Tensor]:
    """The mean of each coordinate without its `cut` largest and `cut` smallest values over the
    models (Yin et al. 2018, definition 2). Every client counts once; integers are rounded.

    Raises `ValueError` where nothing would be left.
    """
    if 2 * cut >= len(models):
        raise ValueError(f"{cut} values cut off at either end of {len(models)}: none is left")

    def middle(name: str) -> torch.Tensor:
        value = models[0][name]
        values = torch.stack([model[name].detach() for model in models])
        values = values if value.is_floating_point() else values.double()
        mean = values.sort(dim=0).values[cut : len(models) - cut].mean(dim=0)
        return mean if value.is_floating_point() else mean.round().to(value.dtype)

    return {name: middle(name) for name in models[0]}


def krum_scores(squared_distances: torch.Tensor, liars: int) -> torch.Tensor:
    """How far each of N models lies from those next to it: the sum of its squared distances to
    the N - `liars` - 2 nearest others, one at least (Blanchard et al. 2017, section 4).

    squared_distances: (N, N), float. The smallest score is Krum's choice. Their proof asks for
    N > 2 `liars` + 2.
    """
    count = len(squared_distances)
    others = squared_distances + torch.diag(torch.full((count,), torch.inf))
    nearest = others.sort(dim=1).values[:, : max(1, count - liars - 2)]
    return nearest.sum(dim=1)


def squared_distances(models: Sequence[StateDict]) -> torch.Tensor:
    """(N, N) float64 between models: parameters and BatchNorm's statistics, each in units of
    their median over the pairs, added. The statistics' scale would drown the parameters'."""
    total = torch.zeros(len(models), len(models), dtype=torch.float64)
    for names in groups(models[0]):
        part = torch.zeros_like(total)
        for i in range(len(models)):
            for j in range(i):
                part[i, j] = part[j, i] = squared_length(models[i], models[j], names)
        pairs = part[torch.ones_like(part).tril(-1).bool()]
        total += part / pairs.median().clamp(min=torch.finfo(torch.float64).tiny)
    return total


def clip_lengths(lengths: Sequence[float]) -> list[float]:
    """The factor for each client's change that makes none longer than the median of `lengths`
    (norm bounding of Sun et al. 2019, the bound taken from the round itself)."""
    bound = torch.tensor(lengths, dtype=torch.float64).quantile(0.5).item()
    return [min(1.0, bound / length) if length else 1.0 for length in lengths]


def clipped(models: Sequence[StateDict], received: StateDict) -> list[dict[str, torch.Tensor]]:
    """The models with their changes since `received` shortened by `clip_lengths`: the parameters'
    together, and BatchNorm's statistics' together. A model that is not shortened is as it was."""
    result = [dict(model) for model in models]
    for names in groups(received):
        lengths = [squared_length(model, received, names) ** 0.5 for model in models]
        for model, factor in zip(result, clip_lengths(lengths), strict=True):
            if factor < 1:
                changed = {name: model[name] - received[name].to(model[name]) for name in names}
                model |= {
                    name: received[name].to(change) + factor * change
                    for name, change in changed.items()
                }
    return result


def groups(model: StateDict) -> list[list[str]]:
    """The names of the floating entries: the parameters', and BatchNorm's statistics' if any."""
    floating = [name for name, value in model.items() if value.is_floating_point()]
    statistics = [name for name in floating if name.rpartition(".")[2] in STATISTICS]
    parameters = [name for name in floating if name not in set(statistics)]
    return [names for names in (parameters, statistics) if names]


def squared_length(model: StateDict, other: StateDict, names: Sequence[str]) -> float:
    """The squared 2-norm of the difference of two models over the entries `names`."""
    parts = [(model[name] - other[name].to(model[name])).norm().double() for name in names]
    return torch.stack(parts).square().sum().item()


def mean_of(updates: Updates, received: StateDict, liars: int) -> dict[str, torch.Tensor]:
    """FedAvg: the models one after the other, only the running average held."""
    return FedAvg(updates)


def median_of(updates: Updates, received: StateDict, liars: int) -> dict[str, torch.Tensor]:
    """`median` of the models; their weights do not count."""
    return median([model for model, _ in updates])


def trimmed_mean_of(updates: Updates, received: StateDict, liars: int) -> dict[str, torch.Tensor]:
    """`trimmed_mean` without `liars` values at either end, or as many as leave one in the middle;
    the models' weights do not count."""
    models = [model for model, _ in updates]
    return trimmed_mean(models, min(liars, (len(models) - 1) // 2))


def krum_of(updates: Updates, received: StateDict, liars: int) -> dict[str, torch.Tensor]:
    """The one model that Krum chooses; of two models, between which it cannot, the mean."""
    updates = list(updates)
    if len(updates) < 3:
        return FedAvg(updates)
    models = [model for model, _ in updates]
    chosen = krum_scores(squared_distances(models), liars).argmin()
    return {name: value.detach().clone() for name, value in models[chosen].items()}


def norm_clip_of(updates: Updates, received: StateDict, liars: int) -> dict[str, torch.Tensor]:
    """FedAvg of the `clipped` models, with their weights."""
    updates = list(updates)
    models = clipped([model for model, _ in updates], received)
    return FedAvg(zip(models, [weight for _, weight in updates], strict=True))


Aggregate = Callable[[Updates, StateDict, int], dict[str, torch.Tensor]]
# name -> rule. Updates: (state dict, weight) of each client, all on one device; received: the
# global weights that they began with; how many of them may be wrong.
AGGREGATES: dict[str, Aggregate] = {
    "mean": mean_of,
    "median": median_of,
    "trimmed_mean": trimmed_mean_of,
    "krum": krum_of,
    "norm_clip": norm_clip_of,
}
