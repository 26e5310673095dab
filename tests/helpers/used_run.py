"""A small finished run, and test.py called in this process, for the tests of using checkpoints."""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.helpers import PROJECT


class FinishedRun(NamedTuple):
    """A run's folder and what it printed."""

    folder: Path
    printed: str


def train_small_run(data, folder: Path) -> FinishedRun:
    """Two rounds of the paper's method at four clients, on `data` (a conftest.DataFolder)."""
    command = [sys.executable, "train_main.py", "--preset", "paper", *data.flags()]
    command += ["--pretrained", "0", "--image_size", "32", "--batch_size", "8", "--rounds", "2"]
    command += ["--num_users", "4", "--figure_every", "1", "--run_dir", str(folder)]
    command += ["--cache_dir", str(folder.parent / "cache")]
    result = subprocess.run(
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return FinishedRun(folder, result.stdout)


def run_test_py(*flags: object) -> str:
    """test.py with these flags; what it printed. Raises what it raises."""
    specification = importlib.util.spec_from_file_location("test_py", PROJECT / "test.py")
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    output = io.StringIO()
    with mock.patch.object(sys, "argv", ["test.py", *map(str, flags)]):
        with contextlib.redirect_stdout(output):
            program.main()
    return output.getvalue()
