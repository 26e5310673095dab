"""What one client got wrong must not reach the average: checks of what it returns, and a policy."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from local_update import ClientUpdate
from record.outliers import Outliers
from server import Participant
from utils.errors import UserError
from utils.tensors import find_non_finite

BAD_ROUNDS_IN_A_ROW = 3
# Weights and BatchNorm statistics of a network that learns stay far below; 1e38 averages to inf.
LARGEST_WEIGHT = 1e6
LARGEST_COUNT = 10**12


def find_misfit(update: ClientUpdate, received: Mapping[str, torch.Tensor]) -> str | None:
    """Why an update cannot be averaged with others that began from the weights `received`.

    The same entries, shapes and types. None where all is well.
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
    return None


def find_bad_number(update: ClientUpdate, state: Mapping) -> str | None:
    """Which number of an update, or of the state the client would keep, is not usable, if any.

    Everything must be finite, weights, loss and what is shared at most `LARGEST_WEIGHT`.
    """
    if not abs(update.stats["loss"]) <= LARGEST_WEIGHT:
        return f"its loss is {update.stats['loss']}"
    if not all(map(math.isfinite, update.stats.values())):
        return "a term of its loss is not finite"
    name = find_non_finite(update.weights, LARGEST_WEIGHT)
    if name is not None:
        return f"its weights are not finite or larger than {LARGEST_WEIGHT:g} (entry {name})"
    negative = negative_variance(update.weights)
    if negative is not None:
        return f"a running variance of its weights is below 0 (entry {negative})"
    counters = [value for value in update.weights.values() if not value.is_floating_point()]
    if counters:
        counted = torch.cat([value.flatten().to(torch.int64) for value in counters])
        if counted.min() < 0 or counted.max() > LARGEST_COUNT:
            return "a step counter of its weights is out of range"
    for tensors in (update.shared, update.shown):
        if (name := find_non_finite(tensors, LARGEST_WEIGHT)) is not None:
            return f"what it shares is not finite or larger than {LARGEST_WEIGHT:g} (entry {name})"
    if (name := find_non_finite(state)) is not None:
        return f"what it remembers is not finite (entry {name})"
    return None


def negative_variance(weights: Mapping[str, torch.Tensor]) -> str | None:
    """The first of BatchNorm's running variances with a value below 0, by name: a square root is
    taken of them. One transfer for healthy ones."""
    names = [name for name, value in weights.items() if name.endswith("running_var")]
    if not names:
        return None
    lowest = torch.stack([weights[name].min().float() for name in names]).tolist()
    return next((name for name, value in zip(names, lowest, strict=True) if value < 0), None)


class ClientGuard:
    """Accepts or turns away the updates of a round's clients.

    policy "stop" raises `UserError` at the first bad one; "skip" leaves it out of the round, and
    raises where no client is left or bad ones turn up in three rounds in a row. find_fault: the
    server's own check of what its method shares (`Server.find_fault`).
    """

    def __init__(
        self,
        policy: str,
        say: Callable[[str], None],
        find_fault: Callable[[ClientUpdate], str | None],
    ):
        self.policy = policy
        self.say = say
        self.find_fault = find_fault
        self.outliers = Outliers()
        self.outliers_before: list[str] = []  # of the round before
        self.bad_rounds_in_a_row = 0
        self.skipped: list[int] = []
        self._active = 0

    def start_round(self, active: int, skipped_before: Sequence[int]) -> None:
        """A round of `active` clients begins; `skipped_before` counts those of each round past."""
        self._active = active
        self.skipped = []
        self.outliers_before = self.outliers.lines()
        self.outliers.start_round()
        clean = [i for i, count in enumerate(reversed(skipped_before)) if not count]
        self.bad_rounds_in_a_row = clean[0] if clean else len(skipped_before)

    def accept(
        self,
        client: Participant,
        round: int,
        update: ClientUpdate,
        received: Mapping[str, torch.Tensor],
        state: Mapping,
    ) -> bool:
        """Whether the update may be averaged and `state` be kept."""
        fault = find_misfit(update, received)
        if fault is None and update.num_samples != client.num_samples:
            fault = (
                f"it says that it trained on {update.num_samples} images, and has "
                f"{client.num_samples}"
            )
        if fault is None and (fault := find_bad_number(update, state)) and update.suspects:
            images = ", ".join(client.dataset.names[index] for index in update.suspects)
            fault += f" after training on the images {images}"
        if (fault := fault or self.find_fault(update)) is None:
            self.outliers.add(client.client, update.weights, received)
            return True
        self.turn_away(client, round, fault)
        return False

    def turn_away(self, client: Participant, round: int, fault: str) -> None:
        """Leave out of the round a client whose answer has a `fault`, or stop, by the policy."""
        fault = f"client {client.client}, round {round}: {fault}"
        if self.outliers_before:  # whose fault it may really be
            fault += f" (in the round before, {'; '.join(self.outliers_before)})"
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
