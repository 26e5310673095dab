"""Pictures of an evaluation, drawn from predictions alone; only the mistakes want the images."""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.metrics.evaluation import Evaluation, confident_mistakes, number
from utils.metrics.intervals import CurveBands, bootstrap_curves, wilson_interval
from utils.metrics.numbers import calibration, operating_points
from utils.metrics.predictions import Predictions
from utils.plots.style import COLORS, GREY, PAGE_WIDTH, label, save_figure, styled

BLUE, ORANGE = COLORS[0], COLORS[1]

ImageLoader = Callable[[int], np.ndarray]


@styled
def draw_all(
    evaluation: Evaluation,
    folder: str | os.PathLike,
    load_image: ImageLoader | None = None,
    with_ids: bool = False,
) -> list[Path]:
    """Draw roc, precision_recall, confusion, reliability and, given images, mistakes as PNG files.

    `with_ids` names the patients of the mistakes. `load_image(index)` gives image `index` of the
    predictions as uint8 (H, W) or (H, W, 3).
    Returns the paths, in that order.
    """
    predictions, metrics = evaluation.predictions, evaluation.metrics
    bands = [
        bootstrap_curves(
            predictions.labels == c, predictions.probabilities[:, c], predictions.groups
        )
        for c in range(len(predictions.class_names))
    ]
    figures = {
        "roc": roc_figure(evaluation, bands),
        "precision_recall": precision_recall_figure(evaluation, bands),
        "confusion": confusion_figure(metrics.confusion, predictions.class_names),
        "reliability": reliability_figure(predictions),
    }
    if load_image is not None and len(confident_mistakes(predictions)):
        figures["mistakes"] = mistakes_figure(predictions, load_image, with_ids)
    paths = [Path(folder) / f"{name}.png" for name in figures]
    for figure, path in zip(figures.values(), paths, strict=True):
        save_figure(figure, path)
    return paths


def roc_figure(evaluation: Evaluation, bands: list[CurveBands]) -> Figure:
    """One panel per class: ROC curve, its band, and where the threshold puts the classifier."""
    predictions, metrics, intervals, _ = evaluation
    figure, panels = _panels(len(bands), "1 - specificity", "sensitivity")
    for c, axes in enumerate(panels):
        low, high = intervals.low[c], intervals.high[c]
        interval = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        _title(axes, evaluation, c, f"AUROC {_short(metrics.auroc[c])}{interval}")
        if np.isnan(metrics.auroc[c]):
            _say_undefined(axes)
            continue
        true_positive, false_positive, _ = operating_points(
            predictions.labels == c, predictions.probabilities[:, c]
        )
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="chance")
        axes.fill_between(
            bands[c].grid, bands[c].roc_low, bands[c].roc_high, **_band_look(predictions)
        )
        axes.plot(
            np.r_[0, false_positive / false_positive[-1]],
            np.r_[0, true_positive / true_positive[-1]],
            color=BLUE,
            label="ROC curve",
        )
        axes.plot(1 - metrics.specificity[c], metrics.sensitivity[c], **_threshold_look())
    _shared_legend(figure, panels)
    return figure


def precision_recall_figure(evaluation: Evaluation, bands: list[CurveBands]) -> Figure:
    """One panel per class: precision at each sensitivity, with the share of positives as floor."""
    predictions, metrics = evaluation.predictions, evaluation.metrics
    figure, panels = _panels(len(bands), "sensitivity (recall)", "precision")
    for c, axes in enumerate(panels):
        average = metrics.average_precision[c]
        _title(axes, evaluation, c, f"average precision {_short(average)}")
        if np.isnan(average):
            _say_undefined(axes)
            continue
        true_positive, false_positive, _ = operating_points(
            predictions.labels == c, predictions.probabilities[:, c]
        )
        axes.axhline(
            metrics.images[c] / len(predictions.labels),
            color=GREY,
            linestyle=":",
            label="share of the class",
        )
        axes.fill_between(
            bands[c].grid,
            bands[c].precision_low,
            bands[c].precision_high,
            **_band_look(predictions),
        )
        precision = true_positive / (true_positive + false_positive)
        axes.plot(
            np.r_[0, true_positive / true_positive[-1]],
            np.r_[precision[0], precision],
            drawstyle="steps-pre",
            color=BLUE,
            label="precision-recall curve",
        )
        axes.plot(metrics.sensitivity[c], metrics.precision[c], **_threshold_look())
    _shared_legend(figure, panels)
    return figure


