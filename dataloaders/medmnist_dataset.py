"""Training straight from a MedMNIST .npz file."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dataloaders.dataset import ImageDataset
from dataloaders.medmnist import SPLITS, read_class_names, read_medmnist
from dataloaders.table import ImageTable


def load_medmnist(
    path: Path, image_size: int, cache: str, splits: Sequence[str] = tuple(SPLITS)
) -> tuple[dict[str, ImageTable], dict[str, ImageDataset]]:
    """The file's official `splits` as tables and data sets, by name: "train", "val", "test".

    Images are resized to `image_size` (bilinear) unless that is 0. `UserError` as `read_medmnist`.
    """
    classes = tuple(read_class_names(path))
    arrays = read_medmnist(path, splits)
    tables, datasets = {}, {}
    for split_name, (images, labels) in arrays.items():
        name = SPLITS[split_name]
        names = [f"{name}_{row:06}" for row in range(len(labels))]
        tables[name] = ImageTable(
            path, names, labels, classes, None, None, None, np.arange(1, len(labels) + 1), 0
        )
        pixels = resize_pixels(images if images.ndim == 4 else images[..., None], image_size)
        digest = hashlib.blake2b(pixels.tobytes() + labels.tobytes(), digest_size=16)
        datasets[name] = ImageDataset(
            pixels, labels, names, classes, None, digest.hexdigest(), cache
        )
    return tables, datasets


def resize_pixels(images: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 (N, H, W, 1 or 3) -> (N, S, S, 1 or 3), bilinear; S 0 keeps the size."""
    if image_size == 0 or images.shape[1:3] == (image_size, image_size):
        return images
    channels = images.shape[3]

    def resize(image: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        resized = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(image_size, image_size, channels)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(resize, images)))
