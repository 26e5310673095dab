"""Intervals of sensitivity, specificity and predictive values, with and without patients."""

import numpy as np
import pytest

from tests.helpers.examples import example_predictions
from utils.metrics.intervals import draw_weights
from utils.metrics.numbers import classification_metrics
from utils.metrics.shares import SHARES, share_intervals

THRESHOLDS = np.full(3, 0.4)


def test_without_patients_they_are_wilsons():
    labels = np.array([0] * 10 + [1] * 90)
    probabilities = np.full((100, 2), 0.5)
    probabilities[:3] = (0.1, 0.9)  # 7 of 10 are found
    found = share_intervals(labels, probabilities, np.full(2, 0.4))
    # Wilson's interval of 7 of 10, as published tables have it
    assert found.low["sensitivity"][0] == pytest.approx(0.3968, abs=5e-5)
    assert found.high["sensitivity"][0] == pytest.approx(0.8922, abs=5e-5)
    assert found.method.startswith("Wilson")


def test_with_patients_they_are_the_percentiles_of_draws_of_patients():
    predictions = example_predictions(num_patients=20)
    data = predictions.labels, predictions.probabilities
    found = share_intervals(*data, THRESHOLDS, predictions.groups, draws=300)
    drawn = []
    for weights in np.concatenate(
        [*draw_weights(len(predictions.labels), predictions.groups, 300, 0)]
    ).astype(int):
        rows = np.repeat(np.arange(len(weights)), weights)
        metrics = classification_metrics(data[0][rows], data[1][rows], 0.4)
        drawn.append([getattr(metrics, name) for name in SHARES])
    low, high = np.nanpercentile(np.array(drawn), (2.5, 97.5), axis=0)
    point = classification_metrics(*data, 0.4)
    for at, name in enumerate(SHARES):
        between = (getattr(point, name) > 0) & (getattr(point, name) < 1)
        assert between.any()
        np.testing.assert_allclose(found.low[name][between], low[at][between])
        np.testing.assert_allclose(found.high[name][between], high[at][between])
    assert "cluster bootstrap of patients" in found.method


def test_a_share_of_one_is_no_certainty_and_of_nothing_has_no_interval():
    labels, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([*"aabbcd"])
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.7, 0.3]] * 2)
    found = share_intervals(labels, probabilities, np.array([0.5, 0.5]), groups)
    low, high = found.low["sensitivity"][0], found.high["sensitivity"][0]
    assert high == 1 and low == pytest.approx(0.3424, abs=5e-5)  # 2 of 2 patients, not 4 of 4
    assert np.isnan(found.low["precision"][1])  # nothing is called the second class
    undefined = share_intervals(labels, probabilities, np.array([np.nan, 0.5]), groups)
    assert all(np.isnan(undefined.low[name][0]) for name in SHARES)


def test_shares_that_are_all_0_or_1_have_their_intervals():
    labels, groups = np.array([0, 1]), np.array(["a", "b"])
    found = share_intervals(labels, np.eye(2), np.array([0.5, 0.5]), groups)
    for name in SHARES:
        assert (found.high[name] == 1).all() and (found.low[name] > 0).all()
