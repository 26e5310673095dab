"""How often something that costs time is done: every so many rounds, or by the clock."""

import math
import time

SECONDS_BETWEEN_STATES = 60.0
SECONDS_BETWEEN_FIGURES = 120.0


class Pace:
    """Due after every `rounds`-th round or, where that is 0, after the first round and when
    `seconds` have passed since the last time."""

    def __init__(self, rounds: int, seconds: float):
        self.rounds = rounds
        self.seconds = seconds
        self._last = -math.inf

    def is_due(self, round: int, ahead: float = 0.0) -> bool:
        """Whether it is due after `round`, counted from 0, which ends in some `ahead` seconds."""
        if self.rounds:
            return (round + 1) % self.rounds == 0
        return time.monotonic() + ahead - self._last > self.seconds

    def done(self) -> None:
        """It has been done now."""
        self._last = time.monotonic()
