"""Grad-CAM: where in an image the evidence for the predicted class lies.

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
ICCV 2017, on the last feature map of the network (7 x 7 positions for images of 224 pixels).
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional

from dataloaders.augment import normalize
from dataloaders.dataset import ImageDataset
from networks.models import ImageClassifier
from predict.files import Slice
from utils.files import atomic_write
from utils.metrics.predictions import Predictions
from utils.plots.style import PAGE_WIDTH, label, save_figure, styled
from utils.tensors import net_device

MOST_CLASSES = 6
HALVED = 32  # pixels of an image for one position of the last feature map
LEAST_POSITIONS = 4
HEAT_COLOR, HEAT_OPACITY = (1.0, 0.75, 0.0), 0.65


def grad_cam(net: ImageClassifier, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Heat maps (B, S, S) in [0, 1] of the evidence for `classes` (B,) in `images` (B, 3, S, S).

    The weight of a feature is the mean gradient of the class's logit over the positions; the map
    is the positive part of the weighted sum, scaled so that each image's largest value is 1 (all
    zeros where nothing speaks for the class). The network must be in eval mode; no gradient
    reaches its parameters.
    """
    with torch.no_grad():
        features = net.feature_map(images).float()  # (B, F, h, w)
    features.requires_grad_()
    logits = net.classify(features.mean(dim=(2, 3)))
    evidence = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(evidence, features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = functional.relu((weights * features.detach()).sum(dim=1, keepdim=True))
    heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return functional.interpolate(heat, images.shape[2:], mode="bilinear")[:, 0]


def choose_samples(predictions: Predictions) -> np.ndarray:
    """Indices of images to show: for each of the most frequent classes (`MOST_CLASSES` at most, in
    their own order) the one most confidently classified right and the one most confidently wrong,
    where there are such."""
    labels, predicted = predictions.labels, predictions.probabilities.argmax(1)
    confidence = predictions.probabilities.max(1)
    counts = np.bincount(labels, minlength=len(predictions.class_names))
    frequent = np.sort(np.argsort(-counts, kind="stable")[:MOST_CLASSES])
    samples = []
    for class_index in frequent:
        for mistaken in (False, True):
            found = np.flatnonzero((labels == class_index) & ((predicted != labels) == mistaken))
            if found.size:
                samples.append(found[confidence[found].argmax()])
    return np.array(samples)


@styled
def draw_gradcam(
    net: ImageClassifier, dataset: ImageDataset, predictions: Predictions, path: Path
) -> None:
    """A sheet of `choose_samples`: each image beside the heat map of its most probable class.

    `predictions` are those of `net` for the images of `dataset`, in its order. Nothing is drawn of
    images so small that the map would have fewer than `LEAST_POSITIONS` a side: it would point at
    quarters of the head.
    """
    positions = dataset.image_size // HALVED
    if positions < LEAST_POSITIONS:
        return
    indices = choose_samples(predictions)
    device = net_device(net)
    (images,) = dataset.evaluation_batches(torch.from_numpy(indices), len(indices), device)
    classes = torch.from_numpy(predictions.probabilities[indices].argmax(1)).to(device)
    net.eval()
    heats = grad_cam(net, images, classes).cpu().numpy()
    rows = -(-len(indices) // 2)
    figure = Figure(figsize=(PAGE_WIDTH, 2.05 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, 4, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for pair, index, heat in zip(panels.reshape(-1, 2), indices, heats, strict=False):
        _draw_pair(pair, dataset.picture(index), heat, predictions, index)
    figure.suptitle(
        "Yellow: where the evidence for the class that was said lies, on a grid of "
        f"{positions} x {positions}"
    )
    save_figure(figure, path)


class HeatPictures:
    """Writes a PNG for each picture that a model predicts: it, and beside it the heat map of its
    most probable class; numbered in the files' order, then named after them. See `SeesBatch`."""

    def __init__(self, net: ImageClassifier, folder: Path):
        self.net = net
        self.folder = folder
        self.count = 0

    def __call__(
        self, slices: Sequence[Slice], pixels: np.ndarray, probabilities: np.ndarray
    ) -> None:
        classes = torch.from_numpy(probabilities.argmax(axis=1))
        for found, picture, heat in zip(
            slices, pixels, heat_maps(self.net, pixels, classes), strict=True
        ):
            name = re.sub(r"[^\w.\[\]-]+", "_", found.file)[-80:]
            image = Image.fromarray(picture_beside_heat(picture, heat))
            with atomic_write(self.folder / f"{self.count:05}_{name}.png") as file:
                image.save(file, format="PNG")
            self.count += 1


def heat_maps(net: ImageClassifier, pixels: np.ndarray, classes: torch.Tensor) -> np.ndarray:
    """`grad_cam` (B, S, S) for uint8 pictures (B, C, S, S) of the network's size."""
    device = net_device(net)
    net.eval()
    with torch.enable_grad():
        images = normalize(torch.from_numpy(pixels).to(device).float())
        return grad_cam(net, images, classes.to(device)).cpu().numpy()


def picture_beside_heat(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A uint8 picture (C, S, S) and the same in grey under its heat map: uint8 (S, 2 S, 3)."""
    plain = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
    grey = plain.mean(axis=2, keepdims=True)
    opacity = HEAT_OPACITY * heat[:, :, None]
    heated = (1 - opacity) * grey + opacity * 255 * np.array(HEAT_COLOR)
    return np.concatenate([plain, heated.round().astype(np.uint8)], axis=1)


def _draw_pair(
    pair: tuple[Axes, Axes], picture: np.ndarray, heat: np.ndarray, predictions: Predictions, index
) -> None:
    probabilities = predictions.probabilities[index]
    names = [label(name, 18) for name in predictions.class_names]
    true, said = predictions.labels[index], probabilities.argmax()
    pair[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
    # In grey, so that the picture's own colours are not taken for heat.
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    pair[1].imshow(grey, cmap="gray", vmin=0, vmax=255)
    overlay = np.zeros((*heat.shape, 4))
    overlay[..., :3], overlay[..., 3] = HEAT_COLOR, HEAT_OPACITY * heat
    pair[1].imshow(overlay)
    name = label(str(predictions.names[index]), 24)
    pair[0].set_title(f"{name}\ntrue: {names[true]} ({probabilities[true]:.2f})", fontsize=7)
    verdict = "right" if said == true else "wrong"
    evidence = "" if heat.any() else ", nothing speaks for it"
    said_line = f"said: {names[said]} ({probabilities[said]:.2f})"
    pair[1].set_title(f"{verdict}{evidence}\n{said_line}", fontsize=7)
