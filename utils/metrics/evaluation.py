"""From a predictions file to the tables that test.py prints and writes."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.metrics.intervals import AurocIntervals, bootstrap_auroc
from utils.metrics.numbers import (
    DEFAULT_THRESHOLD,
    OVERALL,
    PER_CLASS,
    Metrics,
    classification_metrics,
    sweep,
    youden_thresholds,
)
from utils.metrics.predictions import Predictions
from utils.metrics.shares import SHARES, share_intervals
from utils.table_files import NOT_AVAILABLE, write_table

YOUDEN = "youden"
MISTAKES = 12
SHARE_TITLES = {"precision": "PPV"}  # positive predictive value, beside the negative one


class Evaluation(NamedTuple):
    """Everything that tables, figures and report say about one set of predictions."""

    predictions: Predictions
    metrics: Metrics
    intervals: AurocIntervals
    threshold_rule: str  # in words, for the reader


class Table(NamedTuple):
    """A titled table of text cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


def evaluate(
    predictions: Predictions,
    threshold: str | float = DEFAULT_THRESHOLD,
    validation: Predictions | None = None,
) -> Evaluation:
    """Metrics and intervals of `predictions` at `threshold`: a number in [0, 1], or "youden" for
    each class's own, chosen on `validation`. `UserError` where that cannot be done."""
    if threshold == YOUDEN:
        if validation is None:
            raise UserError(
                "--threshold youden: is chosen on validation data; give --csv_file_val to test.py "
                "or --predictions_val to utils.metrics"
            )
        if tuple(validation.class_names) != tuple(predictions.class_names):
            raise UserError(
                f"--threshold youden: the validation classes ({', '.join(validation.class_names)}) "
                f"are not those of the test set ({', '.join(predictions.class_names)}); use one "
                "checkpoint for both"
            )
        thresholds = youden_thresholds(validation.labels, validation.probabilities)
        rule = f"Youden's J per class, chosen on {len(validation.labels)} validation images"
    else:
        thresholds = threshold_number(threshold)
        rule = f"{thresholds:g} for every class, fixed beforehand"
    labels, probabilities = predictions.labels, predictions.probabilities
    return Evaluation(
        predictions,
        classification_metrics(labels, probabilities, thresholds),
        bootstrap_auroc(labels, probabilities, predictions.groups),
        rule,
    )


def evaluation_tables(
    evaluation: Evaluation, with_sweep: bool = False, with_ids: bool = False
) -> dict[str, Table]:
    """File stem -> table: per_class, operating_point, overall, confusion, sites where the images
    have some, mistakes (`with_ids` with their patients) and, if asked for, threshold_sweep."""
    tables = {
        "per_class": _per_class_table(evaluation),
        "operating_point": _operating_table(evaluation),
        "overall": _overall_table(evaluation),
        "confusion": _confusion_table(evaluation),
    }
    if evaluation.predictions.sites is not None:
        tables["sites"] = _sites_table(evaluation)
    tables["mistakes"] = _mistakes_table(evaluation.predictions, with_ids)
    if with_sweep:
        tables["threshold_sweep"] = _sweep_table(evaluation.predictions)
    return tables


def confident_mistakes(predictions: Predictions, count: int = MISTAKES) -> np.ndarray:
    """Indices of the wrongly classified images, the most confidently wrong first."""
    predicted = predictions.probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    confidence = predictions.probabilities[wrong, predicted[wrong]]
    return wrong[np.argsort(-confidence, kind="stable")][:count]


def number(value: float) -> str:
    """`value` with three decimals, or NA."""
    return NOT_AVAILABLE if np.isnan(value) else f"{value:.3f}"


