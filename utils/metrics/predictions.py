"""predictions_test.csv: what a classifier said about each image, so that anyone can re-score it.

Columns: `ImageID`, optionally `PatientID` or `lesion_id`, optionally `site`, `label` (the name of
the true class), then one column of softmax probabilities per class, named by the class.
Probabilities are written so that reading gives the same float64 back, bit for bit.
"""

import csv
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write
from utils.text import csv_cell, from_csv_cell

IMAGE_COLUMN = "ImageID"
LABEL_COLUMN = "label"
SITE_COLUMN = "site"
# column -> what one calls the things it names
GROUP_COLUMNS = {"PatientID": "patients", "lesion_id": "lesions"}
SUM_TOLERANCE = 1e-3


class Predictions(NamedTuple):
    """The content of a predictions file: N images, C classes."""

    names: Sequence[str]  # N image names, each once
    labels: np.ndarray  # (N,) int in [0, C)
    probabilities: np.ndarray  # (N, C) float64, rows summing to 1
    class_names: Sequence[str]
    groups: np.ndarray | None = None  # (N,) ids of the patients or lesions
    group_column: str = "PatientID"
    sites: np.ndarray | None = None  # (N,) names of the hospitals or sources

    @property
    def group_noun(self) -> str:
        """What the groups are: "patients" or "lesions"."""
        return GROUP_COLUMNS[self.group_column]


def write_predictions(
    path: str | os.PathLike,
    names: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    groups: np.ndarray | None = None,
    group_column: str = "PatientID",
    sites: Sequence[str] | None = None,
) -> None:
    """Write a predictions file, whole or not at all; the arguments are as in `Predictions`.

    Probabilities of a lower precision are widened to float64 first, as the metrics do.
    """
    header = [IMAGE_COLUMN, LABEL_COLUMN, *class_names]
    columns = [names, [class_names[label] for label in labels]]
    columns += [map(repr, column.tolist()) for column in np.asarray(probabilities, np.float64).T]
    for name, ids in ((SITE_COLUMN, sites), (group_column, groups)):
        if ids is not None:
            header.insert(1, name)
            columns.insert(1, ids)
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(csv_cell, header))
        writer.writerows(
            [csv_cell(str(cell)) for cell in row] for row in zip(*columns, strict=True)
        )


def read_predictions(path: str | os.PathLike) -> Predictions:
    """The content of a predictions file.

    `UserError` with the line at fault where it is missing, not of this form, names an image twice
    or has probabilities that are no distribution over the classes.
    """
    header, lines, rows = _read_rows(path)
    group_column = header[1] if len(header) > 1 and header[1] in GROUP_COLUMNS else None
    site_at = 2 if group_column else 1
    has_sites = header[site_at : site_at + 2] == [SITE_COLUMN, LABEL_COLUMN]
    first_class = 2 + (group_column is not None) + has_sites
    class_names = tuple(header[first_class:])
    if header[0] != IMAGE_COLUMN or header[first_class - 1 : first_class] != [LABEL_COLUMN]:
        raise UserError(
            f"{path}, line 1: the columns must be ImageID, optionally PatientID or lesion_id, "
            "label, then one per class; write the file with test.py"
        )
    if len(class_names) < 2 or len(set(class_names)) < len(class_names) or "" in class_names:
        raise UserError(f"{path}, line 1: at least two classes, each with its own name, are needed")
    if not rows:
        raise UserError(f"{path}: no image below the header; write the file with test.py")
    columns = list(zip(*rows, strict=True))
    names = columns[0]
    _refuse_repeated_names(path, lines, names)
    index = {name: position for position, name in enumerate(class_names)}
    labels = np.array([index.get(name, -1) for name in columns[first_class - 1]])
    if labels.min() < 0:
        at = int(np.argmin(labels))
        raise UserError(
            f"{path}, line {lines[at]}: label {columns[first_class - 1][at]!r} is none of the "
            f"classes {', '.join(class_names)}; correct the label or the header"
        )
    return Predictions(
        names=names,
        labels=labels,
        probabilities=_probabilities(path, lines, [row[first_class:] for row in rows]),
        class_names=class_names,
        groups=np.array(columns[1]) if group_column else None,
        group_column=group_column or "PatientID",
        sites=np.array(columns[site_at]) if has_sites else None,
    )


def _read_rows(path: str | os.PathLike) -> tuple[list[str], list[int], list[list[str]]]:
    """(header, line number of each row, rows), every row as long as the header."""
    lines, rows = [], []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [from_csv_cell(cell) for cell in next(reader, ())] or None
            for row in filter(None, reader):
                lines.append(reader.line_num)
                rows.append([from_csv_cell(cell) for cell in row])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that test.py wrote") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not header:
        raise UserError(f"{path}: the file is empty; write it with test.py")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} cells where the header has {len(header)}; "
                "was the file cut off? Write it again with test.py"
            )
    return header, lines, rows


def _refuse_repeated_names(
    path: str | os.PathLike, lines: Sequence[int], names: Sequence[str]
) -> None:
    first_line = {}
    for line, name in zip(lines, names, strict=True):
        if first_line.setdefault(name, line) != line:
            raise UserError(
                f"{path}, line {line}: image {name!r} is already on line {first_line[name]} and "
                "would count twice; remove one of them"
            )


def _probabilities(
    path: str | os.PathLike, lines: Sequence[int], cells: list[list[str]]
) -> np.ndarray:
    try:
        probabilities = np.array(cells).astype(np.float64)
    except ValueError:
        probabilities = np.array([[_number(cell) for cell in row] for row in cells])
    in_range = ((probabilities >= 0) & (probabilities <= 1)).all(1)
    with np.errstate(invalid="ignore"):
        good = in_range & (np.abs(probabilities.sum(1) - 1) <= SUM_TOLERANCE)
    if not good.all():
        at = int(np.argmin(good))
        raise UserError(
            f"{path}, line {lines[at]}: {', '.join(cells[at])} are not probabilities that add up "
            "to 1; the columns must be the softmax of the classes"
        )
    return probabilities


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")
