"""The data of one federated run: three sets of images and each client's share of the first."""

import hashlib
import json
import os
import shutil
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.image_files import resolve_images
from dataloaders.likeness import describe_pictures
from dataloaders.medmnist import load_medmnist
from dataloaders.overlap import overlap_lines
from dataloaders.partition import (
    labelled_clients,
    labelled_fraction,
    split,
    split_by_column,
    split_by_site,
    split_dirichlet,
)
from dataloaders.pixels import ImageHeader, read_header
from dataloaders.preparation import read_preparation
from dataloaders.split import (
    Split,
    absent_class_warnings,
    class_client_table,
    class_set_table,
    is_published,
    load_published,
    load_split,
    missing_class_warnings,
)
from dataloaders.table import ImageTable, read_table
from options import refuse_small_images
from utils.errors import UserError
from utils.tensors import derive_seed
from utils.text import first_difference
from utils.workers import cancelling_pool


class FederatedData(NamedTuple):
    """table: the training images' names and labels. val is None where there is no such set.
    split: each client's rows of `train`, and which clients have labels. preprocessing: how files
    became images, for whoever uses the trained weights. table, train and split are None at a
    server whose clients hold their own images. num_training: how many those are together."""

    table: ImageTable | None
    train: ImageDataset | None
    val: ImageDataset | None
    test: ImageDataset
    split: Split | None
    preprocessing: dict
    num_training: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, the same in every set."""
        return self.test.class_names

    def fingerprints(self) -> dict[str, str]:
        """What identifies each set's images and labels, and who holds which ("clients")."""
        sets = {"train": self.train, "val": self.val, "test": self.test}
        found = {name: data.fingerprint for name, data in sets.items() if data is not None}
        if self.split is not None:
            held = [[rows.tolist() for rows in self.split.clients], list(self.split.labelled)]
            found["clients"] = hashlib.sha256(json.dumps(held).encode()).hexdigest()
        return found


def load_federated_data(args: Namespace, say: Callable[[str], None]) -> FederatedData:
    """Read the labels, decode the images and deal the training images, if any, to the clients.

    `say` gets the class x client table, the warnings, and what takes time. Raises `UserError` for
    whatever in the data or the flags about them cannot be used.
    """
    if args.image_size:
        refuse_small_images(args.image_size)
    tables, datasets = (
        load_medmnist(args.medmnist, args.image_size, args.cache)
        if args.medmnist
        else (load_tables(args), {})
    )
    for name, table in tables.items():
        if table.dropped:
            say(f"{name}: {table.dropped} rows with no class or several left out")
    labels = {name: table.labels for name, table in tables.items()}
    for line in absent_class_warnings(next(iter(tables.values())).class_names, labels):
        say(line)
    train, dealt = tables.get("train"), None
    if train is not None:
        dealt = deal_clients(args, train)
        for line in describe_clients(train, dealt):
            say(line)
    for name, table in tables.items():
        if name not in datasets:
            datasets[name] = load_dataset(
                table,
                args.root_path,
                args.image_size,
                args.cache,
                args.cache_dir,
                say,
                args.follow_links,
            )
    image_size = datasets["test"].image_size
    refuse_small_images(image_size)
    pictures = datasets.get("train", datasets["test"])
    preparation = {} if args.medmnist else read_preparation(args.root_path)
    return FederatedData(
        train,
        datasets.get("train"),
        datasets.get("val"),
        datasets["test"],
        dealt,
        {"image_size": image_size, "pictures": describe_pictures(pictures.pixels)} | preparation,
        0 if train is None else len(train),
    )


def load_tables(args: Namespace) -> dict[str, ImageTable]:
    """The label files by set ("train", "val" where given, "test"), their classes the same."""
    files = {"train": args.csv_file_train, "val": args.csv_file_val, "test": args.csv_file_test}
    tables = {
        name: read_table(path, args.label_uncertainty, args.multi_label)
        for name, path in files.items()
        if path is not None
    }
    refuse_different_classes(tables)
    return tables


def deal_clients(args: Namespace, table: ImageTable) -> Split:
    """Which training images each client holds, and which clients have labels.

    With `labeled_fraction` every user is two clients: its labelled part, numbered like the user,
    and its unlabelled part, numbered `num_users` higher.
    """
    if args.split is not None and not is_published(args.split):
        dealt = dealt_before(args, table)
    else:
        seed = derive_seed(args.seed, "split") % 2**32
        if args.split is None:
            clients, how = _partition(args, table, seed)
        else:
            clients, how = load_published(args.split, table)
        count = None if args.labeled_ids else args.num_labeled
        labeled = labelled_clients(len(clients), count, args.labeled_ids)
        if args.labeled_fraction:
            parts = [
                labelled_fraction(rows, table.labels, args.labeled_fraction, seed)
                for rows in clients
            ]
            clients = [labeled_part for labeled_part, _ in parts] + [rest for _, rest in parts]
            labeled = tuple(range(len(parts)))
            how += f", {args.labeled_fraction:g} of each client's images labelled"
        sites = None
        if args.split is None and args.partition == "site":
            sites = [sorted({table.sites[row] for row in rows}) for rows in clients]
        dealt = Split(clients, labeled, seed, how, sites)
    smallest = min(map(len, dealt.clients))
    if smallest < 2:
        raise UserError(
            f"--num_users {args.num_users}: a client would hold {smallest} of {len(table)} images "
            "and BatchNorm needs 2; give more images or fewer clients"
        )
    return dealt


