"""What several test files share."""

import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dataloaders.partition import SPLIT_FILES, split_table, write_parts
from dataloaders.phantom.files import write_png
from dataloaders.phantom.patients import generate
from dataloaders.table import read_table


def pytest_configure():
    """Have Ctrl-C and a closed terminal stop a program, though a shell that tests in the
    background, or nohup, has them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["TORCH_HOME"] = os.devnull  # weights that somebody once fetched are not a test's


class DataFolder(NamedTuple):
    """A data set on disk as a user has it: a folder of images and three CSVs."""

    root_path: Path
    csv_file_train: Path
    csv_file_val: Path
    csv_file_test: Path

    def flags(self) -> list[str]:
        """The flags that name it."""
        return [part for name in self._fields for part in (f"--{name}", str(getattr(self, name)))]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums are then made in one order, and tests that run side by side share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom_folder(tmp_path_factory) -> DataFolder:
    """Some fifty 32-pixel slices of easy head CT, split by patient."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom = generate(
        20,
        size=32,
        seed=1,
        slices_per_patient=3,
        class_proportions=(1, 1, 1, 1, 1),
        with_bleed_rows_only=True,
        difficulty=0.0,
    )
    table = read_table(write_png(phantom, folder))
    parts = split_table(table, sizes=(0.5, 0.25, 0.25), seed=1)
    write_parts(folder, table, dict(zip(SPLIT_FILES, parts, strict=True)))
    return DataFolder(folder / "images", *(folder / name for name in SPLIT_FILES))
