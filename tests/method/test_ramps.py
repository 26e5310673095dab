"""The ramp-up of lambda against numbers worked out by hand."""

import math

import pytest

from utils.ramps import get_current_consistency_weight, sigmoid_rampup


@pytest.mark.parametrize(
    ("current", "power", "expected"),
    [
        (0, 2, math.exp(-5)),
        (0, 1, math.exp(-5)),
        (15, 2, math.exp(-5 * 0.25)),  # the released program, half way
        (15, 1, math.exp(-5 * 0.5)),  # as the paper prints it
        (24, 2, math.exp(-5 * 0.04)),
        (24, 1, math.exp(-1)),
        (30, 2, 1.0),
        (30, 1, 1.0),
        (31, 2, 1.0),
        (1000, 1, 1.0),
        (-3, 2, math.exp(-5)),
    ],
)
def test_rampup(current, power, expected):
    assert sigmoid_rampup(current, 30, power) == pytest.approx(expected, rel=1e-12)


def test_values_as_decimals():
    assert sigmoid_rampup(0, 30) == pytest.approx(0.006737947, rel=1e-7)
    assert sigmoid_rampup(15, 30) == pytest.approx(0.286504797, rel=1e-7)


def test_no_length_is_no_ramp():
    assert sigmoid_rampup(0, 0) == 1.0
    assert sigmoid_rampup(5, 0, power=1) == 1.0


def test_it_only_rises():
    values = [sigmoid_rampup(t / 4, 30) for t in range(140)]
    assert values == sorted(values)
    assert len(set(values[:121])) == 121


def test_lambda_is_the_largest_value_times_the_ramp():
    assert get_current_consistency_weight(15, 0.5, 30, 1) == pytest.approx(0.5 * math.exp(-2.5))
    assert get_current_consistency_weight(40, 0.5, 30) == 0.5
    assert get_current_consistency_weight(10, 0.0, 30) == 0.0
