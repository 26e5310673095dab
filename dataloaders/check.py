"""What can be known before any network is built: the tables, every image's header, the disk."""

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from PIL import Image

from dataloaders.csv_cells import quoted
from dataloaders.pixels import ImageHeader, read_header
from dataloaders.split_report import class_set_table, shared_values
from dataloaders.table import ImageTable, resolve_images
from utils.errors import UserError

# More than the cores: on a network disk, opening a file is mostly waiting.
_THREADS = 8
_CHUNK = 256
_SHOWN_KINDS = 3


def check_data(
    tables: Mapping[str, ImageTable],
    root_path: str | Path,
    needed_bytes: Mapping[Path, int] | None = None,
) -> list[str]:
    """Check the tables of a run ("train", "val", "test", ...) and return lines to print.

    Reads the header of every image, not its pixels. `needed_bytes` says how much the run will
    write under each folder, which need not exist yet. Raises `UserError` where the class columns
    differ between the tables, an image is missing, unreadable or above 16 megapixels, or the disk
    is too small. What is only questionable (shared patients or images, mixed sizes) is stated.
    """
    refuse_different_classes(tables)
    paths = {name: resolve_images(table, root_path) for name, table in tables.items()}
    class_names = next(iter(tables.values())).class_names
    lines = [
        f"{name}: {len(table)} images of {table.source}, {table.dropped} rows left out"
        for name, table in tables.items()
    ]
    lines.append(class_set_table(class_names, {n: table.labels for n, table in tables.items()}))
    lines += _overlap_lines(tables, paths)
    lines += _check_headers(tables, paths)
    return lines + _check_disk(needed_bytes or {})


def refuse_different_classes(tables: Mapping[str, ImageTable]) -> None:
    """Raise `UserError` unless every table has the same classes in the same order."""
    first, *others = tables.values()
    for other in others:
        if other.class_names != first.class_names:
            raise UserError(
                f"{other.source}: its classes are {quoted(','.join(other.class_names))}, those of "
                f"{first.source} are {quoted(','.join(first.class_names))}; give every CSV the "
                "same class columns in the same order"
            )


def _overlap_lines(
    tables: Mapping[str, ImageTable], paths: Mapping[str, Sequence[Path]]
) -> list[str]:
    """What the first table (the training set) shares with each of the others."""
    first, *others = tables
    lines = []
    for other in others:
        images, _ = shared_values([paths[first], paths[other]])
        if images:
            lines.append(f"warning: {images} images stand both in {first} and in {other}")
        groups = [tables[first].groups, tables[other].groups]
        if None in groups:
            lines.append(
                f"patients or lesions shared by {first} and {other}: unknown, no such column"
            )
            continue
        shared, total = shared_values(groups)
        prefix = "warning: " if shared else ""
        lines.append(
            f"{prefix}patients or lesions shared by {first} and {other}: {shared} of {total}"
        )
    return lines


def _check_headers(
    tables: Mapping[str, ImageTable], paths: Mapping[str, Sequence[Path]]
) -> list[str]:
    sizes, modes = Counter(), Counter()
    for name, table in tables.items():
        headers = _read_headers(paths[name])
        faults = [row for row, header in enumerate(headers) if isinstance(header, str)]
        if faults:
            row = faults[0]
            others = f" ({len(faults) - 1} more such images)" if faults[1:] else ""
            raise UserError(
                f"{table.source} line {table.line_numbers[row]}: image {paths[name][row]}: "
                f"{headers[row]}{others}; mend the file or delete the row"
            )
        sizes.update("{}x{}".format(*header.size) for header in headers)
        modes.update(header.mode for header in headers)
    return [f"image sizes: {_most_common(sizes)}; modes: {_most_common(modes)}"]


def _read_headers(paths: Sequence[Path]) -> list[ImageHeader | str]:
    """The header of each image, or what is wrong with it."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        # Large pictures are refused by name; PIL's warning has none.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return list(
            chain.from_iterable(pool.map(lambda chunk: [*map(_header_or_fault, chunk)], chunks))
        )


def _header_or_fault(path: Path) -> ImageHeader | str:
    try:
        return read_header(path)
    except ValueError as fault:
        return str(fault)


def _most_common(kinds: Counter) -> str:
    shown = [f"{kind} ({count})" for kind, count in kinds.most_common(_SHOWN_KINDS)]
    if len(kinds) > _SHOWN_KINDS:
        shown.append(f"{len(kinds) - _SHOWN_KINDS} others")
    return ", ".join(shown)


def _check_disk(needed_bytes: Mapping[Path, int]) -> list[str]:
    """Folders on one disk are added up before they are compared with what is free on it."""
    folders, needed = {}, Counter()
    for folder, size in needed_bytes.items():
        existing = _existing_parent(Path(folder))
        device = os.stat(existing).st_dev
        folders.setdefault(device, (folder, existing))
        needed[device] += size
    lines = []
    for device, (folder, existing) in folders.items():
        free = shutil.disk_usage(existing).free
        need = f"about {needed[device] / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        if needed[device] > free:
            raise UserError(
                f"{folder}: the disk is too small, {need}; free some or write elsewhere"
            )
        lines.append(f"disk of {folder}: {need}")
    return lines


def _existing_parent(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
