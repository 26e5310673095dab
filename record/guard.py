"""What one client got wrong must not reach the average: checks of what it returns, and a policy."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from confuse_matrix import RelationMatrix
from local_update import ClientUpdate, LocalUpdate
from utils.errors import UserError
from utils.tensors import find_non_finite

POLICIES = ("stop", "skip")
BAD_ROUNDS_IN_A_ROW = 3
# Weights and BatchNorm statistics of a network that learns stay far below; 1e38 averages to inf.
LARGEST_WEIGHT = 1e6
LARGEST_COUNT = 10**12
ROW_TOLERANCE = 1e-3


def find_misfit(update: ClientUpdate, received: Mapping[str, torch.Tensor]) -> str | None:
    """Why an update cannot be averaged with others that began from the weights `received`.

    The same entries, shapes and types; at least one sample; a relation matrix, if there is one,
    as `RelationMatrix` describes it. None where all is well.
    """
    odd = sorted(update.weights.keys() ^ received.keys())
    if odd:
        what = "missing" if odd[0] in received else "unknown"
        return f"its weights do not fit: entry {odd[0]} is {what}"
    for name, value in update.weights.items():
        wanted = received[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            return (
                f"its weights do not fit: entry {name} is {tuple(value.shape)} {value.dtype}, "
                f"not {tuple(wanted.shape)} {wanted.dtype}"
            )
    if not 1 <= update.num_samples <= LARGEST_COUNT:
        return f"it claims to have {update.num_samples} images"
    for matrix in (update.matrix, update.pseudo_matrix):
        if matrix is not None and not _is_square(matrix):
            return "its relation matrix has the wrong shape"
    return None


def find_bad_number(update: ClientUpdate, state: Mapping) -> str | None:
    """Which number of an update, or of the state the client would keep, is not usable, if any.

    Everything must be finite, weights and loss at most `LARGEST_WEIGHT`, and the rows of the
    relation matrix distributions.
    """
    if not abs(update.loss) <= LARGEST_WEIGHT:
        return f"its loss is {update.loss}"
    if not all(map(math.isfinite, update.stats.values())):
        return "a term of its loss is not finite"
    name = find_non_finite(update.weights, LARGEST_WEIGHT)
    if name is not None:
        return f"its weights are not finite or larger than {LARGEST_WEIGHT:g} (entry {name})"
    counters = [value for value in update.weights.values() if not value.is_floating_point()]
    if counters:
        counted = torch.cat([value.flatten().to(torch.int64) for value in counters])
        if counted.min() < 0 or counted.max() > LARGEST_COUNT:
            return "a step counter of its weights is out of range"
    matrices = [matrix for matrix in (update.matrix, update.pseudo_matrix) if matrix is not None]
    for log_rows, _ in matrices:
        sums = log_rows.exp().sum(dim=1)
        distributions = ((sums - 1).abs() <= ROW_TOLERANCE).all()
        if find_non_finite(log_rows, LARGEST_WEIGHT) is not None or not distributions:
            return "its relation matrix is no set of distributions"
    if (name := find_non_finite(state)) is not None:
        return f"what it remembers is not finite (entry {name})"
    return None


def _is_square(matrix: RelationMatrix) -> bool:
    rows, present = matrix
    square = rows.ndim == 2 and rows.shape[0] == rows.shape[1]
    return square and present.shape == rows.shape[:1] and present.dtype == torch.bool


class ClientGuard:
    """Accepts or turns away the updates of a round's clients.

    policy "stop" raises `UserError` at the first bad one; "skip" leaves it out of the round, and
    raises where no client is left or bad ones turn up in three rounds in a row.
    """

    def __init__(self, policy: str, say: Callable[[str], None]):
        self.policy = policy
        self.say = say
        self.bad_rounds_in_a_row = 0
        self.skipped: list[int] = []
        self._active = 0

    def start_round(self, active: int, skipped_before: Sequence[int]) -> None:
        """A round of `active` clients begins; `skipped_before` counts those of each round past."""
        self._active = active
        self.skipped = []
        clean = [i for i, count in enumerate(reversed(skipped_before)) if not count]
        self.bad_rounds_in_a_row = clean[0] if clean else len(skipped_before)

    def accept(
        self,
        client: LocalUpdate,
        round: int,
        update: ClientUpdate,
        received: Mapping[str, torch.Tensor],
        state: Mapping,
    ) -> bool:
        """Whether the update may be averaged and `state` be kept."""
        fault = find_misfit(update, received)
        if fault is None and (fault := find_bad_number(update, state)) and update.suspects:
            images = ", ".join(client.dataset.names[index] for index in update.suspects)
            fault += f" after training on the images {images}"
        if fault is None:
            return True
        self.turn_away(client, round, fault)
        return False

    def turn_away(self, client: LocalUpdate, round: int, fault: str) -> None:
        """Leave out of the round a client whose answer has a `fault`, or stop, by the policy."""
        fault = f"client {client.client}, round {round}: {fault}"
        if self.policy == "stop":
            raise UserError(
                f"{fault}; nothing of this round was kept: look at these images and settings, or "
                "leave such clients out with --on_bad_client skip"
            )
        self.skipped.append(client.client)
        if len(self.skipped) == self._active:
            raise UserError(f"{fault}; no client of this round is left: look at the settings")
        if self.bad_rounds_in_a_row + 1 >= BAD_ROUNDS_IN_A_ROW:
            raise UserError(
                f"{fault}; the {BAD_ROUNDS_IN_A_ROW}rd round in a row with a bad client: look at "
                "its images and the settings"
            )
        self.say(f"left out of this round: {fault}")
