"""Whole runs with a stand-in network in which one client lies."""

import re

import pandas as pd
import pytest
import torch

from local_unsupervised import UnsupervisedLocalUpdate
from robust import AGGREGATES
from tests.reliability.conftest import SMALL, refused
from tests.torture.runs import differences, outcome

FLAGS = [*SMALL, "--join_epoch", "-1", "--local_ep", "1", "--num_labeled", "2"]
LIAR = 3


@pytest.fixture
def lying(monkeypatch):
    """Lets `lie` change what the client LIAR returns in round 1."""
    honest = UnsupervisedLocalUpdate.train

    def begin(lie):
        def train_and_lie(self, net, weights, round, shared):
            update = honest(self, net, weights, round, shared)
            lies = self.client == LIAR and round == 1
            return lie(update) if lies else update

        monkeypatch.setattr(UnsupervisedLocalUpdate, "train", train_and_lie)
        return lambda: monkeypatch.setattr(UnsupervisedLocalUpdate, "train", honest)

    return begin


def with_weights(update, value: float, ending: str = ""):
    changed = {
        name: torch.full_like(entry, value) if name.endswith(ending) else entry
        for name, entry in update.weights.items()
        if entry.is_floating_point()
    }
    return update._replace(weights=update.weights | changed)


def test_a_round_without_finite_output_is_not_committed_and_goes_on_honestly(
    train,
    phantom_folder,
    tmp_path,
    lying,
):
    assert train(*FLAGS, *phantom_folder.flags(), "--run_dir", tmp_path / "whole").status == 0
    stop_lying = lying(lambda update: with_weights(update, 9e5, "weight"))
    folder = tmp_path / "run"
    message = refused(train(*FLAGS, *phantom_folder.flags(), "--run_dir", folder))
    assert "round 1: the averaged model gives no finite output" in message
    assert f"without client {LIAR} alone it would" in message
    assert [path.name for path in folder.glob("checkpoints/state_*")] == ["state_000001.pth"]
    assert len(pd.read_csv(folder / "metrics.csv")) == 1
    assert "lie" in (folder / "log.txt").read_text()
    stop_lying()
    assert train("--resume", folder).status == 0
    assert differences(outcome(tmp_path / "whole"), outcome(folder)) == []


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        (lambda update: with_weights(update, -1e-3, "running_var"), "running variance .* below 0"),
        (lambda update: update._replace(num_samples=10**12), "trained on 1000000000000 images"),
    ],
)
def test_impossible_numbers_are_left_out_by_name(
    train,
    phantom_folder,
    tmp_path,
    lying,
    lie,
    fault,
):
    lying(lie)
    folder = tmp_path / "run"
    ended = train(*FLAGS, *phantom_folder.flags(), "--run_dir", folder, "--on_bad_client", "skip")
    assert ended.status == 0, ended.error
    assert pd.read_csv(folder / "metrics.csv")["clients_skipped"].tolist() == [0, 1, 0]
    log = (folder / "log.txt").read_text()
    assert re.search(f"left out of this round: client {LIAR}, round 1: .*{fault}", log)


@pytest.mark.parametrize("rule", [name for name in AGGREGATES if name != "mean"])
def test_every_rule_trains_a_run_that_a_liar_cannot_end(
    train,
    phantom_folder,
    tmp_path,
    lying,
    rule,
):
    lying(lambda update: with_weights(update, 9e5, "weight"))
    folder = tmp_path / "run"
    ended = train(*FLAGS, *phantom_folder.flags(), "--run_dir", folder, "--aggregate", rule)
    assert ended.status == 0, ended.error
    metrics = pd.read_csv(folder / "metrics.csv")
    assert len(metrics) == 3 and metrics["test_auroc"].notna().all()
    assert f"round 1: client {LIAR}: its parameters lie" in (folder / "log.txt").read_text()
