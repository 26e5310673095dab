"""A client that goes wrong: the run stops, or leaves it out and goes on as if it were not there."""

import json

import pandas as pd
import pytest
import torch

from dataloaders.dataset import ImageDataset
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import UnsupervisedLocalUpdate
from server import RelationServer
from tests.reliability.conftest import SMALL, refused
from tests.torture.runs import (
    differences,
    outcome,
    whole_states,
)
from utils.checkpoint import load_checkpoint

LABELED_CLIENT, UNLABELED_CLIENT = 1, 2


def spoil(monkeypatch, client: int, rounds: set[int]) -> None:
    """From now on a client's weights come back as NaN in some rounds."""
    trainer = SupervisedLocalUpdate if client == LABELED_CLIENT else UnsupervisedLocalUpdate
    sound = trainer.train

    def train(self, net, weights, round, shared):
        update = sound(self, net, weights, round, shared)
        if self.client == client and round in rounds:
            next(iter(update.weights.values()))[0, 0] = float("nan")
        return update

    monkeypatch.setattr(trainer, "train", train)


@pytest.mark.parametrize("client", [LABELED_CLIENT, UNLABELED_CLIENT])
@pytest.mark.parametrize("gpu", ["cpu", "cpu,cpu"])
def test_a_bad_client_stops_the_run_which_then_goes_on_as_if_nothing_had_been(
    train, phantom_folder, tmp_path, monkeypatch, client, gpu
):
    flags = [*SMALL, *phantom_folder.flags(), "--gpu", gpu]
    assert train(*flags, "--run_dir", tmp_path / "whole").status == 0
    with monkeypatch.context() as patch:
        spoil(patch, client, {1})
        words = refused(train(*flags, "--run_dir", tmp_path / "run"))
    assert f"client {client}, round 1: its weights are not finite" in words
    held = json.loads((tmp_path / "run" / "split.json").read_text())["clients"][client]
    named = words.split("the images ")[1].split(";")[0].split(", ")
    assert 2 <= len(named) <= 5 and set(named) <= set(held)
    assert whole_states(tmp_path / "run") == [1]
    assert train("--resume", tmp_path / "run").status == 0
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "run")) == []


def test_a_skipped_client_leaves_no_trace_in_the_round(
    train, phantom_folder, tmp_path, monkeypatch
):
    """The average is the others'; its memory stays that of the round before; it is counted."""
    received = {}
    with monkeypatch.context() as patch:
        spoil(patch, UNLABELED_CLIENT, {1})
        real = RelationServer.average

        def average(self, updates, *arguments):
            kept = list(updates)
            received[len(received)] = [
                update.weights["densenet121.classifier.0.bias"].clone() for update in kept
            ]
            return real(self, iter(kept), *arguments)

        patch.setattr(RelationServer, "average", average)
        flags = ["--on_bad_client", "skip", "--fedavg_weights", "equal", "--rounds", 2]
        run_dir = tmp_path / "run"
        ended = train(*SMALL, *phantom_folder.flags(), *flags, "--run_dir", run_dir)
    assert ended.status == 0, ended.error
    assert "left out of this round: client 2, round 1" in (run_dir / "log.txt").read_text()
    assert pd.read_csv(run_dir / "metrics.csv").clients_skipped.tolist() == [0, 1]
    assert [len(biases) for biases in received.values()] == [4, 3]
    state = load_checkpoint(run_dir / "checkpoints" / "state_000002.pth")
    bias = state["weights"]["densenet121.classifier.0.bias"]
    assert torch.allclose(bias, torch.stack(received[1]).mean(0), atol=1e-6)
    rounds = {client: name[-10:-4] for client, (name, _) in state["clients"].items()}
    assert rounds == {0: "000001", 1: "000001", 2: "000000", 3: "000001"}


def test_three_bad_rounds_in_a_row_stop_the_run_also_over_a_resume(
    train, phantom_folder, tmp_path, monkeypatch
):
    spoil(monkeypatch, UNLABELED_CLIENT, {1, 2, 3})
    flags = ["--on_bad_client", "skip", "--rounds", 2, "--run_dir", tmp_path / "run"]
    assert train(*SMALL, *phantom_folder.flags(), *flags).status == 0
    words = refused(train("--resume", tmp_path / "run", "--rounds", 6))
    assert "round 3" in words and "3rd round in a row" in words
    assert whole_states(tmp_path / "run") == [2, 3]


def test_the_images_of_the_first_bad_step_are_named(train, phantom_folder, tmp_path, monkeypatch):
    """A loss that is NaN from the second step of client 1 on: that batch, not a later one."""
    handed_out, losses = {}, []
    batches, cross_entropy = ImageDataset.training_batches, torch.nn.functional.cross_entropy

    def recorded(self, indices, *arguments):
        for batch in batches(self, indices, *arguments):
            handed_out.setdefault(tuple(indices.tolist()), []).append(batch.indices.tolist())
            yield batch

    def poisoned(logits, labels, **options):
        losses.append(cross_entropy(logits, labels, **options))
        client_1 = list(handed_out.values())[1:2]
        return losses[-1] * (float("nan") if client_1 and len(client_1[0]) >= 2 else 1)

    monkeypatch.setattr(ImageDataset, "training_batches", recorded)
    monkeypatch.setattr("tasks.classification.cross_entropy", poisoned)
    run_dir = tmp_path / "run"
    flags = ["--batch_size", 2, "--run_dir", run_dir]
    words = refused(train(*SMALL, *phantom_folder.flags(), *flags))
    names = pd.read_csv(phantom_folder.csv_file_train).ImageID
    steps = list(handed_out.values())[1]
    assert len(steps) > 2
    expected = ", ".join(names[index] for index in steps[1])
    assert f"client 1, round 0: its loss is nan after training on the images {expected};" in words
