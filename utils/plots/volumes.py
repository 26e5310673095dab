"""Figures of segmented volumes: slices with contours, and Dice by structure and site."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.metrics.volumes import VolumeScores
from utils.plots.style import COLORS, GREY, label, save_figure, styled

SLICES = (0.25, 0.5, 0.75)  # where along the structures
MARKERS = "osD^vP*X"


class VolumePicture(NamedTuple):
    """A volume to be shown. image: (X, Y, Z); label, predicted: class numbers of its voxels.
    spacing: mm of a voxel's sides."""

    title: str
    image: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, float, float]


@styled
def draw_slices(
    pictures: Sequence[VolumePicture], class_names: Sequence[str], out_png: Path
) -> None:
    """A row of slices across y for each volume, with the contours of label and prediction."""
    figure = Figure(figsize=(3 * len(SLICES) + 1, 3 * len(pictures) + 0.6), layout="constrained")
    axes = figure.subplots(len(pictures), len(SLICES), squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        for place, at in zip(row, slice_places(picture.label | picture.predicted), strict=True):
            _draw_slice(place, picture, at, len(class_names))
        row[0].set_ylabel(label(picture.title, 40))
    handles = [
        Line2D([], [], color=COLORS[at % len(COLORS)], label=label(name))
        for at, name in enumerate(class_names)
    ]
    handles += [
        Line2D([], [], color=GREY, label="label", linestyle="-"),
        Line2D([], [], color=GREY, label="prediction", linestyle="--"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    save_figure(figure, out_png)


def slice_places(structures: np.ndarray) -> list[int]:
    """Numbers of slices along y through what is not 0, or through the whole where all is."""
    found = np.flatnonzero(structures.any(axis=(0, 2)))
    low, high = (found[0], found[-1]) if len(found) else (0, structures.shape[1] - 1)
    return [int(round(low + share * (high - low))) for share in SLICES]


def _draw_slice(axes: Axes, picture: VolumePicture, at: int, structures: int) -> None:
    image = picture.image[:, at].T
    aspect = picture.spacing[2] / picture.spacing[0]
    axes.imshow(
        image,
        cmap="gray",
        origin="lower",
        aspect=aspect,
        vmin=np.percentile(picture.image, 1),
        vmax=np.percentile(picture.image, 99.5),
    )
    for classes, style in ((picture.label, "solid"), (picture.predicted, "dashed")):
        for structure in range(1, structures + 1):
            mask = structure == classes[:, at].T
            if mask.any() and not mask.all():
                color = COLORS[(structure - 1) % len(COLORS)]
                axes.contour(mask, [0.5], colors=[color], linestyles=style, linewidths=1.3)
    axes.set_title(f"slice {at}")
    axes.set(xticks=[], yticks=[])


@styled
def draw_scores(scores: VolumeScores, out_png: Path) -> None:
    """Dice of every volume: a column of points for each structure, its points by site."""
    sites = sorted(set(scores.sites)) if scores.sites else ["all volumes"]
    of_volume = np.array(scores.sites or sites * len(scores.names))
    figure = Figure(figsize=(2.2 + 2 * len(scores.class_names), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(sites)
    for number, site in enumerate(sites):
        values = scores.values["dice"][of_volume == site]
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        for at in range(len(scores.class_names)):
            known = values[:, at][~np.isnan(values[:, at])]
            center = at + (number - (len(sites) - 1) / 2) * width
            # Side by side in the order of the volumes, so that equal scores do not hide each other.
            spread = np.linspace(-0.35, 0.35, len(known)) * width if len(known) > 1 else 0.0
            legend = f"{label(site)} ({len(values)})" if at == 0 else None
            axes.plot(center + spread, known, marker, color=color, alpha=0.5, ms=4, label=legend)
            if len(known):
                axes.hlines(known.mean(), center - 0.4 * width, center + 0.4 * width, color=color)
    axes.set_xticks(range(len(scores.class_names)), [label(name) for name in scores.class_names])
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
    axes.grid(axis="y", alpha=0.3)
    title = "site (volumes)" if scores.sites else None
    figure.legend(title=title, loc="outside lower center", ncols=2)
    save_figure(figure, out_png)
