"""Random views of a whole batch at once, on the device that trains.

Each view is torchvision's RandomAffine(degrees, translate) followed by RandomHorizontalFlip and
Normalize with ImageNet's mean and standard deviation, without a loop over samples.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Augmentation(NamedTuple):
    """degrees: rotation in [-degrees, degrees]; translate: largest shift, a share of the width
    and height; flip: probability of a horizontal flip."""

    degrees: float = 10.0
    translate: float = 0.02
    flip: float = 0.5


def draw_views(
    count: int, image_size: int, augmentation: Augmentation, generator: torch.Generator
) -> torch.Tensor:
    """Parameters of `count` random views, float32 (count, 4), on the CPU.

    Columns: angle in degrees clockwise, shift right and shift down in whole pixels, flipped
    (0 or 1).
    """
    uniform = torch.rand(count, 4, generator=generator)
    symmetric = 2 * uniform[:, :3] - 1
    parameters = torch.empty(count, 4)
    parameters[:, 0] = symmetric[:, 0] * augmentation.degrees
    parameters[:, 1:3] = (symmetric[:, 1:3] * (augmentation.translate * image_size)).round()
    parameters[:, 3] = uniform[:, 3] < augmentation.flip
    return parameters


def apply_views(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Rotate about the centre, shift and flip: images (B, C, H, W) float, parameters (B, 4).

    Nearest-neighbour sampling, 0 outside the image: pixel for pixel what torchvision's
    `affine` and `hflip` do for one image.
    """
    height, width = images.shape[-2:]
    grid = _sampling_grid(parameters, height, width)
    return functional.grid_sample(
        images, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8-valued images (B, 1 or 3, H, W) in 0..255 -> (B, 3, H, W), ImageNet mean and std."""
    mean, scale = _imagenet_scaling(images.device)
    return (images - mean).mul_(scale).contiguous(memory_format=torch.channels_last)


@cache
def _imagenet_scaling(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std for pixels in 0..255, (3, 1, 1); a copy to a GPU would wait for it."""
    mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None] * 255
    scale = 1 / (torch.tensor(IMAGENET_STD, device=device)[:, None, None] * 255)
    return mean, scale


def _sampling_grid(parameters: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where each output pixel looks in the input: (B, H, W, 2) in [-1, 1]."""
    angle, right, down, flipped = parameters.unbind(1)
    radians = angle * (math.pi / 180)
    cosine, sine = radians.cos()[:, None, None], radians.sin()[:, None, None]
    # Pixel centres relative to the image's centre.
    x = torch.arange(width, device=parameters.device) - (width - 1) / 2
    y = torch.arange(height, device=parameters.device) - (height - 1) / 2
    x = torch.where(flipped[:, None, None] > 0, -x[None, None, :], x[None, None, :])
    x, y = x - right[:, None, None], y[None, :, None] - down[:, None, None]
    source_x = (cosine * x + sine * y) * (2 / width)
    source_y = (cosine * y - sine * x) * (2 / height)
    return torch.stack([source_x, source_y], dim=-1)
