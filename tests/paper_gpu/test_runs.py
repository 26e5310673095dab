"""Whole runs on GPUs on paper: trained, resumed, tested and reported in the processor's bits."""

import pytest

from tests.helpers.used_run import run_test_py
from tests.paper_gpu.gpus import NAME, paper_gpus
from tests.reliability.conftest import SMALL, small_parts, train  # noqa: F401
from tests.torture.runs import differences, outcome
from utils.json_files import read_json

PLAIN = ["--precision", "fp32", "--compile", "off"]


@pytest.fixture
def flags(phantom_folder):
    at = SMALL.index("--gpu")
    return [*SMALL[:at], *SMALL[at + 2 :], *phantom_folder.flags(), *PLAIN]


@pytest.mark.parametrize(
    ("gpu", "cache", "state"),
    [
        ("0", "device", "device"),
        ("0", "ram", "host"),
        ("0", "disk", "disk"),
        ("0,1", "auto", "auto"),
    ],
)
def test_a_run_that_was_stopped_has_the_processors_bits(
    train,  # noqa: F811
    flags,
    tmp_path,
    gpu,
    cache,
    state,
):
    ended = train(*flags, "--gpu", "cpu", "--run_dir", tmp_path / "cpu")
    assert ended.status == 0, ended.error
    places = ["--cache", cache, "--client_state", state]
    with paper_gpus(2):
        ended = train(*flags, "--gpu", gpu, *places, "--rounds", 2, "--run_dir", tmp_path / "gpu")
        assert ended.status == 0, ended.error
    with paper_gpus(2):
        ended = train("--resume", tmp_path / "gpu", "--rounds", 3)
        assert ended.status == 0, ended.error
    assert differences(outcome(tmp_path / "cpu"), outcome(tmp_path / "gpu")) == []
    assert read_json(tmp_path / "gpu" / "env.json")["devices"] == [NAME] * len(gpu.split(","))


def test_a_checkpoint_is_tested_and_reported_with_the_processors_numbers(
    train,  # noqa: F811
    flags,
    tmp_path,
):
    assert train(*flags, "--gpu", "cpu", "--rounds", 1, "--run_dir", tmp_path / "run").status == 0
    rows = {}
    for gpu in ("cpu", "0"):
        out = tmp_path / f"out-{gpu}"
        words = ["--resume", tmp_path / "run", "--gpu", gpu, "--precision", "fp32", "--out", out]
        with paper_gpus():
            run_test_py(*words)
        assert (out / "REPORT.md").exists()
        rows[gpu] = (out / "predictions_test.csv").read_text().splitlines()
    assert rows["cpu"] == rows["0"] and len(rows["0"]) > 5