def confusion_figure(confusion: np.ndarray, class_names: list[str]) -> Figure:
    """Counts (C, C), and by colour the share of each true class."""
    num_classes = len(class_names)
    totals = confusion.sum(1, keepdims=True)
    share = 100 * confusion / np.maximum(totals, 1)
    size = min(PAGE_WIDTH, 2.2 + 0.62 * num_classes)
    figure = Figure(figsize=(size, 0.86 * size), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    text_size = 8 if num_classes <= 8 else 6
    for row, column in np.ndindex(num_classes, num_classes):
        axes.text(
            column,
            row,
            f"{confusion[row, column]}\n{share[row, column]:.0f}%",
            ha="center",
            va="center",
            fontsize=text_size,
            color="white" if share[row, column] > 55 else "black",
        )
    names = [label(name) for name in class_names]
    axes.set_xticks(range(num_classes), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(num_classes), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("most probable class")
    axes.set_ylabel("true class")
    axes.set_title(f"Images, and share of the true class ({confusion.sum()} images)")
    figure.colorbar(picture, label="share of the true class (%)", shrink=0.8)
    return figure


def reliability_figure(predictions: Predictions) -> Figure:
    """Top: how often the most probable class is right, by its probability. Below: images a bin."""
    result = calibration(predictions.labels, predictions.probabilities)
    filled = result.images > 0
    edges = np.linspace(0, 1, len(result.images) + 1)
    figure = Figure(figsize=(3.6, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    accuracy, images = result.accuracy[filled], result.images[filled]
    low, high = wilson_interval(accuracy * images, images)
    upper.errorbar(
        result.confidence[filled],
        accuracy,
        yerr=[accuracy - low, high - accuracy],
        fmt="o-",
        color=BLUE,
        markersize=4,
        elinewidth=0.8,
        capsize=2,
        label="mean of a bin, 95% (Wilson)",
    )
    upper.set(ylim=(0, 1.02), ylabel="share that is right")
    upper.set_title(
        f"Most probable class, {len(predictions.labels)} images\n"
        f"expected calibration error {number(result.expected_error)}"
    )
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    lower.stairs(result.images, edges, fill=True, color=BLUE, alpha=0.5)
    lower.set(xlim=(0, 1), xlabel="probability of the most probable class", ylabel="images")
    return figure


def mistakes_figure(
    predictions: Predictions, load_image: ImageLoader, with_ids: bool = False
) -> Figure:
    """The images of `confident_mistakes` with names (and patients), true and predicted classes."""
    mistakes = confident_mistakes(predictions)
    columns = min(4, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(PAGE_WIDTH * columns / 4, 2.45 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    names = predictions.class_names
    figure.suptitle(
        "The most confident mistakes (in brackets: the class's probability)", fontsize=8
    )
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, mistakes, strict=False):
        picture = load_image(int(index))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        probabilities = predictions.probabilities[index]
        true, predicted = predictions.labels[index], probabilities.argmax()
        caption = [label(str(predictions.names[index]), 28)]
        if with_ids and predictions.groups is not None:
            caption.append(label(f"{predictions.group_column} {predictions.groups[index]}", 28))
        caption.append(f"true: {label(names[true], 18)} ({probabilities[true]:.2f})")
        caption.append(f"said: {label(names[predicted], 18)} ({probabilities[predicted]:.2f})")
        axes.set_title("\n".join(caption), fontsize=7)
    return figure


def _panels(count: int, x_label: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """`count` panels over the unit square, three to a page's width."""
    columns = min(count, 3)
    rows = -(-count // columns)
    width = PAGE_WIDTH * columns / 3
    figure = Figure(figsize=(width, 2.75 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    ticks = np.linspace(0, 1, 6)
    for index, axes in enumerate(panels[:count]):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label if index % columns == 0 else "")
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _title(axes: Axes, evaluation: Evaluation, index: int, line: str) -> None:
    name = label(evaluation.predictions.class_names[index], 60)
    images = f"{evaluation.metrics.images[index]} images"
    axes.set_title(f"{textwrap.fill(f'{name}, {images}', 34)}\n{line}")


def _say_undefined(axes: Axes) -> None:
    axes.text(0.5, 0.5, "undefined:\none of the two\nsides has no image", ha="center", va="center")


def _band_look(predictions: Predictions) -> dict:
    drawn = "images" if predictions.groups is None else predictions.group_noun
    legend = f"95% band, pointwise, from drawing {drawn}"
    return {"color": BLUE, "alpha": 0.22, "linewidth": 0, "label": legend}


def _threshold_look() -> dict:
    return {
        "marker": "o",
        "color": ORANGE,
        "markersize": 4,
        "linestyle": "none",
        "label": "at the threshold",
    }


def _shared_legend(figure: Figure, panels: list[Axes]) -> None:
    entries = {}
    for axes in panels:
        for handle, legend in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(legend, handle)
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=2)


def _short(value: float) -> str:
    return "NA" if np.isnan(value) else f"{value:.3f}"
