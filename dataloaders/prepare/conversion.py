"""A folder of source files -> a folder of PNG pictures: resumable, with an estimate and progress.

The output folder holds images/, labels.csv, rejected.csv, manifest.json, and progress.csv: one
line per finished picture, from which a later run knows what is done.
"""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import IO, NamedTuple

import numpy as np
import pandas as pd
import PIL
import pydicom
from tqdm import tqdm

from dataloaders.image_files import image_key
from utils.errors import UserError
from utils.files import FolderLock, atomic_write, sweep_temporary_files, write_text
from utils.json_files import read_json
from utils.table_files import to_csv
from utils.workers import Converter, Outcome, Task, WorkerPool

SAMPLES_PER_WORKER = 8
# A record column that stays out of labels.csv: what was irregular about a file that was read.
NOTE = "note"


class Source(NamedTuple):
    """A file to convert: the image's name without suffix, the file, its size in bytes."""

    image: str
    path: str
    size: int


class Rejected(NamedTuple):
    """A file that gives no picture (or an image without a file), and why, in one line."""

    file: str
    reason: str


class Conversion:
    """One output folder.

    settings: a JSON object that decides how pictures are made; a folder made with other settings
    is refused (`UserError`), because two kinds of pictures would be mixed.
    record_columns: the names of what the converter returns beside each picture.
    """

    def __init__(self, folder: Path, settings: dict, record_columns: Sequence[str]):
        self.folder = folder
        self.images = folder / "images"
        self.settings = settings
        self.record_columns = list(record_columns)
        self._check_settings()

    def run(
        self, sources: Sequence[Source], convert: Converter, workers: int
    ) -> tuple[pd.DataFrame, list[Rejected]]:
        """Convert what is missing, on `workers` processes.

        Returns a table of the finished pictures, ImageID (the PNG's name) and the record columns
        in the order of `sources`, and the rejected files. `UserError` where another process
        converts into the same folder.
        """
        lock = FolderLock(self.folder, "--out")
        try:
            return self._run(sources, convert, workers)
        finally:
            lock.release(keep_folder=True)

    def _run(
        self, sources: Sequence[Source], convert: Converter, workers: int
    ) -> tuple[pd.DataFrame, list[Rejected]]:
        self._make_folder()
        done = self._read_progress()
        tasks = [Task(f"{source.image}.png", source.path) for source in sources]
        missing = [task for task in tasks if task.name not in done]
        print(
            f"{len(sources):,} files of {readable_size(sum(source.size for source in sources))}; "
            f"{len(sources) - len(missing):,} are done already",
            flush=True,
        )
        rejected = self._convert(missing, convert, workers, done) if missing else []
        names = [task.name for task in tasks if task.name in done]
        table = pd.DataFrame([done[name] for name in names], columns=self.record_columns, dtype=str)
        table.insert(0, "ImageID", pd.Series(names, dtype=str))
        return table, sorted(rejected)

    def finish(self, labels: pd.DataFrame, rejected: Sequence[Rejected], counts: dict) -> None:
        """Write labels.csv, rejected.csv and the manifest with `counts`."""
        with atomic_write(self.folder / "labels.csv", "w") as file:
            labels.to_csv(file, index=False, lineterminator="\n")
        write_text(self.folder / "rejected.csv", to_csv(Rejected._fields, rejected))
        self._write_manifest(
            {**counts, "images": len(labels), "rejected": len(rejected), "complete": True}
        )
        print(f"{len(labels):,} images in {self.folder / 'labels.csv'}, {len(rejected):,} rejected")

    def _write_manifest(self, contents: dict) -> None:
        """Write manifest.json: the settings, the versions of what made the pictures, `contents`."""
        versions = {module.__name__: module.__version__ for module in (pydicom, PIL, np)}
        manifest = {**self.settings, "versions": versions, **contents}
        write_text(self.folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")

    def _make_folder(self) -> None:
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.folder}: {error.strerror}") from None
        sweep_temporary_files(self.images)
        self._write_manifest({"complete": False})

    def _convert(
        self, tasks: list[Task], convert: Converter, workers: int, done: dict[str, Sequence[str]]
    ) -> list[Rejected]:
        """Convert `tasks`, add the finished ones to `done` and to progress.csv as they come."""
        rejected = []
        with self._open_progress() as progress_file:
            progress = csv.writer(progress_file, lineterminator="\n")
            with WorkerPool(convert, self.images, min(workers, len(tasks))) as pool:
                for outcome in self._outcomes(pool, tasks, workers):
                    if outcome.rejected:
                        rejected.append(Rejected(outcome.task.source, outcome.rejected))
                        continue
                    done[outcome.task.name] = outcome.record
                    progress.writerow([outcome.task.name, outcome.size, *outcome.record])
        return rejected

    def _outcomes(self, pool: WorkerPool, tasks: list[Task], workers: int) -> Iterator[Outcome]:
        """The outcomes of a sample spread over the files, an estimate from them, and the rest."""
        step = max(1, len(tasks) // (SAMPLES_PER_WORKER * workers))
        sample = [task for at, task in enumerate(tasks) if at % step == 0]
        rest = [task for at, task in enumerate(tasks) if at % step]
        outcomes = []
        for outcome in pool.run(sample):
            outcomes.append(outcome)
            yield outcome
        if rest:
            self._print_estimate(outcomes, len(rest), workers)
            yield from tqdm(
                pool.run(rest), total=len(tasks), initial=len(sample), unit="file", mininterval=0.5
            )

    def _print_estimate(self, sample: list[Outcome], remaining: int, workers: int) -> None:
        finished = [outcome for outcome in sample if not outcome.rejected]
        if not finished:
            return
        seconds = median(outcome.seconds for outcome in finished) * remaining / workers
        size = median(outcome.size for outcome in finished) * remaining
        print(
            f"{remaining:,} to go: about {readable_size(size)} of pictures, "
            f"{_readable_duration(seconds)} with {workers} processes",
            flush=True,
        )
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise UserError(
                f"{self.folder} has {readable_size(free)} of disk left: make room, or choose "
                "another --out"
            )

    def _check_settings(self) -> None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return
        manifest = read_json(path, advice="choose another --out")
        found = {key: manifest.get(key) for key in self.settings}
        if found != self.settings:
            raise UserError(
                f"{self.folder} was made with {found}, not with {self.settings}: choose another "
                "--out"
            )

    def _open_progress(self) -> IO[str]:
        """progress.csv for appending, a line at a time; a line cut off by a kill is dropped."""
        path = self.folder / "progress.csv"
        with open(path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        return open(path, "a", encoding="utf-8", newline="", buffering=1)

    def _read_progress(self) -> dict[str, Sequence[str]]:
        """PNG name -> record, of the pictures that are there in their full size."""
        with os.scandir(self.images) as entries:
            sizes = {entry.name: str(entry.stat().st_size) for entry in entries}
        self._open_progress().close()
        fields = 2 + len(self.record_columns)
        path = self.folder / "progress.csv"
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == fields]
        return {name: record for name, size, *record in rows if sizes.get(name) == size}


def readable_size(size: float) -> str:
    """`size` bytes in words: "3.1 GB", "12 MB"."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{max(size / 1e6, 0.1):.1f} MB"


def _readable_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


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
    notes = Counter(note for note in records.pop(NOTE) if note) if NOTE in records else {}
    for note, count in notes.items():
        print(f"{count:,} files were read although irregular: {note} (which: progress.csv)")
    labels = table.loc[records["ImageID"].str.removesuffix(".png")].reset_index(drop=True)
    # A file's list need not name the hundred thousand images of the set that one left out.
    counted = rejected if options.allow_missing else rejected + missing
    conversion.finish(
        pd.concat([records, labels], axis=1),
        counted,
        {
            **manifest,
            "images_without_file": len(missing),
            "files_without_label": unlabelled,
            "notes": dict(notes),
        },
    )
    if labels.empty or len(counted) > options.max_bad:
        (reason, count), *_ = Counter(bad.reason for bad in rejected + missing).most_common(1)
        limit = "all there are" if labels.empty else f"more than --max_bad {options.max_bad}"
        raise UserError(
            f"{len(counted):,} files rejected, {limit} (most often, {count:,}: {reason}): see "
            f"{conversion.folder / 'rejected.csv'}; the same command tries them again"
        )


def find_files(folder: Path, suffixes: tuple[str, ...], flag: str) -> dict[str, Source]:
    """The files directly in `folder` with one of `suffixes` (lower case), by their `image_key`.

    Raises `UserError`, naming `flag`, where there are none.
    """
    try:
        with os.scandir(folder) as entries:
            files = {
                image_key(entry.name): Source(
                    image_key(entry.name), entry.path, entry.stat().st_size
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
