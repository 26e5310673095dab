"""The CSV of images: which image belongs to which class, patient, site and client."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataloaders.columns import (
    KNOWN_COLUMNS,
    find_class_columns,
    find_image_column,
    find_special_columns,
    quoted,
    read_csv_text,
    refuse_long_form,
    spelling_hint,
)
from options import LABEL_UNCERTAINTY, MULTI_LABEL
from utils.errors import UserError

UNCERTAIN_CLASS = "uncertain"

_LABEL = re.compile(r"(-1|[01])(\.0*)?")
_NOT_A_LABEL = -2
_CLIENT = re.compile(r"([0-9]{1,6})(\.0*)?", re.ASCII)


@dataclass(frozen=True)
class ImageTable:
    """N images with exactly one class each, in the order of their CSV.

    `labels` (N,) int64 are indices into `class_names`, the class columns in the header's order;
    `groups` are the patients or lesions, `sites` the hospitals, `clients` (N,) int64 the client
    ids >= 0 (each None where the CSV has no such column). `line_numbers` (N,) are the rows' lines
    in the CSV, from 1, and `dropped` counts the rows left out for having no or several classes.
    `group_column` is the column of the groups, lesion_id or PatientID.
    """

    source: Path
    names: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: list[str] | None
    sites: list[str] | None
    clients: np.ndarray | None
    line_numbers: np.ndarray
    dropped: int
    group_column: str = "PatientID"

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int] | np.ndarray) -> "ImageTable":
        """The table of the rows `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            names=_pick(self.names, indices),
            labels=self.labels[indices],
            groups=None if self.groups is None else _pick(self.groups, indices),
            sites=None if self.sites is None else _pick(self.sites, indices),
            clients=None if self.clients is None else self.clients[indices],
            line_numbers=self.line_numbers[indices],
        )

    def class_counts(self) -> np.ndarray:
        """(C,) int64: the number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))


def read_table(
    path: str | Path,
    label_uncertainty: str = "U-Ones",
    multi_label: str = "refuse",
    group_column: str | None = None,
    site_column: str | None = None,
) -> ImageTable:
    """Read a CSV `ImageID[,PatientID,...],class columns` whose labels are 0 or 1.

    `label_uncertainty` says what a label of -1 becomes: "U-Ones" 1, "U-Zeros" 0, "U-MultiClass"
    makes the row a member of a further class "uncertain", which then always exists.
    `multi_label` "drop" leaves out (and counts) rows with no or with several classes.
    `group_column` and `site_column` name the columns that hold groups and sites where these are
    not PatientID / lesion_id and site / dataset. Every column that is none of these is a class.
    Raises `UserError` for whatever cannot be read without guessing.
    """
    if label_uncertainty not in LABEL_UNCERTAINTY or multi_label not in MULTI_LABEL:
        raise ValueError(f"unknown {label_uncertainty=} or {multi_label=}")
    text = read_csv_text(path)
    special = find_special_columns(text, group_column, site_column)
    class_names = find_class_columns(text, special)
    cells, line_numbers = text.columns()
    cells = dict(zip(text.header, cells, strict=True))
    names = cells[special["image"]]
    refuse_long_form(text, class_names, names)
    for column in special.values():
        _refuse_empty(text.path, column, cells[column], line_numbers)
    _refuse_repeated_images(text.path, names, line_numbers)
    matrix = _label_matrix(text.path, class_names, cells, line_numbers)
    matrix, class_names = _settle_uncertain(text.path, matrix, class_names, label_uncertainty)
    kept = _rows_of_one_class(text.path, matrix, class_names, line_numbers, names, multi_label)
    table = ImageTable(
        source=text.path,
        names=list(names),
        labels=matrix.argmax(axis=1).astype(np.int64),
        class_names=class_names,
        groups=_optional(cells, special.get("group")),
        sites=_optional(cells, special.get("site")),
        clients=_client_ids(text.path, cells, special.get("client"), line_numbers),
        line_numbers=line_numbers,
        dropped=len(names) - len(kept),
        group_column=special.get("group", "PatientID"),
    )
    return table if len(kept) == len(names) else table.select(kept)


def _pick(values: list[str], indices: np.ndarray) -> list[str]:
    return [values[index] for index in indices.tolist()]


def _optional(cells: dict[str, tuple[str, ...]], column: str | None) -> list[str] | None:
    return None if column is None else list(cells[column])


def _refuse_empty(path: Path, column: str, cells: Sequence[str], line_numbers: np.ndarray) -> None:
    if "" in cells:
        line = line_numbers[cells.index("")]
        raise UserError(
            f"{path} line {line}: column {quoted(column)} is empty; fill it or delete the row"
        )


def _refuse_repeated_images(path: Path, names: Sequence[str], line_numbers: np.ndarray) -> None:
    if len(set(names)) == len(names):
        return
    first_line: dict[str, int] = {}
    for name, line in zip(names, line_numbers.tolist(), strict=True):
        if name in first_line:
            raise UserError(
                f"{path} line {line}: image {quoted(name)} stands already in line "
                f"{first_line[name]} ({len(names) - len(set(names))} repeated rows in all); "
                "keep one row per image"
            )
        first_line[name] = line


def _label_value(cell: str) -> int:
    match = _LABEL.fullmatch(cell)
    return int(match[1]) if match else _NOT_A_LABEL


def _label_matrix(
    path: Path,
    class_names: tuple[str, ...],
    cells: dict[str, tuple[str, ...]],
    line_numbers: np.ndarray,
) -> np.ndarray:
    """(N, C) int8 with values -1, 0 and 1."""
    matrix = np.empty((len(line_numbers), len(class_names)), dtype=np.int8)
    for column, name in enumerate(class_names):
        values = {cell: _label_value(cell) for cell in set(cells[name])}
        matrix[:, column] = list(map(values.__getitem__, cells[name]))
    wrong = np.argwhere(matrix == _NOT_A_LABEL)
    if len(wrong):
        row, column = wrong[0]
        name, cell = class_names[column], cells[class_names[column]][row]
        what = f"label {quoted(cell)} is not 0, 1 or -1" if cell else "the label is missing"
        raise UserError(
            f"{path} line {line_numbers[row]}, column {quoted(name)}: {what}; write 0 or 1, or "
            f"delete the column if it is no class{spelling_hint([name], KNOWN_COLUMNS)}"
        )
    return matrix


def _settle_uncertain(
    path: Path, matrix: np.ndarray, class_names: tuple[str, ...], label_uncertainty: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels of -1 into what `label_uncertainty` says: (N, C or C + 1) of 0 and 1."""
    uncertain = matrix == -1
    if label_uncertainty != "U-MultiClass":
        value = 1 if label_uncertainty == "U-Ones" else 0
        return np.where(uncertain, value, matrix), class_names
    if UNCERTAIN_CLASS in class_names:
        raise UserError(
            f"{path} line 1: class {UNCERTAIN_CLASS!r} exists already; rename it or use "
            "--label_uncertainty U-Ones or U-Zeros"
        )
    some = uncertain.any(axis=1, keepdims=True)
    return np.hstack([np.where(some, 0, matrix), some]), (*class_names, UNCERTAIN_CLASS)


def _rows_of_one_class(
    path: Path,
    matrix: np.ndarray,
    class_names: tuple[str, ...],
    line_numbers: np.ndarray,
    names: Sequence[str],
    multi_label: str,
) -> np.ndarray:
    """Indices of the rows that have exactly one class."""
    classes = (matrix == 1).sum(axis=1)
    kept = np.flatnonzero(classes == 1)
    if len(kept) == len(matrix):
        return kept
    others = f"{len(matrix) - len(kept)} of {len(matrix)} rows have no or several classes"
    if multi_label == "refuse":
        row = np.flatnonzero(classes != 1)[0]
        present = [name for name, one in zip(class_names, matrix[row] == 1, strict=True) if one]
        what = f"several classes ({quoted(', '.join(present))})" if present else "no class"
        raise UserError(
            f"{path} line {line_numbers[row]}: image {quoted(names[row])} has {what}; mend the "
            f"row, or leave such rows out with --multi_label drop (of dataloaders.partition: "
            f"--single_label; {others})"
        )
    if not len(kept):
        raise UserError(f"{path}: {others}, so none is left; check the label columns")
    return kept


def _client_ids(
    path: Path,
    cells: dict[str, tuple[str, ...]],
    column: str | None,
    line_numbers: np.ndarray,
) -> np.ndarray | None:
    if column is None:
        return None
    numbers = {}
    for cell in set(cells[column]):
        match = _CLIENT.fullmatch(cell)
        if match is None:
            line = line_numbers[cells[column].index(cell)]
            raise UserError(
                f"{path} line {line}: client {quoted(cell)} is not a client number; "
                "write 0, 1, 2, ..."
            )
        numbers[cell] = int(match[1])
    return np.array([numbers[cell] for cell in cells[column]], dtype=np.int64)


def read_unlabeled_table(path: str | Path, class_names: Sequence[str]) -> ImageTable:
    """Read a CSV whose column ImageID (or ID) names the images; every other column is ignored.

    All labels of the table are 0 and mean nothing; `class_names` are those that others learn.
    Raises `UserError` for whatever cannot be read without guessing.
    """
    text = read_csv_text(path)
    image_column = find_image_column(text)
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
