"""The embedded data set on disk: the same PNGs and CSVs a user would bring."""

import hashlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from dataloaders.partition import SPLIT_FILES, split_table, write_parts
from dataloaders.phantom import generate, write_png
from dataloaders.table import read_table
from utils.errors import UserError
from utils.locks import waiting_lock

DATA_SEED = 2021


def place_embedded_data(args: Namespace, say: Callable[[str], None]) -> None:
    """Generate the data set that the phantom_* flags describe, once, and name it in `args`.

    The images depend on those flags alone, not on the run's seed: runs stay comparable.
    """
    name_embedded_data(args)
    folder = args.root_path.parent
    last_written = folder / SPLIT_FILES[-1]
    if not last_written.exists():
        with waiting_lock(folder / ".lock"):  # of runs that start side by side one makes the images
            if not last_written.exists():
                say(f"generating head CT of {args.phantom_patients} synthetic patients in {folder}")
                _generate(args, folder)


def name_embedded_data(args: Namespace) -> None:
    """Put the paths of the data set that the phantom_* flags describe into `args`."""
    vars(args).update(embedded_paths(args))


def embedded_paths(args: Namespace) -> dict[str, Path]:
    """{flag: path} of the data set that the phantom_* flags describe, there or not yet."""
    described = {name: value for name, value in vars(args).items() if name.startswith("phantom_")}
    described["image_size"] = args.image_size
    digest = hashlib.blake2b(repr(sorted(described.items())).encode(), digest_size=4).hexdigest()
    folder = Path("data") / f"phantom-{args.phantom_patients}x{args.phantom_slices}-{digest}"
    flags = ("csv_file_train", "csv_file_val", "csv_file_test")
    tables = dict(zip(flags, (folder / name for name in SPLIT_FILES), strict=True))
    return {"root_path": folder / "images", **tables}


def _generate(args: Namespace, folder: Path) -> None:
    """images/, labels.csv and the three CSVs of a split by patient."""
    try:
        phantom = generate(
            args.phantom_patients,
            args.image_size,
            DATA_SEED,
            slices_per_patient=args.phantom_slices,
            class_proportions=args.phantom_proportions,
            difficulty=args.phantom_difficulty,
            with_bleed_rows_only=True,
        )
    except ValueError as error:
        raise UserError(
            f"embedded data: {error}; see --image_size and the --phantom_ flags"
        ) from error
    table = read_table(write_png(phantom, folder))
    parts = split_table(table, args.phantom_split, DATA_SEED)
    write_parts(folder, table, dict(zip(SPLIT_FILES, parts, strict=True)))
