"""What all figures share: colours, the drawing of one relation matrix, and how a file is made."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from utils.files import atomic_write

# Okabe and Ito's palette: told apart by colour-blind readers, dark enough for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
DOTS_PER_INCH = 150
MATRIX_COLORS = "Blues"
MATRIX_ROWS = ("labelled clients (mean)", "unlabelled clients (mean)", "absolute difference")


def save_figure(figure: Figure, out_png: str | os.PathLike) -> None:
    """Write `figure` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    with atomic_write(Path(out_png)) as file:
        file.write(buffer.getvalue())


def matrix_triple(matrices: Mapping[str, Sequence[Sequence[float]]]) -> list[np.ndarray | None]:
    """`labeled_mean`, `unlabeled_mean` and their absolute difference, None where missing."""
    labeled, unlabeled = (
        None if matrices.get(source) is None else np.asarray(matrices[source], float)
        for source in ("labeled_mean", "unlabeled_mean")
    )
    both = labeled is not None and unlabeled is not None
    return [labeled, unlabeled, np.abs(labeled - unlabeled) if both else None]


def matrix_colors(panels: Sequence[np.ndarray | None]) -> ScalarMappable:
    """One colour scale from 0 to the largest value of all panels."""
    values = [panel[np.isfinite(panel)] for panel in panels if panel is not None]
    highest = max((found.max() for found in values if found.size), default=1.0)
    return ScalarMappable(Normalize(0.0, highest), MATRIX_COLORS)


def draw_matrix(
    axes: Axes,
    matrix: np.ndarray | None,
    class_names: Sequence[str],
    colors: ScalarMappable,
    font_size: float = 9.0,
) -> None:
    """A (C, C) matrix with its values written in the cells; NaN cells stay blank with a dash."""
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
        ink = "white" if value > 0.55 * colors.norm.vmax else "black"
        cell = "–" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, cell, ha="center", va="center", color=ink, fontsize=font_size)
