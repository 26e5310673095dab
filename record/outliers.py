"""Whose update lies far outside the others', whatever rule averages them.

Each update is kept as a sketch of some thousand numbers: sums of its changes under random signs,
whose distances are those of the whole models to a few percent (Johnson and Lindenstrauss; the
signs are those of a count sketch). All models of a round need not be held for it.
"""

from collections.abc import Mapping

import torch

from robust import groups

BUCKETS = 1024
FAR = 10.0  # spreads; a guess, not calibrated: it misses sign flips and zeros (docs/RELIABILITY.md)
WHAT = ("parameters", "BatchNorm statistics")


class Outliers:
    """The sketches of one round's updates, by client."""

    def __init__(self):
        self._sketches: dict[int, list[torch.Tensor]] = {}
        self._signs: dict[tuple[int, torch.device], torch.Tensor] = {}

    def start_round(self) -> None:
        """Forget the round before."""
        self._sketches = {}

    def add(
        self,
        client: int,
        weights: Mapping[str, torch.Tensor],
        received: Mapping[str, torch.Tensor],
    ) -> None:
        """An update that may be averaged, of a client that began with the weights `received`."""
        self._sketches[client] = [
            self._sketch([weights[name] - received[name].to(weights[name]) for name in names])
            for names in groups(received)
        ]

    def lines(self) -> list[str]:
        """Who lies how far outside, where that is further than `FAR`; for the log."""
        clients = sorted(self._sketches)
        found = []
        if len(clients) < 3:
            return found
        for what, *sketches in zip(
            WHAT, *(self._sketches[client] for client in clients), strict=False
        ):
            together = torch.stack([sketch.cpu() for sketch in sketches])
            for client, distance in zip(clients, distances(together), strict=True):
                if distance > FAR:
                    found.append(
                        f"client {client}: its {what} lie {distance:.3g} times as far from the "
                        "others' as those from each other's"
                    )
        return found

    def _sketch(self, changes: list[torch.Tensor]) -> torch.Tensor:
        flat = torch.cat([change.detach().reshape(-1).float() for change in changes])
        rows = torch.nn.functional.pad(flat, (0, -len(flat) % BUCKETS)).view(-1, BUCKETS)
        key = (rows.numel(), rows.device)
        if key not in self._signs:
            draws = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, rows.shape, generator=draws, dtype=torch.int8) * 2 - 1
            self._signs[key] = signs.to(rows.device)
        return (rows * self._signs[key]).sum(dim=0)


def distances(points: torch.Tensor) -> list[float]:
    """Of each of N points (N, D): its median distance to the others, in units of the median of
    those medians. 1 is usual; N is 3 at least."""
    pairs = torch.cdist(points.double(), points.double())
    others = pairs[~torch.eye(len(pairs), dtype=torch.bool)].view(len(pairs), -1)
    middle = others.quantile(0.5, dim=1)
    return (middle / middle.quantile(0.5).clamp(min=1e-30)).tolist()
