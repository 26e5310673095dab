"""What the pictures of a training set have in common, and which picture is nothing like them.

A network gives every picture one of its classes, a photograph of skin to a network of head CT,
too. Five numbers of a picture tell such sets apart; a checkpoint keeps their range over the
training images, so that whoever uses it later is told.
"""

from collections.abc import Mapping

import numpy as np
import torch

FEATURES = ("red", "green", "blue", "colour", "darkness")
SAMPLE = 512  # images that a set is described from
DARK = 16  # of 255: air and the border of a scan
# A picture is unlike where a feature lies outside the range by more than the range's own width, or
# by more than this: 255ths for the first four, a share of the pixels for the last.
LEAST_MARGIN = np.array([24.0, 24.0, 24.0, 12.0, 0.15])


def picture_features(pixels: np.ndarray) -> np.ndarray:
    """(N, 5) `FEATURES` of uint8 pictures (N, H, W, 1 or 3): the mean of each colour, the mean
    distance between the strongest and the weakest colour of a pixel, all in 0..255, and the share
    of pixels that are almost black."""
    colours = np.broadcast_to(pixels, (*pixels.shape[:3], 3)).reshape(len(pixels), -1, 3)
    strongest, weakest = colours.max(axis=2), colours.min(axis=2)
    return np.column_stack(
        [
            colours.mean(axis=1),
            (strongest - weakest).mean(axis=1),
            (strongest < DARK).mean(axis=1),
        ]
    )


def describe_pictures(pixels: torch.Tensor) -> dict[str, list[float]]:
    """{feature: [low, high]} of uint8 pictures (N, H, W, C): the middle 98% of `SAMPLE` of them,
    evenly spread, without a border of the range that rests on one odd picture."""
    rows = np.unique(np.linspace(0, len(pixels) - 1, SAMPLE).round().astype(int))
    features = np.concatenate([picture_features(pixels[row : row + 1].numpy()) for row in rows])
    low, high = np.percentile(features, (1, 99), axis=0)
    bounds = np.column_stack([low, high]).round(3)
    return dict(zip(FEATURES, bounds.tolist(), strict=True))


def find_unlike(pixels: np.ndarray, described: Mapping[str, list[float]] | None) -> list[str]:
    """For each of the uint8 pictures (N, C, H, W) what most tells it from those `described`, or
    ""; nothing does where these are not known."""
    if described is None:
        return [""] * len(pixels)
    known = [at for at, name in enumerate(FEATURES) if name in described]
    low, high = np.array([described[FEATURES[at]] for at in known]).reshape(-1, 2).T
    margin = np.maximum(high - low, LEAST_MARGIN[known])
    features = picture_features(pixels.transpose(0, 2, 3, 1))[:, known]
    outside = np.maximum(low - features, features - high) / margin
    words = []
    for row, how_far in zip(features, outside, strict=True):
        at = int(how_far.argmax())
        name = FEATURES[known[at]]
        said = f"{name} {row[at]:.3g} where those have {low[at]:.3g} to {high[at]:.3g}"
        words.append(said if how_far[at] > 1 else "")
    return words
