"""The data of one federated run: three sets of images and each client's share of the first."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.embedded import make_embedded_data
from dataloaders.partition import SPLIT_FILES, split
from dataloaders.split_report import class_client_table, missing_class_warnings
from dataloaders.table import ImageTable, read_table
from utils.errors import UserError
from utils.seeding import derive_seed


class FederatedData(NamedTuple):
    """table: the training CSV. val is None where no validation CSV was given. clients: row
    indices of `train` (int64), one array per client; the first `num_labeled` have labels.
    preprocessing: how files became images, for whoever uses the trained weights."""

    table: ImageTable
    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    clients: list[np.ndarray]
    preprocessing: dict

    def fingerprints(self) -> dict[str, str]:
        """What identifies the images and labels of each set."""
        sets = {"train": self.train, "val": self.val, "test": self.test}
        return {name: data.fingerprint for name, data in sets.items() if data is not None}


def place_embedded_data(args: Namespace, say: Callable[[str], None]) -> None:
    """Generate the embedded data set where no data is named, and name it in `args`."""
    if args.root_path is not None:
        return
    name = f"phantom-{args.phantom_patients}-{args.image_size}-{args.phantom_difficulty}"
    folder = Path("data") / name
    make_embedded_data(
        folder,
        args.phantom_patients,
        args.image_size,
        args.phantom_difficulty,
        args.phantom_proportions,
        say,
    )
    args.root_path = folder / "images"
    args.csv_file_train, args.csv_file_val, args.csv_file_test = (
        folder / file for file in SPLIT_FILES
    )


def load_tables(args: Namespace) -> dict[str, ImageTable]:
    """The label files by set ("train", "val" where given, "test"), checked against each other."""
    files = {"train": args.csv_file_train, "val": args.csv_file_val, "test": args.csv_file_test}
    tables = {
        name: read_table(path, args.label_uncertainty, args.multi_label)
        for name, path in files.items()
        if path is not None
    }
    for table in tables.values():
        if table.class_names != tables["train"].class_names:
            raise UserError(
                f"{table.source}: classes {', '.join(table.class_names)}, but "
                f"{tables['train'].source} has {', '.join(tables['train'].class_names)}"
            )
    return tables


def load_federated_data(args: Namespace, say: Callable[[str], None]) -> FederatedData:
    """Read the CSVs, decode the images and deal the training images to the clients.

    `say` gets the class x client table, the warnings, and what takes time.
    """
    tables = load_tables(args)
    for name, table in tables.items():
        if table.dropped:
            say(f"{name}: {table.dropped} rows with no class or several left out")
    clients = split(len(tables["train"]), args.num_users, derive_seed(args.seed, "split"))
    smallest = min(map(len, clients))
    if smallest < 2:
        raise UserError(f"--num_users {args.num_users}: a client would hold {smallest} images")
    labeled = range(args.num_labeled)
    labels, class_names = tables["train"].labels, tables["train"].class_names
    say(class_client_table(labels, clients, class_names, labeled))
    for warning in missing_class_warnings(labels, clients, class_names, labeled):
        say(warning)
    datasets = {
        name: load_dataset(table, args.root_path, args.image_size, args.cache, args.cache_dir, say)
        for name, table in tables.items()
    }
    return FederatedData(
        tables["train"],
        datasets["train"],
        datasets.get("val"),
        datasets["test"],
        clients,
        {"image_size": datasets["train"].image_size} | read_preparation(args.root_path),
    )


def read_preparation(root_path: Path) -> dict:
    """How DICOM files became the images under `root_path`: {"dicom": {...}} or {}.

    `dataloaders.prepare` leaves that in manifest.json, beside the folder of images.
    """
    manifest = root_path.resolve().parent / "manifest.json"
    try:
        return {"dicom": json.loads(manifest.read_text())["preprocessing"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: not the manifest of a preparation ({error})") from error
