"""Figures from CSV files: a run's curves and relation matrices, and comparisons of runs.

`python -m utils.plots runs/A` rebuilds the run's figures/curves.png and figures/relation.png;
`python -m utils.plots runs/A runs/B` compares runs, with the seeds' spread.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import atomic_write
from utils.run_folder import read_metrics

# Okabe and Ito's palette: told apart by colour-blind readers, dark enough for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
FEW_ROUNDS = 25
MATRIX_COLORS = "Blues"

# panel title, y label, {column of metrics.csv: legend}, y range
CURVES = (
    (
        "Training loss",
        "loss",
        {"loss": "mean of clients", "supervised_loss": "cross entropy"},
        None,
    ),
    (
        "Terms of the unlabelled clients' loss",
        "loss",
        {"consistency_loss": "consistency", "relation_loss": "relation"},
        None,
    ),
    ("AUROC", "AUROC", {"test_auroc": "test", "val_auroc": "validation"}, None),
    (
        "Pseudo labels and ramp-up",
        "share or weight",
        {"reliable_share": "reliable share", "consistency_weight": "ramp-up weight"},
        (-0.03, 1.03),
    ),
    ("Learning rate", "learning rate", {"learning_rate": "base"}, (0, None)),
    (
        "Time per client",
        "seconds",
        {"seconds_labeled": "labelled", "seconds_unlabeled": "unlabelled"},
        (0, None),
    ),
)


def draw_curves(metrics_csv: str | os.PathLike, out_png: str | os.PathLike) -> None:
    """Losses, AUROC, reliable share, learning rate and seconds against the round.

    A column that is missing or empty is left out; a panel without any says so.
    """
    metrics = read_metrics(metrics_csv)
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        _draw_panel(axes, metrics, *panel)
    _save(figure, out_png)


def _draw_panel(
    axes: Axes,
    metrics: pd.DataFrame,
    title: str,
    label: str,
    columns: Mapping[str, str],
    limits: tuple[float, float | None] | None,
) -> None:
    axes.set(title=title, xlabel="round", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    marker = "o" if len(metrics) <= FEW_ROUNDS else None
    drawn = 0
    for (column, legend), color, style in zip(columns.items(), COLORS, LINE_STYLES, strict=False):
        points = metrics[["round", column]].dropna() if column in metrics else metrics.head(0)
        if points.empty:
            continue
        axes.plot("round", column, data=points, label=legend, color=color, ls=style, marker=marker)
        drawn += 1
    if not drawn:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes, color="0.4")
        return
    if len(columns) > 1:
        axes.legend(frameon=False)
    axes.set_xlim(metrics["round"].min() - 0.5, metrics["round"].max() + 0.5)
    if limits:
        low, high = limits
        axes.set_ylim(low, 1.08 * axes.dataLim.ymax if high is None else high)


def draw_relation(
    matrices: Mapping[str, Sequence[Sequence[float]]],
    class_names: Sequence[str],
    out_png: str | os.PathLike,
) -> None:
    """The mean matrices of labelled and unlabelled clients and their absolute difference.

    `matrices` has `labeled_mean` and `unlabeled_mean`, each C x C with rows that sum to 1; one
    that is missing or None is drawn as an empty panel. The three share one colour scale.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    _relation_row(figure, figure.subplots(1, 3, sharey=True), matrices, class_names)
    _save(figure, out_png)


def _relation_row(
    figure: Figure, row: Sequence[Axes], matrices: Mapping, class_names: Sequence[str]
) -> None:
    labeled, unlabeled = (
        None if matrices.get(source) is None else np.asarray(matrices[source], float)
        for source in ("labeled_mean", "unlabeled_mean")
    )
    difference = None if labeled is None or unlabeled is None else np.abs(labeled - unlabeled)
    panels = (labeled, unlabeled, difference)
    highest = max((np.nanmax(panel) for panel in panels if panel is not None), default=1.0)
    colors = ScalarMappable(Normalize(0.0, highest), MATRIX_COLORS)
    titles = ("labelled clients (mean)", "unlabelled clients (mean)", "absolute difference")
    for axes, panel, title in zip(row, panels, titles, strict=True):
        axes.set_title(title)
        _draw_matrix(axes, panel, class_names, colors)
    row[0].set_ylabel("class of the samples")
    figure.colorbar(colors, ax=list(row), label="probability", shrink=0.75)


def _draw_matrix(
    axes: Axes, matrix: np.ndarray | None, class_names: Sequence[str], colors: ScalarMappable
) -> None:
    ticks = np.arange(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, class_names)
    axes.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(len(ticks) - 0.5, -0.5), box_aspect=1)
    if matrix is None:
        center = (len(ticks) - 1) / 2
        axes.text(center, center, "no matrix this round", ha="center", va="center", color="0.4")
        return
    axes.imshow(matrix, cmap=colors.get_cmap(), norm=colors.norm, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        ink = "white" if colors.norm(value) > 0.55 else "black"
        size = 9 if len(ticks) <= 7 else 6
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=size)


def _save(figure: Figure, out_png: str | os.PathLike) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    with atomic_write(Path(out_png)) as file:
        file.write(buffer.getvalue())
