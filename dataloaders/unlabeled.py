"""The CSV of a place that has images and no labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.columns import find_special_columns
from dataloaders.csv_cells import read_csv_text
from dataloaders.table import ImageTable
from utils.errors import UserError


def read_unlabeled_table(path: str | Path, class_names: Sequence[str]) -> ImageTable:
    """Read a CSV whose column ImageID (or ID) names the images; every other column is ignored.

    All labels of the table are 0 and mean nothing; `class_names` are those that others learn.
    Raises `UserError` for whatever cannot be read without guessing.
    """
    text = read_csv_text(path)
    image_column = find_special_columns(text, None, None)["image"]
    cells, line_numbers = text.columns()
    names = list(cells[text.header.index(image_column)])
    if "" in names:
        line = line_numbers[names.index("")]
        raise UserError(f"{path} line {line}: column {image_column!r} is empty; delete the row")
    return ImageTable(
        source=Path(path),
        names=names,
        labels=np.zeros(len(names), dtype=np.int64),
        class_names=tuple(class_names),
        groups=None,
        sites=None,
        clients=None,
        line_numbers=line_numbers,
        dropped=0,
    )
