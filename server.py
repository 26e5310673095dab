"""What a server does in a round: who trains, the average, what it shares beside the weights."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch

from confuse_matrix import RelationMatrix, average_matrices
from local_update import ClientUpdate
from robust import AGGREGATES
from utils.tensors import placed, to_host

ROW_TOLERANCE = 1e-3  # how far the sum of a relation matrix's row may be from 1
Averaged = tuple[dict[str, torch.Tensor], list[ClientUpdate]]


class Participant(Protocol):
    """Whoever trains in a round: a trainer in this process, or a site at the end of a wire."""

    client: int
    labeled: bool
    num_samples: int


class Server:
    """Federated averaging, and nothing shared beside the weights; the base of all servers.

    What it remembers between rounds, the models of clients that have stopped, is its
    `state_dict`, from which a resumed run goes on; a server that remembers more adds to it.
    """

    def __init__(self, args: Namespace):
        self.args = args
        self._stopped: list[tuple[dict[str, torch.Tensor], float]] = []
        self._may_stop = False  # from `active` on: whether somebody would carry on

    def state_dict(self) -> dict:
        """What the server remembers between rounds: tensors and plain types only."""
        return {"stopped": self._stopped} if self._stopped else {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self._stopped = [tuple(pair) for pair in state.get("stopped", ())]

    def active(self, clients: Sequence[Participant], round: int) -> list:
        """Who trains in this round: the unlabelled join late, the labelled may stop, as flags say.

        The labelled stop only where unlabelled ones carry on, so that somebody always trains.
        """
        epochs_done = round * self.args.local_ep
        self._may_stop = not all(client.labeled for client in clients)
        joined = epochs_done > self.args.join_epoch and self._may_stop
        stopped = joined and 0 < self.args.labeled_stop <= epochs_done
        return [client for client in clients if (not stopped if client.labeled else joined)]

    def weight(self, update: ClientUpdate) -> float:
        """A client's weight in the average, relative to the others': N_k, or 1 for each, times
        `--labeled_weight` where it has labels."""
        size = update.num_samples if self.args.fedavg_weights == "size" else 1
        return size * self.args.labeled_weight if update.labeled else size

    def average(
        self,
        updates: Iterator[ClientUpdate],
        received: dict[str, torch.Tensor],
        round: int,
        device: torch.device,
        done: Callable[[ClientUpdate], None],
    ) -> Averaged:
        """The round's global weights on `device`, and the updates without their weights.

        The updates are taken as they come in, one at a time, and `done` hears of each.
        `received` are the global weights that the clients began with, and stay where no update has
        a weight.
        """
        reports: list[ClientUpdate] = []
        last_of_labeled: list[tuple[dict[str, torch.Tensor], float]] = []

        def weighted() -> Iterator[tuple[dict[str, torch.Tensor], float]]:
            for update in updates:
                reports.append(update._replace(weights={}))
                done(update)
                share = self.weight(update)
                if update.labeled and self._may_stop and self._stops_after(round):
                    last_of_labeled.append((to_host(update.weights), share))
                if share:  # 0: it trained on nothing, and brought back what it had received
                    yield placed(update.weights, device), share
                del update  # not to hold its weights while the next client trains
            if not any(report.labeled for report in reports):
                yield from ((placed(weights, device), share) for weights, share in self._stopped)

        models = weighted()
        first = list(islice(models, 1))
        if first or not reports:
            average = self.combine(_and_then(first, models), received)
        else:  # nobody's counts for anything
            average = placed(received, device)
        self._stopped = last_of_labeled or self._stopped
        return average, reports

    def _stops_after(self, round: int) -> bool:
        """Whether the labelled clients, whose models are then to stay, stop after this round."""
        stop = self.args.labeled_stop if self.args.stopped_clients == "average" else 0
        return 0 < stop <= (round + 1) * self.args.local_ep

    def models_remembered(self, clients: Sequence[Participant]) -> int:
        """How many models `state_dict` may come to hold: what a state takes on the disk."""
        labeled = sum(client.labeled for client in clients)
        return labeled if labeled < len(clients) and self._stops_after(self.args.rounds - 1) else 0

    def combine(
        self,
        updates: Iterable[tuple[dict[str, torch.Tensor], float]],
        received: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """`--aggregate` of some clients' models, each with its weight, all on one device.

        Every server that averages comes through here, so that a robust rule holds for its method.
        `received` are the global weights that the clients began with.
        """
        return AGGREGATES[self.args.aggregate](updates, received, self.args.bad_clients)

    def shared(
        self, reports: Sequence[ClientUpdate], before: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """What the next round's clients receive beside the weights, on the CPU.

        reports: this round's updates. before: what this round's clients received.
        """
        return {}

    def find_fault(self, update: ClientUpdate) -> str | None:
        """Why what an update shares beside its weights cannot be used, or None.

        That its tensors are finite is checked for every method.
        """
        if update.shared or update.shown:
            return "it shares what this method does not know"
        return None

    def pictures(self, reports: Sequence[ClientUpdate]) -> dict[str, torch.Tensor]:
        """Matrices (C, C) for a round's figures, by their source in matrices.csv; NaN: no value."""
        return {}


def _and_then(first: list, others: Iterator) -> Iterator:
    """Of `first`, which is emptied so that nobody holds it any longer, then of `others`."""
    while first:
        yield first.pop(0)
    yield from others


class RelationServer(Server):
    """FedIRM's: the mean of the labelled clients' relation matrices, for the next round."""

    def shared(
        self, reports: Sequence[ClientUpdate], before: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The mean matrix, by name; `before` where nobody measured one."""
        mean = _mean([report.shared for report in reports])
        return before if mean is None else mean.named()

    def find_fault(self, update: ClientUpdate) -> str | None:
        """Matrices as `RelationMatrix` describes them; only labelled clients share one."""
        for tensors in (update.shared, update.shown):
            if not tensors:
                continue
            matrix = RelationMatrix.from_named(tensors)
            if matrix is None or len(tensors) != len(matrix):
                return "it shares what this method does not know"
            rows, present = matrix
            square = rows.ndim == 2 and rows.shape[0] == rows.shape[1]
            if not (square and present.shape == rows.shape[:1] and present.dtype == torch.bool):
                return "its relation matrix has the wrong shape"
            if not ((rows.exp().sum(dim=1) - 1).abs() <= ROW_TOLERANCE).all():
                return "its relation matrix is no set of distributions"
        if update.shared and not update.labeled:
            return "a client without labels shares a relation matrix"
        return None

    def pictures(self, reports: Sequence[ClientUpdate]) -> dict[str, torch.Tensor]:
        """The mean matrices of both kinds of client, where there are any; float64."""
        means = {
            "labeled_mean": _mean([report.shared for report in reports]),
            "unlabeled_mean": _mean([report.shown for report in reports]),
        }
        return {
            name: mean.probabilities().to(torch.float64)
            for name, mean in means.items()
            if mean is not None
        }


def _mean(tensors: Sequence[dict[str, torch.Tensor]]) -> RelationMatrix | None:
    matrices = [RelationMatrix.from_named(named) for named in tensors]
    measured = [matrix for matrix in matrices if matrix is not None]
    return average_matrices(measured) if measured else None
