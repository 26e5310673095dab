"""Names of images, as label files have them, and the files that they mean."""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from dataloaders.columns import quoted
from dataloaders.table import ImageTable
from utils.errors import UserError

# Tried in this order for a name that is no file as it stands.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_SUFFIX = re.compile(r"\.(png|jpe?g|bmp|tiff?|gif|webp|dcm|nii(\.gz)?)$", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PARENT = re.compile(r"(^|[\\/])\.\.([\\/]|$)")


def image_key(name: str) -> str:
    """The form in which names of images are compared: without an image's suffix, whatever its
    letter case, and in one Unicode form (macOS writes an umlaut as two characters)."""
    return _SUFFIX.sub("", unicodedata.normalize("NFC", name))


def resolve_images(
    table: ImageTable, root_path: str | Path, follow_links: bool = False
) -> list[Path]:
    """The image files of `table` under the folder `root_path`, in the table's order.

    A name may hold folders ("part_1/a.png") and may lack its suffix: then .png, .jpg and .jpeg are
    tried in that order. A suffix's letter case and the Unicode form do not matter where there is
    no file of exactly that name. Raises `UserError` for a name that leads out of `root_path`
    (absolute, "..", and unless `follow_links` through a symbolic link), for a file that two rows
    name, and for missing images.
    """
    root = Path(root_path)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; check --root_path")
    folders: dict[str, Folder] = {}
    rows_by_file: dict[str, int] = {}
    missing = []
    for row, name in enumerate(table.names):
        folder, _, file_name = _relative_name(table, row).rpartition("/")
        if folder not in folders:
            folders[folder] = Folder(_list_folder(table, row, root, folder, follow_links))
        entry = folders[folder].find(file_name)
        if entry is None:
            missing.append(row)
            continue
        if entry.is_symlink() and not follow_links:
            _refuse_outside(table, row, entry.path, root)
        first_row = rows_by_file.setdefault(entry.path, row)
        if first_row != row:
            raise UserError(
                f"{_where(table, row)}: image {quoted(name)} is the same file as in line "
                f"{table.line_numbers[first_row]}; keep one row per image"
            )
    if missing:
        raise _missing_error(table, root, missing)
    return list(map(Path, rows_by_file))


def _where(table: ImageTable, row: int) -> str:
    return f"{table.source} line {table.line_numbers[row]}"


def _relative_name(table: ImageTable, row: int) -> str:
    """The row's image name without empty and "." parts, if it cannot lead out of its folder."""
    name = table.names[row]
    if name[0] in "/\\" or _DRIVE.match(name) or (".." in name and _PARENT.search(name)):
        raise UserError(
            f"{_where(table, row)}: image {quoted(name)} leads out of --root_path; "
            "write names relative to that folder"
        )
    if "//" in name or "./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def _list_folder(
    table: ImageTable, row: int, root: Path, folder: str, follow_links: bool
) -> list[os.DirEntry]:
    """The entries of one folder; one scan is far cheaper than asking for each image."""
    path = os.path.join(root, folder)
    if not follow_links:
        _refuse_outside(table, row, path, root)
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise UserError(
            f"{_where(table, row)}: folder {quoted(path)} cannot be read ({error})"
        ) from None


class Folder:
    """The entries of a folder, found by name as `resolve_images` says."""

    def __init__(self, entries: Iterable[os.DirEntry]):
        self._exact: dict[str, os.DirEntry] = {}
        self._alike: dict[str, os.DirEntry] = {}
        for entry in sorted(entries, key=lambda entry: entry.name):
            self._exact[entry.name] = entry
            self._alike.setdefault(_with_plain_suffix(entry.name), entry)

    def find(self, name: str) -> os.DirEntry | None:
        """The file of that name, or of that name and a suffix; None where there is none."""
        wanted = [name + suffix for suffix in ("", *IMAGE_SUFFIXES)]
        exact = (self._exact.get(one) for one in wanted)
        alike = (self._alike.get(_with_plain_suffix(one)) for one in wanted)
        for entry in chain(exact, alike):  # nearly always the first of them
            with contextlib.suppress(OSError):  # a symbolic link that leads to itself is no file
                if entry is not None and entry.is_file():
                    return entry
        return None


def _with_plain_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def _refuse_outside(table: ImageTable, row: int, path: str, root: Path) -> None:
    real_root = os.path.realpath(root)
    if os.path.commonpath([os.path.realpath(path), real_root]) != real_root:
        raise UserError(
            f"{_where(table, row)}: image {quoted(table.names[row])} leads out of --root_path "
            "through a symbolic link; copy the file, choose another --root_path, or add "
            "--follow_links"
        )


def _missing_error(table: ImageTable, root: Path, missing: list[int]) -> UserError:
    name = table.names[missing[0]]
    others = f" ({len(missing) - 1} more of {len(table)} are missing)" if missing[1:] else ""
    return UserError(
        f"{_where(table, missing[0])}: image {quoted(name)} is not under {root}{others}; "
        f"{_missing_remedy(name, root)}"
    )


def _missing_remedy(name: str, root: Path) -> str:
    if "\\" in name:
        return "write folders with /, not \\"
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if os.path.isfile(os.path.join(entry.path, name)):
                return f"give --root_path {entry.path}"
    for suffix in IMAGE_SUFFIXES:
        found = os.path.splitext(name)[0] + suffix
        if os.path.isfile(os.path.join(root, found)):
            return f"there is {quoted(found)}; write that, or names without suffix"
    return "check --root_path, or delete the row"
