"""The header of a CSV of images: which column is what, and which header is a known mistake."""

import csv
import difflib
import re
from collections.abc import Iterator, Sequence
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
    separator: str = ","

    def lines(self) -> list[str]:
        """Every line as written, without its end: line n is `lines()[n - 1]`."""
        return self.text.split("\n")

    def columns(self) -> tuple[list[tuple[str, ...]], np.ndarray]:
        """The stripped cells of every column, (columns of N cells), and (N,) line numbers from 1.

        Blank lines are skipped. Raises `UserError` for a row with another number of cells than
        the header, a broken quote, a huge cell, and a file without rows.
        """
        rows, line_numbers = [], []
        for line_number, row in _records(self.path, self.lines()[1:], 2, self.separator):
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
    """Read a UTF-8 file (with or without BOM; any line ends) separated by commas, semicolons or
    tabs.

    Raises `UserError` where the file is missing, empty, binary, not UTF-8 or separated by
    something else.
    """
    path = Path(path)
    text = _decode(path, _read_bytes(path))
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give a CSV with a header and a row per image")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = text.split("\n", 1)[0]
    separator = separator_of(first)
    header = [cell.strip() for cell in _parse_header(path, first, separator)]
    if len(header) == 1 and "|" in first:
        raise UserError(f"{path} line 1: separated by bars; save it separated by commas")
    return CsvText(path, header, text, separator)


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


def _parse_header(path: Path, line: str, separator: str) -> list[str]:
    if not line.strip():
        raise UserError(f"{path} line 1: blank; the first line must name the columns")
    return next(_records(path, [line], 1, separator))[1]


def _records(
    path: Path, lines: list[str], first_line: int, separator: str
) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    reader = csv.reader(lines, strict=True, delimiter=separator)
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


def separator_of(header: str) -> str:
    """What separates the cells of a file with this first line: a comma, a semicolon (Excel, where
    the comma is the decimal point) or a tab (Dataverse)."""
    return max(",;\t", key=header.count)


def separator_in(path: Path) -> str:
    """`separator_of` a file's first line, for a reader that takes the file in pieces. `OSError` or
    `ValueError` as from reading it."""
    with open(path, encoding="utf-8-sig") as file:
        return separator_of(file.readline())


IMAGE_COLUMNS = ("ImageID", "ID", "image", "image_id")
GROUP_COLUMNS = ("PatientID", "lesion_id")
SITE_COLUMNS = ("site", "dataset")
CLIENT_COLUMN = "client"
KNOWN_COLUMNS = (*IMAGE_COLUMNS, *GROUP_COLUMNS, "StudyInstanceUID", *SITE_COLUMNS, CLIENT_COLUMN)

_RSNA_ROW = re.compile(r".+_(epidural|intraparenchymal|intraventricular|subarachnoid|subdural|any)")
_PREPARE_RSNA = "python -m dataloaders.prepare rsna --dicom_dir DIR --labels {} --out DIR"
_PREPARE_ISIC = "python -m dataloaders.prepare isic --help"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def find_special_columns(
    text: CsvText, group_column: str | None, site_column: str | None
) -> dict[str, str]:
    """Role ("image", "group", "site", "client") -> the column of the header that plays it."""
    path, header = text.path, text.header
    if set(header) == {"ID", "Label"}:
        raise _long_form_error(path)
    if "dx" in header:
        raise UserError(f"{path}: HAM10000's metadata, no class columns; see {_PREPARE_ISIC}")
    special = {"image": find_image_column(text)}
    for role, given, usual in (
        ("group", group_column, GROUP_COLUMNS),
        ("site", site_column, SITE_COLUMNS),
        ("client", None, (CLIENT_COLUMN,)),
    ):
        if given is not None and given not in header:
            raise UserError(
                f"{path} line 1: no column {quoted(given)} (--{role}); the header is "
                f"{quoted(','.join(header))}"
            )
        present = [name for name in usual if name in header]
        if given or present:
            special[role] = given or present[0]
    return special


def find_image_column(text: CsvText) -> str:
    """The column of the header that names the images."""
    path, header = text.path, text.header
    found = [name for name in IMAGE_COLUMNS if name in header]
    if not found:
        raise UserError(
            f"{path} line 1: no image column; name it ImageID or ID (the header is "
            f"{quoted(','.join(header))}{spelling_hint(header, IMAGE_COLUMNS)})"
        )
    if len(found) > 1:
        raise UserError(f"{path} line 1: two image columns, {' and '.join(found)}; keep one")
    return found[0]


def find_class_columns(text: CsvText, special: dict[str, str]) -> tuple[str, ...]:
    path, header = text.path, text.header
    known = {_plain(right): right for right in KNOWN_COLUMNS}
    seen = set()
    for number, name in enumerate(header, start=1):
        if not name:
            raise UserError(
                f"{path} line 1: column {number} has no name; delete it or name it "
                "(pandas writes such an index column unless index=False)"
            )
        if name in seen:
            raise UserError(f"{path} line 1: column {quoted(name)} stands twice; delete one")
        seen.add(name)
        right = known.get(_plain(name))
        if right and name not in KNOWN_COLUMNS and name not in special.values():
            raise UserError(f"{path} line 1: column {quoted(name)} is unknown; rename it {right}")
    not_classes = {*KNOWN_COLUMNS, *special.values()}
    class_names = tuple(name for name in header if name not in not_classes)
    if not class_names:
        raise UserError(f"{path} line 1: no class column; add one column of 0 and 1 per class")
    if "any" in class_names and len(class_names) > 1:
        raise UserError(
            f"{path} line 1: column 'any' only repeats whether another class is 1; delete it"
        )
    return class_names


def _long_form_error(path: Path) -> UserError:
    return UserError(
        f"{path}: Kaggle's long label file, one row per image and subtype, where one row per image "
        f"is needed; make it with: {_PREPARE_RSNA.format(path)}"
    )


def refuse_long_form(text: CsvText, class_names: tuple[str, ...], names: Sequence[str]) -> None:
    """The bug behind the slides' numbers: every (image, subtype) row taken for an image."""
    if len(class_names) > 1:
        return
    if _RSNA_ROW.fullmatch(names[0]):
        raise _long_form_error(text.path)
    raise UserError(
        f"{text.path} line 1: {quoted(class_names[0])} is the only class column and one class "
        "cannot be learnt; add one 0/1 column per class (also for the negative one)"
    )


def spelling_hint(names: Sequence[str], known: Sequence[str]) -> str:
    """' ; did you mean ...' where one of `names` is nearly one of `known`, else ''."""
    by_plain = {_plain(right): right for right in known}
    for name in names:
        close = difflib.get_close_matches(_plain(name[:100]), by_plain, n=1, cutoff=0.8)
        if close:
            return f"; did you mean {by_plain[close[0]]} by {quoted(name)}?"
    return ""
