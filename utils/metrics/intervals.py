"""Confidence intervals that know that slices of one patient are not independent.

The patient is what is drawn: a draw takes as many patients with replacement as there are, and each
comes with all of its slices. A draw is therefore one whole-number weight per slice, and a thousand
draws are a matrix of weights, so a thousand weighted AUROCs are a few cumulative sums.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import expit, logit

DRAWS = 1000
CONFIDENCE = 0.95
CHUNK_BYTES = 64 * 2**20  # of one weight matrix; about six of its size live at a time


class AurocIntervals(NamedTuple):
    """What `bootstrap_auroc` returns."""

    low: np.ndarray  # (C,) NaN where there is no interval
    high: np.ndarray  # (C,)
    macro_low: float
    macro_high: float
    used_draws: np.ndarray  # (C,) int: draws that had the class and something else
    macro_used_draws: int  # draws that had every class the data has
    draws: int


def bootstrap_auroc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> AurocIntervals:
    """Intervals for the one-vs-rest AUROC of each class and for their mean, the macro.

    `labels` (N,) int in [0, C), `probabilities` (N, C), `groups` (N,) any ids (patients); without
    groups every image is drawn by itself.

    The interval is symmetric on the logit scale (Pepe, The Statistical Evaluation of Medical
    Tests, 2003, chapter 5), so it stays inside (0, 1): logit(A) +- t sd / (A (1 - A)), A the
    AUROC. Few patients make the spread of the draws too small and uncertain, so with k effective
    patients (`effective_groups`) sd^2 is the variance of the draws times k / (k - 1), and t has
    k - 1 degrees of freedom (Satterthwaite's for the macro). benchmarks/bootstrap_coverage.py
    measures how often this holds the truth.

    A draw without the class (or with nothing else) is left out of that class and of the macro;
    `used_draws` counts the others. The macro is over the classes that have an AUROC. There is no
    interval (NaN) where there is no AUROC, where k < 2 (for the macro: of any class), and where
    every draw says the same, as they do when the AUROC is exactly 1: that is no certainty.
    """
    point, samples = auroc_draws(labels, probabilities, groups, draws, seed)
    used = np.count_nonzero(~np.isnan(samples), axis=0)
    effective = effective_groups(labels, groups, len(point))
    defined = ~np.isnan(point)
    known = defined & (effective >= 2) & (used >= 2)
    spread = _sample_variance(samples, known)
    inflation = np.divide(effective, effective - 1, out=np.full(len(point), np.nan), where=known)
    variance = spread * inflation
    low, high = _logit_interval(point, variance, effective - 1, confidence)

    macro_samples = samples[:, defined].mean(1) if defined.any() else samples[:, 0]
    macro_used = int(np.count_nonzero(~np.isnan(macro_samples)))
    macro_low, macro_high = np.full((2, 1), np.nan)
    if defined.any() and known[defined].all() and macro_used >= 2:
        too_small = (variance - spread)[defined].sum() / defined.sum() ** 2
        macro_variance = np.nanvar(macro_samples, ddof=1) + too_small
        macro_low, macro_high = _logit_interval(
            point[defined].mean(keepdims=True),
            np.array([macro_variance]),
            _satterthwaite(variance[defined], effective[defined] - 1),
            confidence,
        )
    return AurocIntervals(
        low, high, float(macro_low[0]), float(macro_high[0]), used, macro_used, draws
    )


def auroc_draws(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(C,) AUROC of the data and (draws, C) AUROC of each draw, NaN where undefined."""
    num_images, num_classes = np.shape(probabilities)
    rankings = [Ranking(labels == c, probabilities[:, c]) for c in range(num_classes)]
    point = np.array([ranking.auroc(np.ones((1, num_images)))[0] for ranking in rankings])
    samples = [
        np.stack([ranking.auroc(weights) for ranking in rankings], axis=1)
        for weights in draw_weights(num_images, groups, draws, seed)
    ]
    return point, np.concatenate(samples)


def draw_weights(
    num_images: int, groups: np.ndarray | None, draws: int, seed: int
) -> Iterator[np.ndarray]:
    """How often each draw has each image: float64 matrices (some draws, N), `draws` rows in all.

    The rows depend on `seed` and on the sorted order of the group ids alone, not on how many of
    them come at a time.
    """
    image_group, num_groups = _group_indices(num_images, groups)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_BYTES // (8 * max(num_images, 1)))
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        if num_groups == 0:
            yield np.zeros((count, 0))
            continue
        drawn = generator.integers(num_groups, size=(count, num_groups))
        drawn += np.arange(count)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=count * num_groups)
        yield counts.reshape(count, num_groups)[:, image_group].astype(np.float64)


