"""Whole runs on small volumes, in this process."""

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

import train_main
from tests.helpers.volumes import write_prepared
from tests.reliability.conftest import Ended
from utils.errors import run_command

TINY = ["--preset", "hippocampus", "--gpu", "cpu", "--progress", "0", "--keep_state", "1"]
TINY += ["--unet_channels", "2", "4", "--patch_size", "8", "8", "8", "--batch_size", "2"]
TINY += ["--volume_sets", "8", "2", "2", "--num_users", "4", "--local_ep", "1", "--rounds", "3"]
TINY += ["--join_epoch", "0", "--eval_every", "1", "--consistency_rampup", "2"]
TINY += ["--entropy_threshold", "1", "--relation_min_rows", "1", "--figure_every", "1000"]
TINY += ["--save_every", "1"]


def train(*flags: object) -> Ended:
    """train_main.py with these flags."""
    said, error = io.StringIO(), io.StringIO()
    words = ["train_main.py", *map(str, flags)]
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(os, "fsync", lambda descriptor: None),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as stop,
    ):
        run_command(train_main.main)
    return Ended(stop.value.code or 0, said.getvalue(), error.getvalue())


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Twelve prepared volumes of six patients."""
    return write_prepared(tmp_path_factory.mktemp("prepared") / "volumes", 12, patients=True)


@pytest.fixture(scope="session")
def run(prepared, tmp_path_factory) -> tuple[Path, Ended]:
    """A finished run of FedIRM on them, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    ended = train(*TINY, "--volumes", prepared, "--run_dir", folder)
    assert ended.status == 0, ended.error
    return folder, ended
