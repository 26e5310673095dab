"""What version 0.1 (commit e7037c7) wrote still opens, goes on and reports.

version_0_1.tar.xz holds the folder of a run of that version with a small network: `run`, after two
rounds of which labelled clients train in three; its `data` and `cache`; and in `later` what the
same version came to by itself after four rounds.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from networks.kinds import build_network
from networks.saved import load_model, load_weights
from options import args_parser
from predict.card import report_run
from tests.helpers import PROJECT
from tests.reliability.conftest import SMALL
from utils.checkpoint import load_checkpoint
from utils.plots.runs import rebuild_figures
from utils.tables.log_reader import parse_log

ARCHIVE = PROJECT / "tests/reliability/version_0_1.tar.xz"
DATA = ["--root_path", "data/images", "--csv_file_train", "data/training.csv"]
DATA += ["--csv_file_val", "data/validation.csv", "--csv_file_test", "data/testing.csv"]


CHECKPOINT = Path("run/checkpoints/epoch_1.pth")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The current folder, with what version 0.1 left in it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def close_to(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def predicted(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "predictions_test.csv")[
        load_model(CHECKPOINT)[1]["class_names"]
    ]


def test_a_run_goes_on_as_version_0_1_would_have(train, place):
    before = {path.name for path in (place / "cache").glob("images-*.np*")}
    ended = train("--resume", "run", "--rounds", 4)
    assert ended.status == 0, ended.error
    assert "going on with round 2 of 4" in ended.said and "going back" not in ended.said
    last = "checkpoints/epoch_3.pth"
    close_to(
        load_checkpoint(place / "run" / last)["state_dict"],
        load_model(place / "later/epoch_3.pth")[0],
    )
    ours, theirs = (pd.read_csv(place / name / "metrics.csv") for name in ("run", "later"))
    assert len(ours) == 4
    numbers = [name for name in theirs if "loss" in name or "auroc" in name or "clients" in name]
    assert len(numbers) > 7
    np.testing.assert_allclose(ours[numbers], theirs[numbers], atol=1e-4)
    np.testing.assert_allclose(predicted("run"), predicted("later"), atol=1e-4)
    assert {path.name for path in (place / "cache").glob("images-*.np*")} == before
    (run,) = parse_log(place / "run" / "log.txt")
    assert [found.number for found in run.finished_rounds()] == [0, 1, 2, 3]


def test_what_there_was_no_flag_for_stays_as_it_was(train, place):
    """Labelled clients left the average when they stopped; today's default keeps them in it."""
    old = json.loads((place / "run" / "args.json").read_text())
    ended = train("--resume", "run", "--rounds", 3)
    assert ended.status == 0, ended.error
    flags = json.loads((place / "run" / "args.json").read_text())
    assert "stopped_clients" not in old and flags["stopped_clients"] == "leave"
    assert "head_bias" not in old and flags["head_bias"] == "uniform"
    changed = {name for name in old if flags[name] != old[name]}
    assert changed == {"rounds", "cache_dir"}  # which were typed
    assert args_parser(["--args_from", "run"]).stopped_clients == "leave"
    assert args_parser(DATA).stopped_clients == "average"


def test_a_run_is_reported_and_its_figures_drawn_again(train, place, monkeypatch):
    monkeypatch.setattr("tasks.classification.report_run", report_run)
    theirs = predicted("run")
    Path("run/predictions_test.csv").unlink()
    assert rebuild_figures(place / "run")
    ended = train("--resume", "run", "--finish")
    assert ended.status == 0, ended.error
    assert "done: run/REPORT.md" in ended.said
    np.testing.assert_allclose(predicted("run"), theirs, atol=1e-4)
    assert "DenseNet121, dropout 0.2, 5 outputs" in Path("run/REPORT.md").read_text()


def test_a_checkpoint_is_a_network_and_a_beginning(train, place):
    weights, content = load_model(CHECKPOINT)
    assert content["architecture"]["network"] == "densenet121" and len(content["class_names"]) == 5
    net = build_network(content["architecture"], content["class_names"])
    load_weights(net, weights, CHECKPOINT)
    close_to(
        dict(net.state_dict()),
        load_checkpoint(place / "run/checkpoints/state_000002.pth")["weights"],
    )
    flags = [*SMALL, *DATA, "--rounds", 1, "--run_dir", "new"]
    ended = train(*flags, "--resume", CHECKPOINT)
    assert ended.status == 0, ended.error
