"""The long trials of `python -m tests.torture`, a few of each; docs/RELIABILITY.md has the rest."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROJECT

METHODS = ("fedirm", "fed_consistency", "fed_selftraining", "fedavg")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> str:
    """What all trials print, at a twentieth of their usual length."""
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path_factory.mktemp("torture")
    command = [sys.executable, "-m", "tests.torture", "--place", str(place), "all"]
    ended = subprocess.run(
        [*command, "--share", "0.05"], cwd=PROJECT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["kill", "term", "int"])
def test_interrupted_runs_end_as_if_nothing_had_been(said, how, method):
    (line,) = re.findall(rf"^{how} {method} on .*", said, re.M)
    assert int(re.search(r"(\d+) interruptions", line)[1]) >= 1
    assert not re.search("differ|lost|unloadable|odd|ended with", line), line


def test_no_flipped_bit_is_loaded(said):
    (checkpoints,) = re.findall("^checkpoints: .*", said, re.M)
    (caches,) = re.findall("^image caches: .*", said, re.M)
    assert "'flips': 15" in checkpoints and "'refused by name': 15" in checkpoints
    outcomes = re.findall(r"'(?:decoded again|loaded, the array being whole)': (\d+)", caches)
    assert "'flips': 5" in caches and sum(map(int, outcomes)) == 5
    assert "'decoded again'" in caches and "LOADED SILENTLY" not in caches


def test_every_flipped_image_is_decoded_or_named(said):
    (line,) = re.findall("^images: .*", said, re.M)
    decoded, named = (
        int(re.search(rf"'{what}': (\d+)", line)[1]) for what in ("decoded", "refused by name")
    )
    assert decoded + named == 50 and decoded > 5 and named > 5


def test_a_full_disk_ends_a_run_with_one_line_and_no_harm(said):
    (line,) = re.findall("^disk: .*", said, re.M)
    assert "'ended by a limit': 3" in line and not re.search("'[A-Z]{3}", line)


def test_of_ten_runs_in_one_folder_one_runs(said):
    assert "ten started together: {'exactly one ran': 1}" in said
