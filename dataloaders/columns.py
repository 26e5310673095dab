"""The header of a CSV of images: which column is what, and which header is a known mistake."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from dataloaders.csv_cells import CsvText, quoted
from utils.errors import UserError

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
    image_columns = [name for name in IMAGE_COLUMNS if name in header]
    if not image_columns:
        raise UserError(
            f"{path} line 1: no image column; name it ImageID or ID (the header is "
            f"{quoted(','.join(header))}{spelling_hint(header, IMAGE_COLUMNS)})"
        )
    if len(image_columns) > 1:
        raise UserError(
            f"{path} line 1: two image columns, {' and '.join(image_columns)}; keep one"
        )
    special = {"image": image_columns[0]}
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
