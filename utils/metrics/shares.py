"""Intervals for what is decided at a threshold: sensitivity, specificity, predictive values.

Without patients each is a share of independent images: Wilson's interval. With patients whole
patients are drawn (`intervals.draw_weights`), and the interval is that of the draws' middle 95%; a
share of exactly 0 or 1 is the same in every draw, which is no certainty: there it is Wilson's over
the patients that have such images.
"""

from typing import NamedTuple

import numpy as np

from utils.metrics.intervals import CONFIDENCE, DRAWS, draw_weights, wilson_interval
from utils.metrics.numbers import ratio

SHARES = ("sensitivity", "specificity", "precision", "negative_predictive_value")
TAIL = 50 * (1 - CONFIDENCE)  # percent


class ShareIntervals(NamedTuple):
    """For each of `SHARES` the bounds (C,), NaN where it is not defined; method: in words."""

    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    method: str


def share_intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    groups: np.ndarray | None = None,
    noun: str = "patients",
    draws: int = DRAWS,
    seed: int = 0,
) -> ShareIntervals:
    """95% intervals at `thresholds` (C,); labels (N,), probabilities (N, C), groups (N,) any ids of
    what `noun` names."""
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    positive = probabilities >= thresholds
    known = ~np.isnan(thresholds)
    # of each share: which images count, and which of them are right
    counted = (truth, ~truth, positive, ~positive)
    right = (truth & positive, ~truth & ~positive, truth & positive, ~truth & ~positive)
    counted, right = (np.stack(parts).astype(float) * known for parts in (counted, right))
    if groups is None:
        low, high = _wilson(right.sum(axis=1), counted.sum(axis=1))
        method = "Wilson's score interval over images"
    else:
        low, high = _drawn(right, counted, groups, draws, seed)
        method = (
            f"cluster bootstrap of {noun} ({draws} draws, percentiles); Wilson's over {noun} "
            "where a share is 0 or 1"
        )
    return ShareIntervals(
        dict(zip(SHARES, low, strict=True)), dict(zip(SHARES, high, strict=True)), method
    )


def _wilson(right: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full((2, *counted.shape), np.nan)
    some = counted > 0
    low[some], high[some] = wilson_interval(right[some], counted[some])
    return low, high


def _drawn(
    right: np.ndarray, counted: np.ndarray, groups: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    shares, images, classes = counted.shape
    samples = []
    for weights in draw_weights(images, groups, draws, seed):
        parts = (np.moveaxis(weights @ part, 1, 0) for part in (right, counted))
        samples.append(ratio(*parts))
    samples = np.concatenate(samples).reshape(draws, shares, classes)
    point = ratio(right.sum(axis=1), counted.sum(axis=1))
    low, high = np.full((2, shares, classes), np.nan)
    between = (point > 0) & (point < 1)
    if between.any():
        drawn = np.nanpercentile(samples[:, between], (TAIL, 100 - TAIL), axis=0)
        low[between], high[between] = drawn
    _, member = np.unique(groups, return_inverse=True)
    for share, of_class in np.argwhere((point == 0) | (point == 1)):
        patients = np.unique(member[counted[share, :, of_class] > 0]).size
        bounds = wilson_interval(point[share, of_class] * patients, np.array(patients))
        low[share, of_class], high[share, of_class] = bounds
    return low, high
