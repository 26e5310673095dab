"""A table of labelled images and the folders of their files -> pictures and labels.csv."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dataloaders.conversion import Conversion, Rejected, Source
from dataloaders.worker_pool import Converter
from utils.errors import UserError


class Options(NamedTuple):
    """max_bad: more rejected files than this is an error. allow_missing: labelled images without
    a file are left out and not counted as rejected. workers: processes."""

    max_bad: int
    allow_missing: bool
    workers: int


def prepare_labelled(
    conversion: Conversion,
    table: pd.DataFrame,
    files: dict[str, Source],
    convert: Converter,
    options: Options,
    manifest: dict,
) -> None:
    """Convert the files of the images in `table` (index: image names) and write labels.csv:
    ImageID, the converter's record, the columns of `table`.

    `manifest` is added to manifest.json. Raises `UserError` before the work where more than
    `options.max_bad` images have no file, and after it where more files, or all, were rejected.
    """
    sources = [files[image] for image in table.index if image in files]
    missing = [
        Rejected(image, "no file for this labelled image")
        for image in table.index
        if image not in files
    ]
    unlabelled = len(files) - len(sources)
    if missing or unlabelled:
        print(f"{len(missing):,} labelled images have no file, {unlabelled:,} files have no label")
    if not sources:
        raise UserError(
            f"none of the labelled images, such as {table.index[0]}, has a file: do the labels "
            "and the folder belong together?"
        )
    if len(missing) > options.max_bad and not options.allow_missing:
        raise UserError(
            f"{len(missing):,} of {len(table):,} labelled images have no file: complete the "
            "folder, or add --allow_missing to prepare those that are there"
        )
    records, rejected = conversion.run(sources, convert, options.workers)
    labels = table.loc[records["ImageID"].str.removesuffix(".png")].reset_index(drop=True)
    conversion.finish(
        pd.concat([records, labels], axis=1),
        rejected + missing,
        {**manifest, "images_without_file": len(missing), "files_without_label": unlabelled},
    )
    counted = rejected if options.allow_missing else rejected + missing
    if labels.empty or len(counted) > options.max_bad:
        (reason, count), *_ = Counter(bad.reason for bad in rejected + missing).most_common(1)
        limit = "all there are" if labels.empty else f"more than --max_bad {options.max_bad}"
        raise UserError(
            f"{len(counted):,} files rejected, {limit} (most often, {count:,}: {reason}): see "
            f"{conversion.folder / 'rejected.csv'}; the same command tries them again"
        )


def find_files(folder: Path, suffixes: tuple[str, ...], flag: str) -> dict[str, Source]:
    """The files directly in `folder` with one of `suffixes` (lower case), by name without it.

    Raises `UserError`, naming `flag`, where there are none.
    """
    try:
        with os.scandir(folder) as entries:
            files = {
                Path(entry.name).stem: Source(
                    Path(entry.name).stem, entry.path, entry.stat().st_size
                )
                for entry in entries
                if entry.name.lower().endswith(suffixes) and entry.is_file()
            }
    except OSError as error:
        raise UserError(f"{flag} {folder}: {error.strerror}") from None
    if not files:
        raise UserError(
            f"{flag} {folder} has no {' or '.join(suffixes)} files{_hint(folder, suffixes)}"
        )
    return files


def _hint(folder: Path, suffixes: tuple[str, ...]) -> str:
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        with os.scandir(subfolder) as entries:
            if any(entry.name.lower().endswith(suffixes) for entry in entries):
                return f", its subfolder {subfolder} has: give that one"
    return ": unzip them first"