def effective_groups(labels: np.ndarray, groups: np.ndarray | None, num_classes: int) -> np.ndarray:
    """(C,) how many equally large patients the images of a class, or all others, amount to.

    Kish's (sum n)^2 / sum n^2 over the numbers n of such images per patient, the smaller of the
    class's own and the others'; 0 where either has no image. Without groups it is the number of
    images.
    """
    image_group, num_groups = _group_indices(len(labels), groups)
    cells = np.asarray(labels, np.int64) * num_groups + image_group
    counts = np.bincount(cells, minlength=num_classes * num_groups)
    own = counts.reshape(num_classes, num_groups).astype(np.float64)
    others = own.sum(0) - own
    return np.minimum(_kish(own), _kish(others))


class Ranking:
    """Images in the order of their scores, ready for any number of weightings."""

    def __init__(self, truth: np.ndarray, scores: np.ndarray):
        """`truth` (N,) bool, `scores` (N,)."""
        order = np.argsort(scores, kind="stable")
        scores, truth = np.asarray(scores)[order], np.asarray(truth)[order]
        new_score = np.r_[True, scores[1:] != scores[:-1]][: scores.size]
        starts = np.flatnonzero(new_score)
        tie = np.cumsum(new_score) - 1
        negatives_before = np.r_[0, np.cumsum(~truth)]
        self.positives, self.negatives = order[truth], order[~truth]
        # for each positive: how many negatives score less, and how many score less or the same
        self.below = negatives_before[starts][tie[truth]]
        self.at_most = negatives_before[np.r_[starts, scores.size][1:]][tie[truth]]

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """(B,) AUROC under each row of `weights` (B, N); a tie counts one half.

        Equals scikit-learn's `roc_auc_score(truth, scores, sample_weight=row)`; NaN where a row
        gives the positives or the negatives no weight.
        """
        positive = weights[:, self.positives]
        negative = np.zeros((len(weights), len(self.negatives) + 1))
        np.cumsum(weights[:, self.negatives], axis=1, out=negative[:, 1:])
        beaten = (negative[:, self.below] + negative[:, self.at_most]) / 2
        pairs = positive.sum(1) * negative[:, -1]
        in_order = np.einsum("bp,bp->b", positive, beaten)
        return np.divide(in_order, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


class CurveBands(NamedTuple):
    """What `bootstrap_curves` returns; bounds are NaN where `bootstrap_auroc` has no interval
    for lack of patients."""

    grid: np.ndarray  # (G,) false positive rate, and recall
    roc_low: np.ndarray  # (G,) sensitivity at that false positive rate
    roc_high: np.ndarray
    precision_low: np.ndarray  # (G,) precision at the highest threshold that reaches that recall
    precision_high: np.ndarray


def bootstrap_curves(
    truth: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> CurveBands:
    """Pointwise percentile bands of the ROC and precision-recall curves of one class.

    `truth` (N,) bool, `scores` (N,), `groups` (N,) as in `bootstrap_auroc`, same draws.
    """
    truth = np.asarray(truth, bool)
    grid = np.linspace(0, 1, 101)
    if effective_groups(truth, groups, 2)[1] < 2:
        return CurveBands(grid, *np.full((4, len(grid)), np.nan))
    order = np.argsort(-np.asarray(scores), kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(np.asarray(scores)[order]) != 0, True])
    curves = []
    for weights in draw_weights(len(truth), groups, draws, seed):
        weights = weights[:, order]
        positive = np.cumsum(weights * truth[order], axis=1)[:, ends]
        total = np.cumsum(weights, axis=1)[:, ends]
        usable = (positive[:, -1] > 0) & (positive[:, -1] < total[:, -1])
        pairs = zip(positive[usable], total[usable], strict=True)
        curves += [_curves_on_grid(*pair, grid) for pair in pairs]
    tail = 50 * (1 - confidence)
    (roc_low, precision_low), (roc_high, precision_high) = np.percentile(
        curves, [tail, 100 - tail], axis=0
    )
    return CurveBands(grid, roc_low, roc_high, precision_low, precision_high)


def _curves_on_grid(positive: np.ndarray, total: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(2, G): sensitivity at false positive rate `grid`, precision at recall `grid`, from the
    cumulated weights of the positives and of all images."""
    negative = total - positive
    sensitivity = np.r_[0, positive] / positive[-1]
    roc = np.interp(grid, np.r_[0, negative] / negative[-1], sensitivity)
    seen = positive > 0
    reached = np.searchsorted(positive[seen], grid * positive[-1] * (1 - 1e-12))
    return np.stack([roc, (positive[seen] / total[seen])[reached]])


def _group_indices(num_images: int, groups: np.ndarray | None) -> tuple[np.ndarray, int]:
    if groups is None:
        return np.arange(num_images), num_images
    ids, image_group = np.unique(groups, return_inverse=True)
    return image_group, len(ids)


def _kish(counts: np.ndarray) -> np.ndarray:
    squares = np.square(counts).sum(1)
    return np.divide(counts.sum(1) ** 2, squares, out=np.zeros(len(counts)), where=squares > 0)


def _sample_variance(samples: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(C,) variance of the draws in `columns` (C,) bool, leaving NaN draws out; NaN elsewhere.
    Draws that are all equal have exactly none, whatever rounding makes of their mean."""
    variance = np.full(samples.shape[1], np.nan)
    chosen = samples[:, columns]
    differ = np.nanmax(chosen, axis=0) > np.nanmin(chosen, axis=0) if chosen.size else False
    variance[columns] = np.where(differ, np.nanvar(chosen, axis=0, ddof=1), 0.0)
    return variance


def _satterthwaite(variances: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """(1,) degrees of freedom of a sum of independent variances, each with its own."""
    if not variances.any():
        return np.ones(1)
    return np.array([variances.sum() ** 2 / (np.square(variances) / freedom).sum()])


def _logit_interval(
    point: np.ndarray, variance: np.ndarray, freedom: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full((2, len(point)), np.nan)
    usable = variance > 0
    estimate = point[usable]
    quantile = stats.t.ppf(0.5 + confidence / 2, freedom[usable])
    margin = quantile * np.sqrt(variance[usable]) / (estimate * (1 - estimate))
    low[usable] = expit(logit(estimate) - margin)
    high[usable] = expit(logit(estimate) + margin)
    return low, high


def wilson_interval(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a share, Wilson's score interval: (low, high), each of the inputs' shape.

    For `successes` of `trials` > 0 independent draws (Wilson 1927, J. Am. Stat. Assoc. 22, 209).
    """
    z = 1.959963984540054  # the normal distribution's 97.5% point
    successes, trials = np.asarray(successes, float), np.asarray(trials, float)
    share, spread = successes / trials, z**2 / trials
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # At a share of 0 or 1 the interval ends there, whatever the rounding.
    return np.clip(center - half, 0, share), np.clip(center + half, share, 1)
