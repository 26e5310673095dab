"""The embedded data set on disk: the same PNGs and CSVs a user would bring."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from dataloaders.partition import SPLIT_FILES, split_table, write_parts
from dataloaders.phantom.files import write_png
from dataloaders.phantom.patients import generate
from dataloaders.table import read_table
from options import embedded_paths
from utils.errors import UserError
from utils.files import waiting_lock

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
