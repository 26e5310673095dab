"""The embedded data set on disk: the same PNGs and CSVs a user would bring."""

from collections.abc import Callable
from pathlib import Path

from dataloaders.partition import SPLIT_FILES, split_table, write_parts
from dataloaders.phantom import generate, write_png
from dataloaders.table import read_table

DATA_SEED = 2021


def make_embedded_data(
    folder: Path,
    patients: int,
    slices: int,
    size: int,
    difficulty: float,
    proportions: list[float] | None,
    say: Callable[[str], None],
) -> None:
    """Write images/, labels.csv and the three CSVs of a split by patient into `folder`, once.

    The data depend on the arguments alone, not on a run's seed: runs stay comparable.
    """
    if (folder / SPLIT_FILES[-1]).exists():
        say(f"embedded data: {folder}, made before")
        return
    say(f"embedded data: generating head CT of {patients} synthetic patients in {folder}")
    phantom = generate(
        patients,
        size,
        DATA_SEED,
        slices_per_patient=slices,
        class_proportions=proportions,
        difficulty=difficulty,
        with_bleed_rows_only=True,
    )
    table = read_table(write_png(phantom, folder))
    parts = split_table(table, seed=DATA_SEED)
    write_parts(folder, table, dict(zip(SPLIT_FILES, parts, strict=True)))
