"""How often the intervals of utils/metrics/intervals.py hold the true AUROC.

Simulated test sets: patients with a few slices each (1 + a gamma-mixed Poisson number, mean 5), one
prevailing class per patient in the proportions of the RSNA haemorrhage list, and scores that share
a random effect within a patient. The truth is the AUROC of a population of 200,000 such patients.
Three intervals from the same scores: the one of utils/metrics/intervals.py by patient, plain
percentiles of the same draws, and that one in ignorance of the patients.

    python -m benchmarks.bootstrap_coverage --out coverage.png
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.errors import run_command
from utils.files import atomic_write
from utils.metrics.intervals import AurocIntervals, auroc_draws, bootstrap_auroc
from utils.table_files import to_markdown

CLASS_NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
PROPORTIONS = np.array([1497, 13932, 8914, 14717, 28909]) / 67969  # SOURCES: stage-1 counts
POPULATION_PATIENTS = 200_000
METHODS = ("this project", "percentiles of the same draws", "images drawn, not patients")
COLOURS = ("#0072B2", "#E69F00", "#D55E00")


def simulate(
    num_patients: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(labels (N,), probabilities (N, 5), patient of each image (N,))."""
    num_classes = len(PROPORTIONS)
    slices = 1 + generator.poisson(generator.gamma(1.5, 4 / 1.5, num_patients))
    patients = np.repeat(np.arange(num_patients), slices)
    prevailing = generator.choice(num_classes, num_patients, p=PROPORTIONS)[patients]
    other = generator.choice(num_classes, len(patients), p=PROPORTIONS)
    labels = np.where(generator.random(len(patients)) < 0.85, prevailing, other)
    scores = generator.normal(size=(len(patients), num_classes))
    scores += 0.8 * generator.normal(size=(num_patients, num_classes))[patients]
    scores[np.arange(len(patients)), labels] += 1.5
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    return labels, probabilities / probabilities.sum(1, keepdims=True), patients


def coverage(num_sets: int, num_patients: int, draws: int, seed: int) -> np.ndarray:
    """(methods, sets, classes + macro) of 1 (holds the truth), 0 and NaN (no interval)."""
    population = simulate(POPULATION_PATIENTS, np.random.default_rng(seed))
    truth = auroc_draws(*population[:2], None, draws=1)[0]
    truth = np.append(truth, truth.mean())
    holds = np.empty((len(METHODS), num_sets, len(truth)))
    for index in range(num_sets):
        generator = np.random.default_rng((seed, index))
        labels, probabilities, patients = simulate(num_patients, generator)
        samples = auroc_draws(labels, probabilities, patients, draws, index)[1]
        samples = np.column_stack([samples, samples.mean(1)])
        bounds = [
            _bounds(bootstrap_auroc(labels, probabilities, patients, draws, index)),
            _percentiles(samples),
            _bounds(bootstrap_auroc(labels, probabilities, None, draws, index)),
        ]
        for method, (low, high) in enumerate(bounds):
            inside = (low <= truth) & (truth <= high)
            holds[method, index] = np.where(np.isnan(low), np.nan, inside)
    return holds


def draw_figure(shares: np.ndarray, num_sets: int, num_patients: int) -> Figure:
    """`shares` (methods, classes + macro) with two standard errors of a proportion."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(93, 97, color="0.9", label="93% to 97%")
    axes.axhline(95, color="0.5", linewidth=0.8)
    positions = np.arange(shares.shape[1])
    for method, share in enumerate(shares):
        error = 200 * np.sqrt(share * (1 - share) / num_sets)
        axes.errorbar(
            positions + (method - 1) * 0.18,
            100 * share,
            error,
            fmt="os^"[method],
            color=COLOURS[method],
            label=METHODS[method],
        )
    axes.set_xticks(positions, [*CLASS_NAMES, "macro"], rotation=15)
    axes.set_ylabel("intervals that hold the truth (%)")
    axes.set_title(f"95% intervals of the AUROC, {num_sets} sets of {num_patients} patients")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def main() -> None:
    """Simulate, print the coverage of each method, and draw it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--patients", type=int, default=400, help="in each set")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="PNG file for the figure")
    args = parser.parse_args()
    begin = time.perf_counter()
    holds = coverage(args.sets, args.patients, args.draws, args.seed)
    shares = np.nanmean(holds, axis=1)
    rows = [
        [name, *(f"{100 * value:.1f}%" for value in [*share, np.nanmean(each[:, :-1])])]
        for name, share, each in zip(METHODS, shares, holds, strict=True)
    ]
    print(to_markdown(["interval", *CLASS_NAMES, "macro", "all classes pooled"], rows), end="")
    without = np.isnan(holds[0]).sum(0)
    print(f"sets without an interval, by class and macro: {', '.join(map(str, without))}")
    seconds = time.perf_counter() - begin
    print(f"{args.sets} sets of {args.patients} patients, {args.draws} draws: {seconds:.0f} s")
    if args.out:
        with atomic_write(args.out) as file:
            draw_figure(shares, args.sets, args.patients).savefig(file, format="png", dpi=150)
        print(f"figure: {args.out}")


def _percentiles(samples: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        # a set without some class has no draws of it, and no interval
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanpercentile(samples, [2.5, 97.5], axis=0)


def _bounds(intervals: AurocIntervals) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.append(intervals.low, intervals.macro_low),
        np.append(intervals.high, intervals.macro_high),
    )


if __name__ == "__main__":
    run_command(main)
