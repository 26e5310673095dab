"""How well segmented volumes agree with their labels: Dice, Jaccard and distances in mm.

All four are MONAI's, one number for each structure (background has none) of each volume:
2|A and B| / (|A| + |B|), |A and B| / |A or B|, the 95th percentile of the distances between the two
surfaces, in both directions, the larger of the two, and the mean of the distances, in both
directions. Of an empty structure: absent from label and prediction both, it has no number (NaN) and
counts in no mean; absent from one of them, Dice and Jaccard are 0, and the distances, which have
nothing to measure, are the volume's diagonal, the worst there is.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from utils.metrics.intervals import draw_weights
from utils.packages import import_3d

LARGEST = {"dice": 1.0, "jaccard": 1.0}  # of distances there is none
VOLUME_METRICS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "hd95": "HD95 (mm)",
    "asd": "ASD (mm)",
}
DRAWS = 1000


class VolumeScores(NamedTuple):
    """names: N volumes. class_names: the S structures. values: metric -> (N, S) float64, NaN where
    there is no number. groups, sites: of each volume, or None."""

    names: list[str]
    class_names: tuple[str, ...]
    values: dict[str, np.ndarray]
    groups: list[str] | None
    sites: list[str] | None

    def macro(self, metric: str) -> float:
        """The mean over structures of each one's mean over volumes; NaN where there is none."""
        return float(mean_of_means(self.values[metric]))

    def of_class(self, metric: str) -> np.ndarray:
        """Each structure's mean over the volumes that have a number, (S,)."""
        return column_means(self.values[metric])


def volume_scores(
    predicted: np.ndarray, label: np.ndarray, classes: int, spacing: Sequence[float]
) -> dict[str, np.ndarray]:
    """Metric -> (S,) of one volume: class numbers (X, Y, Z) in [0, `classes`), S = classes - 1.

    spacing: mm of a voxel along each axis. `ValueError` where the shapes differ.
    """
    if predicted.shape != label.shape:
        raise ValueError(f"a prediction of {predicted.shape} for a label of {label.shape}")
    metrics = import_3d("monai.metrics")
    box = bounding_box((predicted > 0) | (label > 0))
    ours, theirs = (one_hot(array[box], classes)[None] for array in (predicted, label))
    has_ours, has_theirs = (hot[0, 1:].flatten(1).any(dim=1) for hot in (ours, theirs))
    both, neither = (has_ours & has_theirs).numpy(), (~has_ours & ~has_theirs).numpy()
    overlap = {
        "dice": metrics.compute_dice(ours, theirs, include_background=False),
        "jaccard": metrics.compute_iou(ours, theirs, include_background=False),
    }
    scores = {
        name: np.where(neither, np.nan, np.where(both, value[0].double().numpy(), 0.0))
        for name, value in overlap.items()
    }
    options = {"include_background": False, "spacing": list(map(float, spacing))}
    diagonal = float(np.linalg.norm(np.array(label.shape) * np.array(spacing)))
    # MONAI warns of a structure that one of the two lacks; such are not handed to it.
    chosen = [0, *(np.flatnonzero(both) + 1).tolist()]
    distances = {"hd95": np.full(classes - 1, diagonal), "asd": np.full(classes - 1, diagonal)}
    if both.any():
        pair = ours[:, chosen], theirs[:, chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of MONAI about MONAI
            hd95 = metrics.compute_hausdorff_distance(*pair, percentile=95, **options)
            asd = metrics.compute_average_surface_distance(*pair, symmetric=True, **options)
        distances["hd95"][both] = hd95[0].double().numpy()
        distances["asd"][both] = asd[0].double().numpy()
    return scores | {name: np.where(neither, np.nan, value) for name, value in distances.items()}


def bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """Slices around the true voxels of `mask`, `margin` wider; everything where there are none."""
    if not mask.any():
        return tuple(slice(None) for _ in mask.shape)
    found = [np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(at[0] - margin, 0), at[-1] + 1 + margin) for at in found)


def one_hot(classes: np.ndarray, count: int) -> torch.Tensor:
    """Class numbers (X, Y, Z) -> (count, X, Y, Z) of 0 and 1, float32."""
    numbers = np.arange(count).reshape(-1, 1, 1, 1)
    return torch.from_numpy((classes[None] == numbers).astype(np.float32))


def column_means(values: np.ndarray) -> np.ndarray:
    """(N, S) -> (S,): the mean of each column's numbers, NaN where it has none."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)


def mean_of_means(values: np.ndarray) -> float:
    """The mean of `column_means` over the structures that have one."""
    means = column_means(values)
    known = means[~np.isnan(means)]
    return float(known.mean()) if len(known) else float("nan")


def bootstrap_means(
    values: np.ndarray,
    groups: Sequence[str] | None,
    largest: float = math.inf,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals, each (S + 1,), of each structure's mean and of the mean over structures.

    Percentiles of `draws` bootstrap means, in which patients (`groups`, one per volume; None: every
    volume by itself) are drawn with all their volumes. Few patients make the spread of the draws
    too small and uncertain: with k patients who have a number, both distances from the mean are
    t / z times the root of k / (k - 1) as long (t with k - 1 degrees of freedom, z the normal
    distribution's); none is below 0 or above `largest`. A draw without a structure that the data
    have is left out of the mean over structures. NaN where k < 2 (for that mean: of any
    structure).
    """
    count, structures = values.shape
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    patients = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    people = np.array([len(np.unique(patients[column])) for column in known.T], dtype=np.int64)
    samples = []
    for weights in draw_weights(count, None if groups is None else np.array(groups), draws, seed):
        weighed = weights @ known
        means = np.divide(
            weights @ filled, weighed, out=np.full(weighed.shape, np.nan), where=weighed > 0
        )
        samples.append(means)
    drawn = np.concatenate(samples)
    there = people > 0
    macro = drawn[:, there].mean(axis=1, keepdims=True) if there.any() else drawn[:, :1]
    drawn = np.concatenate([drawn, macro], axis=1)
    people = np.append(people, people[there].min(initial=count))
    means = np.append(column_means(values), mean_of_means(values))
    usable = (people >= 2) & (~np.isnan(drawn)).any(axis=0)
    low, high = np.full((2, structures + 1), np.nan)
    if not usable.any():
        return low, high
    ends = np.nanpercentile(drawn[:, usable], [2.5, 97.5], axis=0)
    few, means = people[usable], means[usable]
    widening = stats.t.ppf(0.975, few - 1) / stats.norm.ppf(0.975) * np.sqrt(few / (few - 1))
    low[usable], high[usable] = means + widening * (ends - means)
    return np.maximum(low, 0), np.minimum(high, largest)
