"""volumes.csv and its arrays: which volume is whose, and its voxels, mapped from one file each.

A folder of volumes holds volumes.csv, `VolumeID[,PatientID][,site],shape,spacing,` and one column
of voxel counts per class, background first, and arrays/VolumeID.npy: float16 (K + 1, X, Y, Z), the
K channels of the image, normalised, then the label. A volume without a label counts no voxel of any
class, and its last channel is 0.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataloaders.columns import CsvText, quoted, read_csv_text
from utils.errors import UserError
from utils.files import write_text
from utils.table_files import to_csv

TABLE_FILE, ARRAYS = "volumes.csv", "arrays"
FACTS = ("VolumeID", "PatientID", "site", "client", "shape", "spacing")
NEEDED = ("VolumeID", "shape", "spacing")
LARGEST_SIDE = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHAPE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})")
_COUNT = re.compile(r"\d{1,15}")


@dataclass(frozen=True)
class VolumeTable:
    """N volumes in the order of their CSV.

    class_names: background first. counts: voxels of each class, int64 (N, C). shapes: (X, Y, Z) of
    each; spacings: its voxel's sides in mm. groups, sites, clients: patients, hospitals and client
    numbers, None where the CSV does not say. source, line_numbers: where each row stands.
    """

    source: Path
    names: list[str]
    class_names: tuple[str, ...]
    counts: np.ndarray
    shapes: list[tuple[int, int, int]]
    spacings: list[tuple[float, float, float]]
    groups: list[str] | None
    sites: list[str] | None
    clients: np.ndarray | None
    line_numbers: np.ndarray

    group_column = "PatientID"
    dropped = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_labeled(self) -> np.ndarray:
        """Whether somebody drew its structures, bool (N,)."""
        return self.counts.any(axis=1)

    def select(self, rows: Sequence[int] | np.ndarray) -> "VolumeTable":
        """The table of the rows `rows`, in that order."""
        rows = [int(row) for row in rows]

        def pick(values: list | None) -> list | None:
            return None if values is None else [values[row] for row in rows]

        return replace(
            self,
            names=pick(self.names),
            counts=self.counts[rows],
            shapes=pick(self.shapes),
            spacings=pick(self.spacings),
            groups=pick(self.groups),
            sites=pick(self.sites),
            clients=None if self.clients is None else self.clients[rows],
            line_numbers=self.line_numbers[rows],
        )


def read_volumes(path: Path) -> VolumeTable:
    """The volumes that a CSV lists; `UserError`, naming file and line, for what cannot be used."""
    text = read_csv_text(path)
    if missing := [column for column in NEEDED if column not in text.header]:
        raise UserError(
            f"{path} line 1: no column {missing[0]}; give the volumes.csv that "
            "`python -m dataloaders.prepare decathlon` wrote"
        )
    class_names = tuple(name for name in text.header if name not in FACTS)
    if len(class_names) < 2 or len(set(text.header)) < len(text.header):
        raise UserError(
            f"{path} line 1: name background and at least one structure, each column once"
        )
    columns, lines = text.columns()
    cells = dict(zip(text.header, columns, strict=True))
    names = _parsed(text, lines, "VolumeID", cells, _name, "letters, digits, . _ - only")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: volume {quoted(twice)} stands in two rows; delete one")
    groups, sites = (
        list(cells[column]) if any(cells.get(column, ())) else None
        for column in ("PatientID", "site")
    )
    for column, values in (("PatientID", groups), ("site", sites)):
        if values is not None and "" in values:
            line = lines[values.index("")]
            raise UserError(f"{path} line {line}: column {column} is empty; fill it in every row")
    clients = None
    if "client" in cells:
        clients = np.array(_parsed(text, lines, "client", cells, _count, "a client's number"))
    counts = [
        _parsed(text, lines, name, cells, _count, "a number of voxels") for name in class_names
    ]
    return VolumeTable(
        path,
        names,
        class_names,
        np.array(counts, dtype=np.int64).T,
        _parsed(text, lines, "shape", cells, _shape, "as 35x51x35"),
        _parsed(text, lines, "spacing", cells, _spacing, "mm, as 1x1x1.5"),
        groups,
        sites,
        clients,
        lines,
    )


def _parsed(
    text: CsvText, lines: np.ndarray, column: str, cells: dict, parse, expected: str
) -> list:
    """The cells of a column as `parse` reads them; it returns None for one that it cannot."""
    values = [parse(cell) for cell in cells[column]]
    if None in values:
        row = values.index(None)
        raise UserError(
            f"{text.path} line {lines[row]}: {column} is {quoted(cells[column][row])}; "
            f"expected {expected}"
        )
    return values


def is_name(text: str) -> bool:
    """Whether a volume can be called so: its array is a file of that name."""
    return _NAME.fullmatch(text) is not None


def _name(cell: str) -> str | None:
    return cell if is_name(cell) else None


def _count(cell: str) -> int | None:
    return int(cell) if _COUNT.fullmatch(cell) else None


def _shape(cell: str) -> tuple[int, int, int] | None:
    found = _SHAPE.fullmatch(cell)
    return tuple(map(int, found.groups())) if found else None


def _spacing(cell: str) -> tuple[float, float, float] | None:
    try:
        sides = tuple(float(side) for side in cell.split("x"))
    except ValueError:
        return None
    return sides if len(sides) == 3 and all(0.001 <= side <= 1000 for side in sides) else None


def open_array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An array file, mapped read-only: float16 (K + 1, X, Y, Z) with (X, Y, Z) = `shape`.

    Raises `UserError` for a file that is missing, cut off or holds anything else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; prepare the volumes again") from None
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: not an array ({reason}); prepare the volumes again") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != 4:
        raise UserError(f"{path}: not float16 with four dimensions; prepare the volumes again")
    if array.shape[1:] != shape or len(array) < 2:
        raise UserError(
            f"{path}: holds {array.shape}, not a channel or more and the label of "
            f"{'x'.join(map(str, shape))} voxels; prepare the volumes again"
        )
    return array


def open_volumes(folder: Path, table: VolumeTable) -> list[np.ndarray]:
    """The arrays of a table's volumes, mapped; `UserError` where channels differ."""
    arrays = [
        open_array(folder / ARRAYS / f"{name}.npy", shape)
        for name, shape in zip(table.names, table.shapes, strict=True)
    ]
    for name, array in zip(table.names, arrays, strict=True):
        if len(array) != len(arrays[0]):
            raise UserError(
                f"{folder / ARRAYS / name}.npy: {len(array) - 1} channels, the first volume has "
                f"{len(arrays[0]) - 1}; leave one kind out"
            )
    return arrays


def fingerprint(table: VolumeTable, arrays: Sequence[np.ndarray]) -> str:
    """What identifies a set of volumes and labels: SHA-256 in hex of names, facts and voxels."""
    described = [table.names, table.class_names, table.groups, table.spacings]
    digest = hashlib.sha256(json.dumps(described).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shape_text(sides: Sequence[float]) -> str:
    """A shape or a spacing as volumes.csv has it: 35x51x35, 1x1x1.5."""
    return "x".join(f"{side:g}" for side in sides)


def write_volumes(path: Path, table: VolumeTable) -> None:
    """Write a table, or a part of one, as `read_volumes` reads it."""
    columns = {
        "VolumeID": table.names,
        "PatientID": table.groups,
        "site": table.sites,
        "client": table.clients,
        "shape": [shape_text(shape) for shape in table.shapes],
        "spacing": [shape_text(spacing) for spacing in table.spacings],
    }
    columns |= {name: table.counts[:, at] for at, name in enumerate(table.class_names)}
    header = [name for name, values in columns.items() if values is not None]
    rows = zip(*(columns[name] for name in header), strict=True)
    write_text(path, to_csv(header, [[str(cell) for cell in row] for row in rows], exact=True))
