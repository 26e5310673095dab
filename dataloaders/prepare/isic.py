"""ISIC 2018 task 3 / HAM10000 skin lesions: photographs and a label table -> PNG + CSV."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dataloaders.columns import separator_in
from dataloaders.dicom import resize_picture
from dataloaders.image_files import image_key
from dataloaders.pixels import open_image, upright
from dataloaders.prepare.conversion import Conversion, Options, find_files, prepare_labelled
from utils.errors import UserError

# The ground truth's order.
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
# The set's photographs have 600 x 450 pixels; the limit bounds what a hostile file can claim.
MAX_PIXELS = 50_000_000


def prepare_isic(
    labels: Path,
    metadata: Path | None,
    image_dir: list[Path],
    out: Path,
    size: int,
    options: Options,
) -> None:
    """Make a `size` x `size` picture of every labelled photograph, and write labels.csv with
    ImageID, lesion_id and dataset (where known) and the seven classes.

    labels: the ISIC 2018 ground truth (image and one column per class) or HAM10000_metadata.csv
    (image_id, dx, lesion_id, in the original also dataset). metadata: the latter, to add lesion_id
    and dataset to the former. image_dir: folders of photographs; of two files for an image the one
    in the earlier folder counts.
    Raises `UserError` as `prepare_labelled` does, and for tables that are not what they should be.
    """
    table = read_isic_labels(labels, metadata)
    if "lesion_id" not in table:
        print(
            f"{labels} has no lesion_id: photographs of one lesion can come to stand on both "
            "sides of a split; add --metadata HAM10000_metadata.csv"
        )
    files = {}
    for folder in reversed(image_dir):
        files.update(find_files(folder, PHOTO_SUFFIXES, "--image_dir"))
    settings = {"command": "prepare isic", "preprocessing": {"size": size}}
    prepare_labelled(
        Conversion(out, settings, ()),
        table,
        files,
        partial(convert_photograph, size=size),
        options,
        {
            "image_dir": [str(folder) for folder in image_dir],
            "labels": str(labels),
            "metadata": str(metadata) if metadata else None,
            "classes": list(CLASSES),
        },
    )


def convert_photograph(path: str, size: int) -> tuple[np.ndarray, tuple[()]]:
    """The photograph as (size, size, 3) uint8, stretched where it is not square.

    Raises `ValueError` with a one-line reason for what is no whole photograph.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as photograph:
                if photograph.width * photograph.height > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS:,} pixels")
                return resize_picture(upright(photograph).convert("RGB"), size), ()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged or no photograph ({type(error).__name__})") from None


def read_isic_labels(labels: Path, metadata: Path | None) -> pd.DataFrame:
    """One row per image: lesion_id and dataset where known, then the seven classes as 0/1 uint8.

    The index holds the images' names. See `prepare_isic` for the files. Exact duplicates are
    dropped. Raises `UserError`, naming the file and the image, for anything else that is wrong.
    """
    table = _read_table(labels, "--labels")
    if set(CLASSES) <= set(table.columns):
        classes = _ground_truth_classes(labels, table)
    elif "dx" in table.columns:
        classes = _diagnosis_classes(labels, table)
    else:
        raise UserError(
            f"--labels {labels} has neither the columns {','.join(CLASSES)} nor dx: give "
            "ISIC2018_Task3_Training_GroundTruth.csv or HAM10000_metadata.csv"
        )
    known = table if metadata is None else _read_table(metadata, "--metadata")
    groups = known.reindex(table.index)[
        [name for name in ("lesion_id", "dataset") if name in known]
    ]
    unknown = (groups.isna() | (groups == "")).any(axis=1)
    if unknown.any():
        raise UserError(
            f"{metadata or labels} has no {' or '.join(groups.columns)} for {unknown.idxmax()}"
        )
    return pd.concat([groups, classes], axis=1)


def _read_table(path: Path, flag: str) -> pd.DataFrame:
    """The CSV as strings, indexed by its image column, without rows that repeat another."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator_in(path))
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{flag} {path} cannot be read as CSV: {str(error).strip()}") from None
    key = next((name for name in ("image", "image_id") if name in table.columns), None)
    if key is None:
        raise UserError(f"{flag} {path} has no column image or image_id")
    if table.empty:
        raise UserError(f"{flag} {path} has no rows below its header")
    table[key] = table[key].map(image_key)
    table = table.drop_duplicates().set_index(key)
    table.index.name = "ImageID"
    if not table.index.is_unique:
        image = table.index[table.index.duplicated()][0]
        raise UserError(f"{flag} {path}: {image} has two rows that contradict each other")
    return table


def _ground_truth_classes(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    values = table[list(CLASSES)].apply(pd.to_numeric, errors="coerce")
    wrong = ~values.isin((0, 1)).all(axis=1) | (values.sum(axis=1) != 1)
    if wrong.any():
        raise UserError(f"{path}: {wrong.idxmax()} has not exactly one 1 and otherwise 0")
    return values.astype(np.uint8)


def _diagnosis_classes(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    diagnosis = table["dx"].str.upper()
    unknown = ~diagnosis.isin(CLASSES)
    if unknown.any():
        image = unknown.idxmax()
        raise UserError(
            f"{path}: {image} has dx {table['dx'][image]!r}, which is none of "
            f"{', '.join(CLASSES).lower()}"
        )
    return pd.DataFrame({name: (diagnosis == name).astype(np.uint8) for name in CLASSES})
