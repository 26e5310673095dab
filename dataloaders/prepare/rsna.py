"""RSNA intracranial haemorrhage: a folder of DICOM files and a long label file -> PNG + CSV."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dataloaders.columns import find_special_columns, quoted, read_csv_text, separator_in
from dataloaders.dicom import REPAIRED_INTERCEPT, Preprocessing, UnreadableDicom, read_picture
from dataloaders.image_files import image_key
from dataloaders.prepare.conversion import NOTE, Conversion, Options, find_files, prepare_labelled
from utils.errors import UserError

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
ALL_COLUMNS = (*SUBTYPES, "any")

ROWS_AT_ONCE = 1 << 19
LONGEST_ID = 100
IDS_SHOWN = 3


class RsnaLabels(NamedTuple):
    """table: index ImageID (`ID_<hex>`, in the file's order), the five subtypes as 0/1 uint8.

    rows: of the file, without its header. duplicates: rows that repeat an earlier one.
    """

    table: pd.DataFrame
    rows: int
    duplicates: int


class _Rows(NamedTuple):
    """Some rows of the file. image: index into `names`. column: index into `ALL_COLUMNS`."""

    names: np.ndarray
    image: np.ndarray
    column: np.ndarray
    label: np.ndarray


def read_rsna_labels(path: str | os.PathLike) -> RsnaLabels:
    """Read stage_1_train.csv or stage_2_train.csv: columns ID and Label, one row per
    `ID_<hex>_<subtype>`; or a wide file of one row per image, with a column for each subtype and
    perhaps `any`.

    Rows that repeat an earlier one are dropped. Raises `UserError`, naming the line or the image,
    for rows that contradict each other, missing subtypes, labels other than 0 and 1, unknown
    subtypes, and an `any` that is not the union of the five.
    """
    path = Path(path)
    if _is_wide(path):
        return _read_wide(path)
    parts = list(_read_rows(path))
    if not parts:
        raise UserError(f"{path} has no rows below its header")
    local_codes, names = pd.factorize(np.concatenate([part.names for part in parts]))
    starts = np.cumsum([0, *(len(part.names) for part in parts[:-1])])
    image = np.concatenate(
        [local_codes[part.image + start] for part, start in zip(parts, starts, strict=True)]
    )
    column = np.concatenate([part.column for part in parts])
    label = np.concatenate([part.label for part in parts])

    cell = image * len(ALL_COLUMNS) + column
    shape = (len(names), len(ALL_COLUMNS))
    rows = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    positive_rows = np.bincount(cell[label], minlength=shape[0] * shape[1]).reshape(shape)
    values = positive_rows > 0
    _refuse(path, names, values & (positive_rows < rows), "is both 0 and 1")
    _refuse(path, names, rows == 0, "is missing")
    wrong_any = np.zeros(shape, dtype=bool)
    wrong_any[:, -1] = values[:, -1] != values[:, :-1].any(axis=1)
    _refuse(path, names, wrong_any, "does not agree with the five subtypes")

    index = pd.Index(names, name="ImageID", dtype=str)
    table = pd.DataFrame(values[:, :-1].astype(np.uint8), index=index, columns=list(SUBTYPES))
    return RsnaLabels(table, len(cell), int((rows - 1).sum()))


def _is_wide(path: Path) -> bool:
    """Whether the file has a row per image; `UserError` for what is neither kind of label file."""
    try:
        columns = list(pd.read_csv(path, nrows=0, sep=separator_in(path)).columns)
    except OSError as error:
        raise UserError(f"--labels {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"--labels {path} is not a CSV file with the columns ID,Label") from None
    if {"ID", "Label"} <= set(columns):
        return False
    if set(SUBTYPES) <= set(columns):
        return True
    raise UserError(
        f"--labels {path} has no columns ID and Label: expected the challenge's long file, such as "
        "stage_2_train.csv, or one with a column for each subtype"
    )


def _read_wide(path: Path) -> RsnaLabels:
    text = read_csv_text(path)
    cells, lines = text.columns()
    cells = dict(zip(text.header, cells, strict=True))
    names = [image_key(name) for name in cells[find_special_columns(text, None, None)["image"]]]
    known = [name for name in ALL_COLUMNS if name in cells]
    values = np.empty((len(names), len(known)), dtype=np.uint8)
    for column, name in enumerate(known):
        for row, cell in enumerate(cells[name]):
            if cell not in ("0", "1", "0.0", "1.0"):
                raise UserError(
                    f"{path} line {lines[row]}, column {name}: {quoted(cell)} is neither 0 nor 1"
                )
            values[row, column] = cell[0] == "1"
    subtypes = values[:, : len(SUBTYPES)]
    if "any" in known and (wrong := values[:, -1] != subtypes.any(axis=1)).any():
        raise UserError(
            f"{path} line {lines[int(wrong.argmax())]}: any does not agree with the five subtypes"
        )
    table = pd.DataFrame(
        subtypes, index=pd.Index(names, name="ImageID", dtype=str), columns=list(SUBTYPES)
    )
    repeated = table.index[table.index.duplicated()]
    distinct = table[~table.reset_index().duplicated().to_numpy()]
    if not distinct.index.is_unique:
        raise UserError(f"{path}: {repeated[0]} has two rows that contradict each other")
    return RsnaLabels(distinct, len(names), len(names) - len(distinct))


def _read_rows(path: Path) -> Iterator[_Rows]:
    try:
        chunks = pd.read_csv(
            path,
            usecols=["ID", "Label"],
            dtype={"ID": str, "Label": "category"},
            sep=separator_in(path),
            keep_default_na=False,
            chunksize=ROWS_AT_ONCE,
        )
        for chunk in chunks:
            if len(chunk):
                yield _parse_rows(path, chunk)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as CSV: {str(error).strip()}") from None


def _parse_rows(path: Path, chunk: pd.DataFrame) -> _Rows:
    too_long = chunk["ID"].str.len() > LONGEST_ID
    if too_long.any():
        raise UserError(f"{path} line {too_long.idxmax() + 2}: the ID is too long")
    # As bytes, because a quarter of the memory is a third of the time.
    split = np.char.rpartition(chunk["ID"].to_numpy(dtype="S"), b"_")
    image, names = pd.factorize(split[:, 0].astype(object))
    column = pd.Index([name.encode() for name in ALL_COLUMNS]).get_indexer(split[:, 2])
    bad = (column < 0) | (split[:, 0] == b"")
    if bad.any():
        at = int(bad.argmax())
        raise UserError(
            f"{path} line {chunk.index[at] + 2}: ID {chunk['ID'].iloc[at]!r} is not "
            f"ID_<hex>_<subtype> with a subtype of {', '.join(ALL_COLUMNS)}"
        )
    label_values = pd.to_numeric(chunk["Label"].cat.categories, errors="coerce")
    label = np.asarray(label_values, dtype=float)[chunk["Label"].cat.codes]
    bad = ~np.isin(label, (0, 1))
    if bad.any():
        at = int(bad.argmax())
        raise UserError(
            f"{path} line {chunk.index[at] + 2}: Label {str(chunk['Label'].iloc[at])!r} is neither "
            "0 nor 1"
        )
    decoded = np.char.decode(names.astype("S")).astype(object)
    if any("." in name for name in decoded):  # ids with their files' suffix
        decoded = np.array([image_key(name) for name in decoded], dtype=object)
    return _Rows(decoded, image, column, label == 1)


def _refuse(path: Path, names: np.ndarray, wrong: np.ndarray, what: str) -> None:
    """`wrong` is (images, columns): name the first few of what is wrong."""
    if not wrong.any():
        return
    images, columns = np.nonzero(wrong)
    shown = ", ".join(
        f"{names[image]}_{ALL_COLUMNS[column]}"
        for image, column in zip(images[:IDS_SHOWN], columns[:IDS_SHOWN], strict=True)
    )
    more = f" and {len(images) - IDS_SHOWN:,} more" if len(images) > IDS_SHOWN else ""
    raise UserError(f"{path}: {shown}{more} {what}: download the file again or mend these rows")


RECORD_COLUMNS = ("PatientID", "StudyInstanceUID", "site", NOTE)


def prepare_rsna(
    dicom_dir: Path, labels: Path, out: Path, preprocessing: Preprocessing, options: Options
) -> None:
    """Make a picture of every labelled DICOM file, and write labels.csv with ImageID, PatientID,
    StudyInstanceUID, site and the five subtypes. Images with no or several subtypes stay in.

    Raises `UserError` as `prepare_labelled` and `read_rsna_labels` do.
    """
    files = find_files(dicom_dir, (".dcm",), "--dicom_dir")
    long_labels = read_rsna_labels(labels)
    print(
        f"{labels}: {long_labels.rows:,} rows, {long_labels.duplicates:,} of them exact "
        f"duplicates, {len(long_labels.table):,} images"
    )
    settings = {
        "command": "prepare rsna",
        "preprocessing": preprocessing._asdict(),
        "repaired_intercept": REPAIRED_INTERCEPT,
    }
    prepare_labelled(
        Conversion(out, settings, RECORD_COLUMNS),
        long_labels.table,
        files,
        partial(convert_dicom, preprocessing=preprocessing),
        options,
        {
            "dicom_dir": str(dicom_dir),
            "labels": str(labels),
            "classes": list(SUBTYPES),
            "label_rows": long_labels.rows,
            "duplicate_label_rows": long_labels.duplicates,
        },
    )


def convert_dicom(
    path: str, preprocessing: Preprocessing
) -> tuple[np.ndarray, tuple[str, str, str, str]]:
    """The picture of a DICOM file and its record: PatientID, StudyInstanceUID, site, note.

    Raises `UnreadableDicom`, also where the header has no PatientID or StudyInstanceUID: without
    them a patient could stand on both sides of a split.
    """
    picture = read_picture(path, *preprocessing)
    if not picture.patient_id or not picture.study_uid:
        raise UnreadableDicom(f"no {'StudyInstanceUID' if picture.patient_id else 'PatientID'}")
    return picture.image, (picture.patient_id, picture.study_uid, picture.site, picture.note)
