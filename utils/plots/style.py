"""What all figures share: how they look, the drawing of one relation matrix, how a file is made.

Every function that draws is decorated with `styled`. Names come from users: `label` makes them fit
for a figure, and no figure parses formulas.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from utils.files import atomic_write
from utils.text import printable

# Okabe and Ito's palette: told apart by colour-blind readers, dark enough for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
GREY = "#6E6E6E"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
}
PAGE_WIDTH = 7.0  # inches: a page of A4 or letter within its margins
LONGEST_NAME = 24

styled = matplotlib.rc_context(STYLE)

MATRIX_COLORS = "Blues"
MATRIX_ROWS = ("labelled clients (mean)", "unlabelled clients (mean)", "absolute difference")


def save_figure(figure: Figure, out_png: str | os.PathLike) -> None:
    """Write `figure` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
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


def label(text: object, length: int = LONGEST_NAME) -> str:
    """A user's text as it stands in a figure: on one line, its middle left out where it is longer
    than `length`: names that differ late stay different."""
    text = printable(str(text))
    if len(text) <= length:
        return text
    ends = length - 1 - (length - 1) // 2
    return f"{text[:ends]}\u2026{text[ends + 1 - length :]}"


def matrix_page(class_names: Sequence[str], rows: int, columns: int) -> tuple[float, float]:
    """Inches, width and height, of a grid of (C, C) matrices in which every cell can be read; the
    names stand at the left of the grid, and slanted below each column."""
    side = max(1.7, 0.27 * len(class_names))
    reach = 0.07 * max(len(label(name)) for name in class_names)
    return columns * (side + 0.5 * reach) + reach + 1.8, rows * (side + 0.2) + 0.7 * reach + 0.9


def draw_matrix(
    axes: Axes,
    matrix: np.ndarray | None,
    class_names: Sequence[str],
    colors: ScalarMappable,
    missing: str = "no matrix this round",
) -> None:
    """A (C, C) matrix with its values written in the cells; NaN cells stay blank with a dash.
    Without a matrix, an empty panel that says `missing`."""
    ticks = np.arange(len(class_names))
    names = [label(name) for name in class_names]
    axes.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set(xlim=(-0.5, len(ticks) - 0.5), ylim=(len(ticks) - 0.5, -0.5), box_aspect=1)
    if matrix is None:
        center = (len(ticks) - 1) / 2
        axes.text(center, center, missing, ha="center", va="center", color=GREY)
        return
    axes.imshow(matrix, cmap=colors.get_cmap(), norm=colors.norm, aspect="auto")
    size = 7 if len(ticks) <= 7 else 5.5
    for (row, column), value in np.ndenumerate(matrix):
        ink = "white" if value > 0.55 * colors.norm.vmax else "black"
        cell = "–" if np.isnan(value) else f"{value:.2f}"
        if len(ticks) > 7:  # narrow cells
            cell = cell.removeprefix("0")
        axes.text(column, row, cell, ha="center", va="center", color=ink, fontsize=size)


@styled
def matrix_picture(matrix: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """`draw_matrix` of one (C, C) matrix as pixels, uint8 (H, W, 3)."""
    side = 1.6 + 0.55 * len(class_names)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    draw_matrix(figure.subplots(), matrix, class_names, matrix_colors([matrix]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
