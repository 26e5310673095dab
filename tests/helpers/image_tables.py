"""Tables of images and patients, made up."""

from pathlib import Path

import numpy as np

from dataloaders.split import (
    shared_values,
)
from dataloaders.table import ImageTable

CLASSES = ("epidural", "subdural", "other")


def make_table(images: int, patients: int, seed: int = 0) -> ImageTable:
    """Patients with several slices each that lean to one class, as head CT does."""
    generator = np.random.default_rng(seed)
    patient = np.sort(generator.integers(0, patients, images))
    leaning = generator.choice(3, patients, p=(0.1, 0.3, 0.6))
    labels = np.where(
        generator.random(images) < 0.7, leaning[patient], generator.integers(0, 3, images)
    )
    return ImageTable(
        source=Path("labels.csv"),
        names=[f"{row:05d}.png" for row in range(images)],
        labels=labels,
        class_names=CLASSES,
        groups=[f"p{number}" for number in patient],
        sites=[f"s{number % 4}" for number in patient],
        clients=patient % 3,
        line_numbers=np.arange(2, images + 2),
        dropped=0,
    )


def is_partition(parts: list[np.ndarray], length: int) -> bool:
    together = np.concatenate(parts)
    is_sorted = all((np.diff(part) > 0).all() for part in parts)
    return is_sorted and np.array_equal(np.sort(together), np.arange(length))


def groups_shared(table: ImageTable, parts) -> int:
    return shared_values([table.select(rows).groups for rows in parts])[0]
