"""Grad-CAM: where in an image the evidence for the predicted class lies.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
ICCV 2017, on the last feature map of DenseNet121 (7 x 7 positions for images of 224 pixels).
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.nn import functional

from dataloaders.dataset import ImageDataset
from networks.models import DenseNet121
from utils.client import net_device
from utils.evaluation_figures import PAGE_WIDTH, STYLE, clipped
from utils.figures import save_figure
from utils.predictions import Predictions

MOST_CLASSES = 6
HEAT_COLORS = "plasma"


class Sample(NamedTuple):
    """An image of the sheet: its row (a class) and pair of columns, its index in the data set."""

    row: int
    mistaken: bool
    index: int


def grad_cam(net: DenseNet121, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Heat maps (B, S, S) in [0, 1] of the evidence for `classes` (B,) in `images` (B, 3, S, S).

    The weight of a feature is the mean gradient of the class's logit over the positions; the map
    is the positive part of the weighted sum, scaled so that each image's largest value is 1 (all
    zeros where nothing speaks for the class). The network must be in eval mode; no gradient
    reaches its parameters.
    """
    with torch.no_grad():
        features = net.feature_map(images).float()  # (B, 1024, h, w)
    features.requires_grad_()
    logits = net.classify(features.mean(dim=(2, 3)))
    evidence = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(evidence, features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = functional.relu((weights * features.detach()).sum(dim=1, keepdim=True))
    heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return functional.interpolate(heat, images.shape[2:], mode="bilinear")[:, 0]


def choose_samples(predictions: Predictions) -> list[Sample]:
    """For each of the most frequent classes (`MOST_CLASSES` at most, in their own order): the image
    that was most confidently classified right and the one most confidently wrong, if any."""
    labels, predicted = predictions.labels, predictions.probabilities.argmax(1)
    confidence = predictions.probabilities.max(1)
    counts = np.bincount(labels, minlength=len(predictions.class_names))
    frequent = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    samples = []
    for row, class_index in enumerate(frequent[counts[frequent] > 0]):
        for mistaken in (False, True):
            found = np.flatnonzero((labels == class_index) & ((predicted != labels) == mistaken))
            if found.size:
                samples.append(Sample(row, mistaken, int(found[confidence[found].argmax()])))
    return samples


def draw_gradcam(
    net: DenseNet121, dataset: ImageDataset, predictions: Predictions, path: Path
) -> None:
    """A sheet of `choose_samples`: each image beside the heat map of its most probable class.

    `predictions` are those of `net` for the images of `dataset`, in its order.
    """
    samples = choose_samples(predictions)
    indices = np.array([sample.index for sample in samples])
    device = net_device(net)
    (images,) = dataset.evaluation_batches(torch.from_numpy(indices), len(indices), device)
    classes = torch.from_numpy(predictions.probabilities[indices].argmax(1)).to(device)
    net.eval()
    heats = grad_cam(net, images, classes).cpu().numpy()
    rows = 1 + max(sample.row for sample in samples)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 2.1 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, 4, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for sample, heat in zip(samples, heats, strict=True):
            pair = panels[sample.row][2 * sample.mistaken :][:2]
            _draw_pair(pair, dataset.picture(sample.index), heat, predictions, sample)
        figure.suptitle("Where the evidence for the class that was said lies (bright: most of it)")
        save_figure(figure, path)


def _draw_pair(
    pair: tuple[Axes, Axes],
    picture: np.ndarray,
    heat: np.ndarray,
    predictions: Predictions,
    sample: Sample,
) -> None:
    probabilities = predictions.probabilities[sample.index]
    names = [clipped(name, 18) for name in predictions.class_names]
    true, said = predictions.labels[sample.index], probabilities.argmax()
    for axes in pair:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    if heat.any():
        pair[1].imshow(heat, cmap=HEAT_COLORS, vmin=0, vmax=1, alpha=0.6 * heat)
    name = clipped(str(predictions.names[sample.index]), 24)
    pair[0].set_title(f"{name}\ntrue: {names[true]} ({probabilities[true]:.2f})", fontsize=7)
    verdict = "wrong" if sample.mistaken else "right"
    without = "" if heat.any() else ", no positive evidence"
    said_line = f"said: {names[said]} ({probabilities[said]:.2f})"
    pair[1].set_title(f"{verdict}{without}\n{said_line}", fontsize=7)
