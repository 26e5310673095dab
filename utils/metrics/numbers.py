"""Every number by which a classifier is judged, from labels and softmax probabilities alone.

Per-class numbers are one-vs-rest: an image is predicted positive for a class where its softmax
probability is at or above that class's threshold, so an image can be positive for no class or for
two. Top-1 numbers (`top1_accuracy`, `balanced_accuracy`, `confusion`) use the most probable class
instead. A number whose denominator is zero is NaN here and NA in print, never 0.

`python -m utils.metrics predictions_test.csv` prints the tables of a predictions file.
"""

from typing import NamedTuple

import numpy as np

DEFAULT_THRESHOLD = 0.4
# SOURCES: the released program tries thresholds from 0.40 to 0.92 on the test set itself.
SWEEP_THRESHOLDS = np.round(np.arange(0.40, 0.921, 0.02), 2)


class Calibration(NamedTuple):
    """What `calibration` returns: one entry per bin of confidence, and their summary."""

    images: np.ndarray  # (bins,) int
    confidence: np.ndarray  # (bins,) mean probability of the most probable class, NaN if empty
    accuracy: np.ndarray  # (bins,) share of images whose most probable class is right, NaN if empty
    expected_error: float  # mean over images of |accuracy - confidence| of their bin


class Metrics(NamedTuple):
    """What `classification_metrics` returns. Arrays are (C,) float64, one entry per class, and NaN
    where undefined; all fractions are in [0, 1]."""

    images: np.ndarray  # (C,) int: images of the class
    auroc: np.ndarray
    average_precision: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    precision: np.ndarray
    negative_predictive_value: np.ndarray
    f1: np.ndarray
    one_vs_rest_accuracy: np.ndarray  # what the released program calls accuracy, once averaged
    thresholds: np.ndarray
    top1_accuracy: float
    balanced_accuracy: float  # mean top-1 recall over the classes that have images
    brier: float  # mean over images of the squared distance to the one-hot label, in [0, 2]
    calibration_error: float  # see `calibration`
    confusion: np.ndarray  # (C, C) int: rows are labels, columns most probable classes

    def macro(self, name: str) -> float:
        """The mean of the per-class metric `name` over the classes where it is defined, or NaN."""
        values = getattr(self, name)
        defined = values[~np.isnan(values)]
        return float(defined.mean()) if defined.size else float("nan")

    def defined(self, name: str) -> int:
        """Over how many classes `macro(name)` is the mean."""
        return int(np.count_nonzero(~np.isnan(getattr(self, name))))


# field of Metrics -> its name in tables
PER_CLASS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "negative_predictive_value": "NPV",
    "f1": "F1",
    "one_vs_rest_accuracy": "one-vs-rest accuracy",
}
OVERALL = {
    "top1_accuracy": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score (0 to 2)",
    "calibration_error": "expected calibration error",
}


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray = DEFAULT_THRESHOLD
) -> Metrics:
    """All metrics of `labels` (N,) int in [0, C) and `probabilities` (N, C), rows summing to 1.

    `threshold` is a scalar or (C,); a class whose threshold is NaN has no decisions and NaN for
    what rests on them. AUROC and average precision equal scikit-learn's
    `roc_auc_score` and `average_precision_score` (ties included); F1 is 2TP / (2TP + FP + FN).
    Raises `ValueError` for shapes that do not fit, labels out of range and non-finite
    probabilities.
    """
    labels, probabilities = _checked(labels, probabilities)
    num_images, num_classes = probabilities.shape
    thresholds = np.broadcast_to(np.asarray(threshold, np.float64), (num_classes,)).copy()
    truth = labels[:, None] == np.arange(num_classes)
    positive = probabilities >= thresholds
    # a threshold of NaN decides nothing, so everything counted at it is NaN
    true_positive = np.where(np.isnan(thresholds), np.nan, (truth & positive).sum(0))
    false_positive = np.where(np.isnan(thresholds), np.nan, (~truth & positive).sum(0))
    images = truth.sum(0)
    false_negative = images - true_positive
    true_negative = num_images - images - false_positive
    confusion = confusion_matrix(labels, probabilities)
    ranked = [ranking_metrics(truth[:, c], probabilities[:, c]) for c in range(num_classes)]
    auroc, average_precision = np.array(ranked, np.float64).T
    top1_recall = ratio(np.diag(confusion), images)
    squared_distance = np.square(probabilities - truth).sum()
    return Metrics(
        images=images,
        auroc=auroc,
        average_precision=average_precision,
        sensitivity=ratio(true_positive, images),
        specificity=ratio(true_negative, num_images - images),
        precision=ratio(true_positive, true_positive + false_positive),
        negative_predictive_value=ratio(true_negative, true_negative + false_negative),
        f1=ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        one_vs_rest_accuracy=ratio(true_positive + true_negative, np.full(num_classes, num_images)),
        thresholds=thresholds,
        top1_accuracy=float(ratio(np.trace(confusion), num_images)),
        balanced_accuracy=float(ratio(np.nansum(top1_recall), np.count_nonzero(images))),
        brier=float(ratio(squared_distance, num_images)),
        calibration_error=calibration(labels, probabilities).expected_error,
        confusion=confusion,
    )


def confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Counts (C, C) int: row = label, column = most probable class (the first one on a tie)."""
    num_classes = probabilities.shape[1]
    cells = labels * num_classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(labels: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> Calibration:
    """Does a confidence of 80% mean right in 80%? Equally wide bins of confidence over [0, 1].

    The expected calibration error is that of Guo et al., On Calibration of Modern Neural Networks
    (ICML 2017), with their 15 bins, each open below and closed above; NaN without images.
    """
    confidence = probabilities.max(1)
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    images = np.bincount(bins, minlength=num_bins)
    right = np.bincount(bins, probabilities.argmax(1) == labels, minlength=num_bins)
    total_confidence = np.bincount(bins, confidence, minlength=num_bins)
    return Calibration(
        images=images,
        confidence=ratio(total_confidence, images),
        accuracy=ratio(right, images),
        expected_error=float(ratio(np.abs(right - total_confidence).sum(), len(labels))),
    )


def ranking_metrics(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """(AUROC, average precision) of boolean `truth` (N,) ranked by `scores` (N,).

    AUROC is NaN unless both classes are present, average precision is NaN without positives.
    """
    num_positive = int(truth.sum())
    num_negative = truth.size - num_positive
    if num_positive == 0:
        return float("nan"), float("nan")
    true_positive, false_positive, _ = operating_points(truth, scores)
    recall_steps = np.diff(true_positive, prepend=0) / num_positive
    precision = true_positive / (true_positive + false_positive)
    average_precision = float((recall_steps * precision).sum())
    if num_negative == 0:
        return float("nan"), average_precision
    # trapezoids between neighbouring operating points, so a tie counts one half
    heights = true_positive - np.diff(true_positive, prepend=0) / 2
    area = (heights * np.diff(false_positive, prepend=0)).sum()
    return float(area / num_positive / num_negative), average_precision


def operating_points(
    truth: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(true positives, false positives, threshold) at every distinct score, highest first.

    Entry k counts the positives and negatives with score >= threshold k.
    """
    order = np.argsort(-scores, kind="stable")
    ordered_scores = scores[order]
    ends = np.flatnonzero(np.r_[ordered_scores[1:] != ordered_scores[:-1], True])
    true_positive = np.cumsum(truth[order])[ends]
    return true_positive, ends + 1 - true_positive, ordered_scores[ends]


def youden_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Per class (C,) the threshold with the largest sensitivity + specificity - 1 (Youden's J).

    To be chosen on validation data. Of equally good thresholds the highest is taken. A class that
    the data does not have, or that is all there is, has no such threshold: NaN.
    """
    labels, probabilities = _checked(labels, probabilities)
    num_classes = probabilities.shape[1]
    thresholds = np.full(num_classes, np.nan)
    for index in range(num_classes):
        truth = labels == index
        if truth.any() and not truth.all():
            true_positive, false_positive, scores = operating_points(truth, probabilities[:, index])
            youden = true_positive / truth.sum() - false_positive / (~truth).sum()
            thresholds[index] = scores[np.argmax(youden)]
    return thresholds


def sweep(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, Metrics]]:
    """[(threshold, metrics)] for `SWEEP_THRESHOLDS`.

    Picking the best of these on the test set, as the released program does, is optimistic: the
    threshold has then seen the answers.
    """
    return [
        (float(value), classification_metrics(labels, probabilities, float(value)))
        for value in SWEEP_THRESHOLDS
    ]


def ratio(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    """numerator / denominator elementwise, NaN where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return np.divide(
        numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0
    )


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"labels (N,) and probabilities (N, C) do not fit: {labels.shape}, "
            f"{probabilities.shape}"
        )
    labels = labels.astype(np.int64, casting="same_kind")
    if labels.size and (labels.min() < 0 or labels.max() >= probabilities.shape[1]):
        raise ValueError(f"labels must be in [0, {probabilities.shape[1]})")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    return labels, probabilities


def evaluation_numbers(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, float]:
    """The class-averaged metrics of metrics.csv; `accuracy` is one-vs-rest at the threshold."""
    metrics = classification_metrics(labels, probabilities, threshold)
    return {
        "auroc": metrics.macro("auroc"),
        "accuracy": metrics.macro("one_vs_rest_accuracy"),
        "top1": metrics.top1_accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "sensitivity": metrics.macro("sensitivity"),
        "specificity": metrics.macro("specificity"),
        "precision": metrics.macro("precision"),
        "f1": metrics.macro("f1"),
    }
