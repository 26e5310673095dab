"""Names of files, studies and patients as numbers, and the key that stays with its user.

A folder of scans is often called after its patient, and a DICOM header names him. What `test.py`
writes about DICOM files, and about what is predicted with them, is shown around: it names nobody,
unless --keep_names says so. Pictures and NIfTI files alone keep their names.
"""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from dataloaders.prepare.conversion import Rejected
from predict.files import Slice
from predict.inference import FilePredictions
from utils.errors import UserError
from utils.files import write_text
from utils.table_files import to_csv

KEY_FILE = "key.csv"
HEADER = ["pseudonym", "name"]
SOURCE = "source"


class Pseudonyms:
    """file-00001, study-001 and patient-001, ..., in the order in which their names are met.

    source: what was typed, the scans' folder; the key names it, and nothing else does. A number
    once given in a folder of results stays with its name there, whatever is predicted later:
    pictures of before may still lie beside the key.
    """

    def __init__(self, source: Iterable[Path]):
        self.source = os.pathsep.join(os.path.abspath(path) for path in source)
        self.known: dict[tuple[str, str], str] = {}
        self.counts = {"file": 0, "study": 0, "patient": 0}

    def begin(self, folder: Path, files: Iterable[str]) -> None:
        """Keep the numbers of the key in `folder`, and number the `files` before any is read: the
        slices of a file then have its number, and who has one depends on nothing that is found.

        Raises `UserError` where the key is that of another source.
        """
        if (folder / KEY_FILE).exists():
            rows = _rows_of(folder)
            if dict(rows).get(SOURCE) != self.source:
                raise UserError(
                    f"{folder}: has predictions of other scans, and the key to their names; name "
                    "another folder with --out"
                )
            for pseudonym, name in rows:
                kind, _, number = pseudonym.partition("-")
                if kind in self.counts and number.isdecimal():
                    self.known[kind, name] = pseudonym
                    self.counts[kind] = max(self.counts[kind], int(number))
        for name in files:
            self.of("file", name)

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name; "" stays "", who has no name needs none."""
        if not name:
            return ""
        if (kind, name) not in self.known:
            whole, bracket, place = name.rpartition("[")
            if bracket and (kind, whole) in self.known:  # a slice of a volume
                return self.known[kind, whole] + bracket + place
            self.counts[kind] += 1
            width = 5 if kind == "file" else 3
            self.known[kind, name] = f"{kind}-{self.counts[kind]:0{width}}"
        return self.known[kind, name]

    def of_slice(self, found: Slice) -> Slice:
        """The same slice under pseudonyms."""
        return Slice(
            self.of("file", found.file),
            self.of("study", found.study),
            self.of("patient", found.patient),
            found.note,
        )

    def of_all(self, predictions: FilePredictions) -> FilePredictions:
        """The same predictions under pseudonyms, of what was rejected, too."""
        outcomes = [
            Rejected(self.of("file", item.file), item.reason)
            if isinstance(item, Rejected)
            else self.of_slice(item)
            for item in predictions.outcomes
        ]
        return predictions._replace(outcomes=outcomes)

    def write_key(self, folder: Path) -> Path:
        """key.csv: whose pseudonym is whose; for its owner alone to read."""
        path = folder / KEY_FILE
        rows = [[SOURCE, self.source]]
        rows += [[pseudonym, name] for (_, name), pseudonym in self.known.items()]
        write_text(path, to_csv(HEADER, rows, exact=True))
        path.chmod(0o600)
        return path


def folder_for(parent: Path, stem: str, names: Pseudonyms) -> Path:
    """Where results of the same source lie already, else a new one: STEM-scans-1, -2, ..."""
    number = 1
    while (folder := parent / f"{stem}-scans-{number}").exists():
        if _source_of(folder) == names.source:
            return folder
        number += 1
    return folder


def _source_of(folder: Path) -> str | None:
    return dict(_rows_of(folder)).get(SOURCE)


def _rows_of(folder: Path) -> list[tuple[str, str]]:
    """(pseudonym, name) of a key; none where it cannot be read."""
    try:
        with open(folder / KEY_FILE, newline="", encoding="utf-8") as file:
            return [(pseudonym, name) for pseudonym, name in csv.reader(file)]
    except (OSError, ValueError):
        return []
