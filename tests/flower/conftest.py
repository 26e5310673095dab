"""A tiny federation: two roles, one round of labelled clients alone, three rounds of all."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.conftest import DataFolder
from tests.helpers import PROJECT

FENCE = Path(__file__).with_name("fence.py")
ROUNDS = 4
TRAINING_FLAGS = [
    *("--preset", "demo", "--image_size", "32", "--batch_size", "8", "--gpu", "cpu"),
    *("--num_users", "2", "--num_labeled", "1", "--join_epoch", "0", "--rounds", str(ROUNDS)),
    *("--keep_state", "1"),
]
# Sums of floating-point numbers depend on the number of threads that make them.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Result(NamedTuple):
    """What a finished run left."""

    folder: Path

    def state(self, round: int = ROUNDS) -> dict:
        path = self.folder / "checkpoints" / f"state_{round:06d}.pth"
        return torch.load(path, weights_only=True)

    def metrics(self) -> list[dict]:
        with open(self.folder / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]

    def log(self) -> list[str]:
        """The lines from the first round on up to what names folders, without times and memory."""
        text = (self.folder / "log.txt").read_text()
        lines = text[text.index("Begin:") : text.rindex("done:")].splitlines()
        said = [re.sub(r"^\[[\d:.]+\] ", "", line) for line in lines]
        return [line for line in said if not re.match("# (round|peak of main memory)", line)]


def assert_same(left: Result, right: Result) -> None:
    """The same bits of weights and what is shared, the same numbers and the same lines."""
    mine, theirs = left.state(), right.state()
    assert mine["weights"].keys() == theirs["weights"].keys()
    odd = [k for k, v in mine["weights"].items() if not torch.equal(v, theirs["weights"][k])]
    assert odd == []
    assert mine["shared"].keys() == {"relation_log_rows", "relation_present"}
    assert all(torch.equal(v, theirs["shared"][k]) for k, v in mine["shared"].items())
    assert left.metrics() == right.metrics()
    assert len(left.metrics()) == ROUNDS
    matrices = [(result.folder / "matrices.csv").read_text() for result in (left, right)]
    assert matrices[0] == matrices[1]
    assert left.log() == right.log()


def train_main(folder: Path, *flags: str) -> list[str]:
    """The command line of a run in `folder`."""
    script = str(PROJECT / "train_main.py")
    return [sys.executable, script, *flags, "--run_dir", str(folder)]


def check(command: list[str], **options) -> None:
    """Run a command that must succeed; its last words where it does not."""
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.fixture(scope="session")
def flags(phantom_folder: DataFolder, tmp_path_factory) -> list[str]:
    """The flags of every run here: the data, and how it is trained on."""
    cache = tmp_path_factory.mktemp("cache")
    return [*TRAINING_FLAGS, *phantom_folder.flags(), "--cache_dir", str(cache)]


@pytest.fixture(scope="session")
def loop(flags, tmp_path_factory) -> Result:
    """The plain loop's run."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    check(train_main(folder, *flags))
    return Result(folder)


class Simulation(NamedTuple):
    """A simulated run, and where its processes' packets wanted to go beyond this machine."""

    result: Result
    destinations: list[str]


@pytest.fixture(scope="session")
def simulation(flags, tmp_path_factory) -> Simulation:
    """The same run with `--engine flower`, in a network that lets nothing out."""
    place = tmp_path_factory.mktemp("simulation")
    fenced = ["unshare", "--map-root-user", "--net", sys.executable, str(FENCE)]
    command = train_main(place / "run", *flags, "--engine", "flower")
    check([*fenced, str(place / "packets.json"), *command])
    packets = json.loads((place / "packets.json").read_text())
    return Simulation(Result(place / "run"), packets)
