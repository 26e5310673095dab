"""A CSV file as text cells, one record a line; everything that is no such file is refused."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError

# First bytes of what people give instead of a CSV -> what it is and what to do.
_MAGIC = {
    b"PK\x03\x04": "a ZIP, Excel or .npz file; save a sheet as CSV (an .npz goes to --medmnist)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "compressed with gzip; run gunzip on it first",
    b"\x89PNG": "a PNG image; give the CSV file that lists the images",
    b"\xff\xd8\xff": "a JPEG image; give the CSV file that lists the images",
    b"\xff\xfe": "UTF-16 text; save it as CSV UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as CSV UTF-8",
}
_SHOWN_CHARACTERS = 60


def quoted(text: str) -> str:
    """`text` in quotes, on one line and at most some 60 characters long, for a message."""
    if len(text) > _SHOWN_CHARACTERS:
        return repr(text[:_SHOWN_CHARACTERS]) + "..."
    return repr(text)


@dataclass(frozen=True)
class CsvText:
    """A CSV file that was read but whose rows are not parsed yet.

    `header` holds the stripped cells of line 1; `text` is the whole file with Unix line ends.
    """

    path: Path
    header: list[str]
    text: str

    def lines(self) -> list[str]:
        """Every line as written, without its end: line n is `lines()[n - 1]`."""
        return self.text.split("\n")

    def columns(self) -> tuple[list[tuple[str, ...]], np.ndarray]:
        """The stripped cells of every column, (columns of N cells), and (N,) line numbers from 1.

        Blank lines are skipped. Raises `UserError` for a row with another number of cells than
        the header, a broken quote, a huge cell, and a file without rows.
        """
        rows, line_numbers = [], []
        for line_number, row in _records(self.path, self.lines()[1:], first_line=2):
            if len(row) != len(self.header):
                raise UserError(
                    f"{self.path} line {line_number}: {len(row)} cells where the header has "
                    f"{len(self.header)}; check for a missing or an extra comma"
                )
            rows.append(row)
            line_numbers.append(line_number)
        if not rows:
            raise UserError(f"{self.path}: a header but no rows; add one row for each image")
        columns = [tuple(map(str.strip, column)) for column in zip(*rows, strict=True)]
        return columns, np.array(line_numbers, dtype=np.int64)


def read_csv_text(path: str | Path) -> CsvText:
    """Read a comma-separated UTF-8 file (with or without BOM; any line ends).

    Raises `UserError` where the file is missing, empty, binary, not UTF-8 or separated by
    something else than commas.
    """
    path = Path(path)
    text = _decode(path, _read_bytes(path))
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give a CSV with a header and a row per image")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    header = [cell.strip() for cell in _parse_header(path, text.split("\n", 1)[0])]
    if len(header) == 1:
        _refuse_other_separator(path, header[0])
    return CsvText(path, header, text)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UserError(f"{path}: this is a folder; give the CSV file itself")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; give a CSV file")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path of the CSV") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{quoted(str(path))}: cannot be read ({error})") from None


def _decode(path: Path, content: bytes) -> str:
    for magic, explanation in _MAGIC.items():
        if content.startswith(magic):
            raise UserError(f"{path}: not a CSV but {explanation}")
    if (position := content.find(b"\0")) >= 0:
        raise UserError(
            f"{path} line {_line_at(content, position)}: a NUL byte; this is not a text file, "
            "give a CSV or write this one again"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} line {_line_at(content, error.start)}: not UTF-8; save it as CSV UTF-8"
        ) from None


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def _parse_header(path: Path, line: str) -> list[str]:
    if not line.strip():
        raise UserError(f"{path} line 1: blank; the first line must name the columns")
    return next(_records(path, [line]))[1]


def _records(path: Path, lines: list[str], first_line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    reader = csv.reader(lines, strict=True)
    line_number = first_line
    try:
        for row in reader:
            if reader.line_num != line_number - first_line + 1:
                raise csv.Error("a quote that is not closed on its line")
            if row:
                yield line_number, row
            line_number += 1
    except csv.Error as error:
        raise UserError(f"{path} line {line_number}: {error}; mend this line's quotes") from None


def _refuse_other_separator(path: Path, header: str) -> None:
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if separator in header:
            raise UserError(f"{path} line 1: separated by {name}; save it separated by commas")
