"""Whole runs on volumes: the same bits however they are run, every row, what spoils them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from local_unsupervised import UnsupervisedLocalUpdate
from tests.reliability.conftest import refused
from tests.torture.runs import differences, outcome
from tests.volumes.conftest import TINY, train


@pytest.fixture
def no_report(monkeypatch):
    """The report at the end takes longer than such a run."""
    monkeypatch.setattr("tasks.segmentation.report_volume_run", lambda *arguments: None)


def test_a_run_says_dice_and_leaves_scores_figures_and_a_report(run):
    folder, ended = run
    assert "TEST Dice: " in ended.said and "VAL Dice: " in ended.said
    rounds = pd.read_csv(folder / "metrics.csv")
    assert rounds["test_dice"].between(0, 1).all() and rounds["test_dice_front"].notna().all()
    assert rounds["relation_loss"][1:].gt(0).all() and rounds["reliable_share"][1:].gt(0).all()
    scores = pd.read_csv(folder / "scores_test.csv")
    assert len(scores) == 4 and set(scores["structure"]) == {"front", "back"}
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert {"slices.png", "dice.png", "curves.png", "relation.png"} <= drawn
    last = rounds["test_dice"].iloc[-1]
    assert scores.groupby("structure")["dice"].mean().mean() == pytest.approx(last)
    assert "Dice" in (folder / "REPORT.md").read_text()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(run, prepared, tmp_path):
    data = ["--volumes", prepared]
    ended = train(*TINY, *data, "--run_dir", tmp_path / "run", "--rounds", 2)
    assert ended.status == 0, ended.error
    ended = train("--resume", tmp_path / "run", "--rounds", 3)
    assert ended.status == 0 and "going on with round 2 of 3" in ended.said, ended.error
    whole = outcome(run[0])
    assert len([name for name in whole if "/teacher" in name]) > 10
    assert differences(whole, outcome(tmp_path / "run")) == []


def test_clients_side_by_side_compute_the_same_bits(run, prepared, tmp_path):
    folder = tmp_path / "run"
    ended = train(*TINY, "--volumes", prepared, "--run_dir", folder, "--gpu", "cpu,cpu")
    assert ended.status == 0, ended.error
    assert differences(outcome(run[0]), outcome(folder)) == []


@pytest.mark.parametrize(
    "row",
    [
        ("--method", "fedavg", "--num_labeled", "4"),
        ("--method", "fedavg"),
        ("--method", "fed_consistency"),
        ("--method", "fed_selftraining"),
        ("--relation_distance", "wasserstein"),
    ],
    ids=lambda row: "-".join(row[1::2]),
)
def test_every_row_runs(row, run, prepared, tmp_path, no_report):
    folder = tmp_path / "run"
    ended = train(*TINY, "--volumes", prepared, "--run_dir", folder, "--rounds", 2, *row)
    assert ended.status == 0, ended.error
    rounds = pd.read_csv(folder / "metrics.csv")
    alone = "fedavg" in row
    assert rounds["clients_labeled"].tolist() == [4, 4] if "4" in row else [2, 2]
    assert rounds["clients_unlabeled"].iloc[-1] == (0 if alone else 2)
    theirs = pd.read_csv(run[0] / "metrics.csv")["loss"]
    assert np.isfinite(rounds["loss"]).all()
    assert (rounds["loss"][1] == theirs[1]) == False  # noqa: E712 - another row, another number


def test_patience_looks_at_dice_and_finish_ends_a_run_early(prepared, tmp_path, no_report):
    folder, flags = tmp_path / "run", ["--volumes", prepared, "--base_lr", "1e-12"]
    flags += ["--unlabeled_lr", "1e-12", "--labeled_lr_late", "1e-12", "--patience", "1"]
    ended = train(*TINY, *flags, "--rounds", 6, "--run_dir", folder)
    assert ended.status == 0, ended.error
    assert "--patience 1: ended after 3 of 6 rounds, the best dice on the" in ended.said
    none = ["--volume_sets", "8", "0", "4"]
    assert "--patience: needs validation" in refused(train(*TINY, *flags, *none))
    ended = train("--resume", folder, "--patience", "0", "--finish")
    assert ended.status == 0 and "--finish: ended after 3 of 6 rounds" in ended.said, ended.error


def test_dry_run_says_who_holds_what_and_writes_nothing(prepared, tmp_path):
    folder = tmp_path / "run"
    ended = train(*TINY, "--volumes", prepared, "--run_dir", folder, "--dry_run")
    assert ended.status == 0, ended.error
    assert "sets: contiguous blocks of patients, 8, 2, 2" in ended.said
    assert "0 of 1 test patients were in training" in ended.said
    assert not folder.exists()
    listed = prepared / "volumes.csv"
    lists = ["--csv_file_train", listed, "--csv_file_test", listed]
    ended = train(*TINY, "--volumes", prepared, *lists, "--dry_run")
    assert "warning: 6 of 6 test patients were in training; 12 of 12" in ended.said, ended.error
    damaged = prepared.parent / "arrays gone"
    damaged.mkdir()
    for name in ("volumes.csv", "manifest.json"):
        (damaged / name).write_bytes((prepared / name).read_bytes())
    error = refused(train(*TINY, "--volumes", damaged, "--dry_run"))
    assert "v0.npy: no such file; prepare the volumes again" in error


@pytest.fixture
def poisoned(monkeypatch):
    """Client 3 returns weights that are no numbers, from the second round on."""
    honest = UnsupervisedLocalUpdate.train

    def train_badly(self, net, weights, round, shared):
        update = honest(self, net, weights, round, shared)
        if self.client == 3:
            bad = dict(update.weights)
            bad["head.bias"] = torch.full_like(bad["head.bias"], float("nan"))
            update = update._replace(weights=bad)
        return update

    monkeypatch.setattr(UnsupervisedLocalUpdate, "train", train_badly)


def test_a_client_that_returns_no_numbers_stops_the_run_or_is_left_out(
    poisoned, prepared, tmp_path, no_report
):
    flags = [*TINY, "--volumes", prepared, "--rounds", 2]
    error = refused(train(*flags, "--run_dir", tmp_path / "stopped"))
    assert "client 3" in error and "head.bias" in error
    skipped = tmp_path / "skipped"
    ended = train(*flags, "--run_dir", skipped, "--on_bad_client", "skip")
    assert ended.status == 0 and "client 3" in ended.said, ended.error
    assert pd.read_csv(skipped / "metrics.csv")["clients_unlabeled"].tolist() == [0, 1]
    weights = torch.load(skipped / "checkpoints" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def test_volumes_of_other_channels_or_too_few_are_refused_by_flag(prepared, tmp_path):
    flags = [*TINY, "--volumes", prepared, "--run_dir", tmp_path / "run"]
    assert "--channels 2: the volumes in" in refused(train(*flags, "--channels", 2))
    assert "is no multiple of 2" in refused(train(*flags, "--patch_size", 8, 8, 7))
    assert "--num_users 9: there are" in refused(train(*flags, "--num_users", 9))
    assert "--csv_file_test is missing" in refused(train(*flags, "--engine", "sites"))
    assert "one voxel is left at the lowest" in refused(train(*flags, "--patch_size", 2, 2, 2))
    assert "client 0 has 2 volumes; give no more" in refused(train(*flags, "--labeled_volumes", 3))
    listed = prepared / "volumes.csv"
    for given, missing in (("train", "test"), ("val", "train"), ("test", "train")):
        error = refused(train(*flags, f"--csv_file_{given}", listed))
        assert f"--csv_file_{missing} is missing: --csv_file_{given} alone" in error
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_says_how_volumes_are_made(run):
    content = torch.load(run[0] / "checkpoints" / "epoch_2.pth", weights_only=True)
    assert content["preprocessing"]["volumes"] == {
        "modality": "mr",
        "ct_window": [-200.0, 300.0],
        "spacing": [1.0, 1.0, 1.0],
        "values": [0, 1, 5],
        "channels": 1,
        "patch_size": [8, 8, 8],
    }
    assert json.loads((run[0] / "args.json").read_text())["task"] == "segmentation"
