"""How much the unlabelled clients' loss counts as training goes on."""

import math


def sigmoid_rampup(current: float, rampup_length: float, power: int = 2) -> float:
    """exp(-5 (1 - t)^power) with t = current / rampup_length clipped to [0, 1].

    power 2 is the usual ramp-up of mean teachers and the released program's; power 1 is what the
    paper prints (page 6). 1.0 from `rampup_length` on, and everywhere when it is 0.
    """
    if rampup_length == 0:
        return 1.0
    phase = 1.0 - min(max(current / rampup_length, 0.0), 1.0)
    return math.exp(-5.0 * phase**power)


def get_current_consistency_weight(
    current: float, consistency: float, rampup_length: float, power: int = 2
) -> float:
    """lambda of eq. 7: `consistency` times the ramp-up at `current` (same unit as its length)."""
    return consistency * sigmoid_rampup(current, rampup_length, power)
