"""Whole runs in this process with a stand-in network."""

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import train_main
from tests.conftest import DataFolder
from tests.torture.runs import build_small_densenet, write_predictions_only
from utils.errors import run_command

SMALL = ["--preset", "paper", "--pretrained", "0", "--image_size", "32", "--batch_size", "4"]
SMALL += ["--num_users", "4", "--rounds", "3", "--gpu", "cpu", "--progress", "0"]
SMALL += ["--consistency_rampup", "2", "--figure_every", "1000", "--state_every", "1"]


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    said: str
    error: str


@pytest.fixture
def small_parts(monkeypatch):
    """A network, a report and a disk that take no time."""
    monkeypatch.setattr("networks.models.build_densenet121", build_small_densenet)
    monkeypatch.setattr("tasks.classification.report_run", write_predictions_only)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def train(small_parts, monkeypatch, capsys, tmp_path):
    """train_main.py with these flags, in this process."""

    def run(*flags) -> Ended:
        words = ["train_main.py", "--cache_dir", tmp_path / "cache", *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as stop:
            run_command(train_main.main)
        return Ended(stop.value.code, *capsys.readouterr())

    yield run


@pytest.fixture
def data(phantom_folder, tmp_path) -> DataFolder:
    """A data set of its own, to be changed."""
    old = phantom_folder.root_path.parent
    shutil.copytree(old, tmp_path / "data")
    return DataFolder(*(tmp_path / "data" / path.relative_to(old) for path in phantom_folder))


@pytest.fixture
def begun(train, data, tmp_path) -> Path:
    """A run of two rounds."""
    ended = train(*SMALL, *data.flags(), "--rounds", 2, "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.error
    return tmp_path / "run"


def refused(ended: Ended) -> str:
    """The one line that a command ended with."""
    assert ended.status == 2 and "Traceback" not in ended.error
    assert ended.error.count("\n") == 1, ended.error
    return ended.error