def interval(low: float, high: float) -> str:
    """`[low, high]` with three decimals, or NA."""
    return NOT_AVAILABLE if np.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def _per_class_table(evaluation: Evaluation) -> Table:
    predictions, metrics, intervals, _ = evaluation
    columns = {"class": [*predictions.class_names, "macro", "classes in macro"]}
    columns["images"] = [*map(str, metrics.images), str(metrics.images.sum()), ""]
    if predictions.groups is not None:
        groups = [
            np.unique(predictions.groups[predictions.labels == c]).size
            for c in range(len(predictions.class_names))
        ]
        total = np.unique(predictions.groups).size
        columns[predictions.group_noun] = [*map(str, groups), str(total), ""]
    for field, title in PER_CLASS.items():
        values = [number(value) for value in getattr(metrics, field)]
        columns[title] = [*values, number(metrics.macro(field)), str(metrics.defined(field))]
        if field == "auroc":
            bounds = [*zip(intervals.low, intervals.high, strict=True)]
            bounds.append((intervals.macro_low, intervals.macro_high))
            columns["95% interval"] = [*(interval(*pair) for pair in bounds), ""]
            draws = [*intervals.used_draws, intervals.macro_used_draws]
            columns["draws"] = [*map(str, draws), ""]
        if field == "average_precision":
            columns["threshold"] = [*map(number, metrics.thresholds), "", ""]
    title = f"Per class, one against the rest; threshold: {evaluation.threshold_rule}"
    return Table(title, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _operating_table(evaluation: Evaluation) -> Table:
    predictions, metrics = evaluation.predictions, evaluation.metrics
    found = share_intervals(
        predictions.labels,
        predictions.probabilities,
        metrics.thresholds,
        predictions.groups,
        predictions.group_noun,
    )
    columns = {"class": list(predictions.class_names), "images": [*map(str, metrics.images)]}
    for field in SHARES:
        title = SHARE_TITLES.get(field, PER_CLASS[field])
        bounds = zip(found.low[field], found.high[field], strict=True)
        columns[title] = [number(value) for value in getattr(metrics, field)]
        columns[f"{title} 95%"] = [interval(*pair) for pair in bounds]
    title = f"At the threshold, one class against the rest; 95% intervals: {found.method}"
    return Table(title, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _sites_table(evaluation: Evaluation) -> Table:
    predictions = evaluation.predictions
    fields = ("auroc", "sensitivity", "specificity", "f1")
    rows = []
    for site in np.unique(predictions.sites):
        of_site = predictions.sites == site
        found = classification_metrics(
            predictions.labels[of_site],
            predictions.probabilities[of_site],
            evaluation.metrics.thresholds,
        )
        means = [number(found.macro(field)) for field in fields]
        rows.append([str(site), str(of_site.sum()), number(found.top1_accuracy), *means])
    header = ["site", "images", "top-1 accuracy", *(PER_CLASS[field] for field in fields)]
    return Table("By site: means over the classes that it has", header, rows)


def _overall_table(evaluation: Evaluation) -> Table:
    rows = [[title, number(getattr(evaluation.metrics, name))] for name, title in OVERALL.items()]
    return Table("Over all classes, by the most probable class", ["metric", "value"], rows)


def _confusion_table(evaluation: Evaluation) -> Table:
    names = evaluation.predictions.class_names
    rows = [
        [name, *map(str, counts)]
        for name, counts in zip(names, evaluation.metrics.confusion, strict=True)
    ]
    title = "Confusion matrix: images by true class (row) and most probable class (column)"
    return Table(title, ["true class", *names], rows)


def _mistakes_table(predictions: Predictions, with_ids: bool) -> Table:
    mistakes = confident_mistakes(predictions)
    probabilities, names = predictions.probabilities[mistakes], predictions.class_names
    true, predicted = predictions.labels[mistakes], probabilities.argmax(1)
    rows = np.arange(len(mistakes))
    columns = {"ImageID": [str(predictions.names[index]) for index in mistakes]}
    if with_ids and predictions.groups is not None:
        columns[predictions.group_column] = [str(predictions.groups[index]) for index in mistakes]
    columns["true class"] = [names[label] for label in true]
    columns["its probability"] = [number(value) for value in probabilities[rows, true]]
    columns["predicted class"] = [names[label] for label in predicted]
    columns["probability"] = [number(value) for value in probabilities[rows, predicted]]
    title = f"The {len(mistakes)} most confident mistakes of the most probable class"
    return Table(title, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def _sweep_table(predictions: Predictions) -> Table:
    fields = ["sensitivity", "specificity", "precision", "f1", "one_vs_rest_accuracy"]
    rows = [
        [f"{threshold:.2f}", *(number(metrics.macro(field)) for field in fields)]
        + [str(metrics.defined("precision"))]
        for threshold, metrics in sweep(predictions.labels, predictions.probabilities)
    ]
    header = ["threshold", *(PER_CLASS[field] for field in fields), "classes with a precision"]
    title = "Macro averages by threshold, on the test set itself: choosing among them is optimistic"
    return Table(title, header, rows)


def print_tables(tables: dict[str, Table]) -> None:
    """Print every table with its title, columns aligned."""
    for title, header, rows in tables.values():
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        print(f"\n{title}")
        for row in [header, *rows]:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def write_tables(tables: dict[str, Table], folder: str | os.PathLike) -> None:
    """Write every table to `folder` as CSV, Markdown and LaTeX."""
    for stem, table in tables.items():
        write_table(Path(folder) / stem, table.header, table.rows)


def threshold_number(threshold: str | float) -> float:
    """The threshold as a number from 0 to 1; `UserError` where it is none."""
    try:
        value = float(threshold)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"--threshold {threshold}: must be a number from 0 to 1, or {YOUDEN}")
    return value