def dealt_before(args: Namespace, table: ImageTable) -> Split:
    """The clients of a run's split.json; those have labels that the flags say, where they do."""
    dealt = load_split(args.split, table)
    if not args.labeled_ids:
        return dealt
    labeled = labelled_clients(len(dealt.clients), None, args.labeled_ids)
    return dealt._replace(labelled=labeled)


def _partition(args: Namespace, table: ImageTable, seed: int) -> tuple[list[np.ndarray], str]:
    if args.partition == "iid":
        return split(table, args.num_users, seed), "equal parts at random"
    if args.partition == "dirichlet":
        alpha = args.dirichlet_alpha
        dealt = split_dirichlet(table.labels, args.num_users, alpha, seed)
        return dealt, f"Dirichlet, alpha {alpha:g}"
    if args.partition == "site":
        return split_by_site(table.sites, args.num_users), "by site"
    return split_by_column(table.clients, args.num_users), "column client"


def describe_clients(table: ImageTable, dealt: Split) -> list[str]:
    """How the clients were made, the class x client table, and a warning per missing class."""
    return [
        f"clients: {dealt.how}\n"
        + class_client_table(
            table.labels, dealt.clients, table.class_names, dealt.labelled, dealt.sites
        ),
        *missing_class_warnings(table.labels, dealt.clients, table.class_names, dealt.labelled),
    ]


class Rehearsal(NamedTuple):
    """A run as it would be: lines to print, who would hold which training images, how many images
    an evaluation has, and a few inputs of the right size to measure steps with."""

    lines: list[str]
    split: Split
    evaluated: int
    sample: ImageDataset


SAMPLE = 256  # inputs of a rehearsal's sample


def dry_run(args: Namespace) -> Rehearsal:
    """Check the data as far as that needs no pixels; the sample is noise. `UserError` as in
    training."""
    if args.medmnist:
        tables, datasets = load_medmnist(args.medmnist, 0, args.cache)
        report = [f"{name}: {len(table)} images" for name, table in tables.items()]
        size = args.image_size or datasets["train"].image_size
    else:
        tables = load_tables(args)
        channels = 3
        images = sum(map(len, tables.values()))
        needed = {args.cache_dir: images * args.image_size**2 * channels}
        report = check_data(tables, args.root_path, needed, args.follow_links)
        first = resolve_images(tables["train"], args.root_path, args.follow_links)[0]
        size = args.image_size or read_header(first).size[0]
    refuse_small_images(size)
    train = tables["train"]
    dealt = deal_clients(args, train)
    return Rehearsal(
        report + describe_clients(train, dealt),
        dealt,
        sum(len(table) for name, table in tables.items() if name != "train"),
        noise_images(size, train.class_names),
    )


def noise_images(size: int, class_names: Sequence[str]) -> ImageDataset:
    """`SAMPLE` pictures of noise in all classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (SAMPLE, size, size, 3), dtype=np.uint8)
    labels = np.arange(SAMPLE) % len(class_names)
    return ImageDataset(pixels, labels, list(map(str, range(SAMPLE))), class_names, cache="ram")


# More than the cores: on a network disk, opening a file is mostly waiting.
_THREADS = 8
_CHUNK = 256
_SHOWN_KINDS = 3


def check_data(
    tables: Mapping[str, ImageTable],
    root_path: str | Path,
    needed_bytes: Mapping[Path, int] | None = None,
    follow_links: bool = False,
) -> list[str]:
    """Check the tables of a run ("train", "val", "test", ...) and return lines to print.

    Reads the header of every image, not its pixels. `needed_bytes` says how much the run will
    write under each folder, which need not exist yet. Raises `UserError` where the class columns
    differ between the tables, an image is missing, unreadable or above 16 megapixels, or the disk
    is too small. What is only questionable (shared patients or images, mixed sizes) is stated.
    """
    refuse_different_classes(tables)
    paths = {name: resolve_images(table, root_path, follow_links) for name, table in tables.items()}
    class_names = next(iter(tables.values())).class_names
    lines = [
        f"{name}: {len(table)} images of {table.source}, {table.dropped} rows left out"
        for name, table in tables.items()
    ]
    labels = {name: table.labels for name, table in tables.items()}
    lines.append(class_set_table(class_names, labels))
    lines += absent_class_warnings(class_names, labels)
    lines += overlap_lines(tables)
    lines += _check_headers(tables, paths)
    return lines + _check_disk(needed_bytes or {})


def refuse_different_classes(tables: Mapping[str, ImageTable]) -> None:
    """Raise `UserError` unless every table has the same classes in the same order."""
    first, *others = tables.values()
    for other in others:
        if other.class_names != first.class_names:
            raise UserError(
                f"{other.source}: its classes are not those of {first.source} "
                f"({first_difference(other.class_names, first.class_names)}); give every CSV the "
                "same class columns in the same order"
            )


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
    with warnings.catch_warnings(), cancelling_pool(_THREADS) as pool:
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
