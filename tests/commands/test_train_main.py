"""Whole runs as a user types them: what they write, how they stop, that they go on to the bit."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import train_main
from dataloaders.table import read_table
from networks.saved import load_model
from tests.helpers import PROJECT
from tests.helpers.small_clients import assert_identical
from utils.checkpoint import load_checkpoint
from utils.metrics.predictions import read_predictions
from utils.tables.log_reader import parse_log

ROUNDS = 3
# The slides' preset at a size that trains in seconds: the unlabelled client joins in round 1.
SMALL = (
    f"--pretrained 0 --image_size 32 --batch_size 4 --local_ep 1 --rounds {ROUNDS} "
    "--num_users 3 --join_epoch 0 --cache ram --figure_every 100 --state_every 1"
).split()
LOG_LINES = [
    r"STAMP Supervised Client: (?P<client>\d)",
    r"STAMP Semi-Supervised Client: (?P<client>\d)",
    r"STAMP --",
    r"STAMP Loss Avg: \d+\.\d+, Common Round: \d, LR: 0\.001",
    r"STAMP (VAL|TEST) AUROC: \d\.\d{6}, (VAL|TEST) Accus: \d\.\d{6}, F1: \d\.\d{6}, "
    r"(VAL|TEST) Senss: \d\.\d{6}, (VAL|TEST) Specs: \d\.\d{6}",
]
STAMP = r"\[\d\d:\d\d:\d\d\.\d{3}\]"


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def start(*flags: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "train_main.py"), *flags],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> Ended:
    stdout, stderr = process.communicate(timeout=500)
    return Ended(process.returncode, stdout, stderr)


def signal_when(process: subprocess.Popen, log: Path, text: str, number: signal.Signals) -> Ended:
    """Send a signal once `text` stands in the log."""
    while process.poll() is None and not (log.exists() and text in log.read_text()):
        time.sleep(0.02)
    process.send_signal(number)
    return end(process)


class Runs(NamedTuple):
    """`whole` ran through on one device; `broken` on two, and was stopped twice on the way."""

    whole: Path
    broken: Path
    ended: dict[str, Ended]


@pytest.fixture(scope="module")
def runs(phantom_folder, tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    flags = [*SMALL, *phantom_folder.flags()]
    whole_process = start(*flags, "--gpu", "cpu", "--run_dir", "whole", cwd=folder)
    first = start(*flags, "--gpu", "cpu,cpu", "--run_dir", "broken", cwd=folder)
    log = folder / "broken" / "log.txt"
    ended = {"ctrl_c": signal_when(first, log, "Supervised Client: 1", signal.SIGINT)}
    second = start("--resume", "broken", cwd=folder)
    ended["term"] = signal_when(second, log, "Begin: com_round = 2", signal.SIGTERM)
    ended["resumed"] = end(start("--resume", "broken", "--gpu", "cpu", cwd=folder))
    ended["whole"] = end(whole_process)
    return Runs(folder / "whole", folder / "broken", ended)


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- what a run leaves


def test_it_ends_well(runs):
    ended = runs.ended["whole"]
    assert ended.status == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"epoch_{ROUNDS - 1}.pth" in ended.stdout and "python test.py --resume" in ended.stdout


def test_files_of_the_run_folder(runs):
    there = {str(path.relative_to(runs.whole)) for path in runs.whole.rglob("*") if path.is_file()}
    expected = {"args.json", "env.json", "split.json", "log.txt", "metrics.csv", "matrices.csv"}
    expected |= {"predictions_test.csv", "figures/curves.png", "figures/relation.png", "REPORT.md"}
    expected |= {f"checkpoints/epoch_{round}.pth" for round in range(ROUNDS)}
    expected |= {f"checkpoints/state_{ROUNDS:06d}.pth"}
    assert expected <= there
    assert any(name.startswith("tb/events") for name in there)
    assert not [name for name in there if name.endswith(".partial")]


def test_arguments_are_kept(runs, phantom_folder):
    args = json.loads((runs.whole / "args.json").read_text())
    assert args["preset"] == "slides" and args["rounds"] == ROUNDS and args["seed"] == 1337
    assert args["root_path"] == str(phantom_folder.root_path)
    environment = json.loads((runs.whole / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]


def test_every_training_image_went_to_one_client(runs, phantom_folder):
    split = json.loads((runs.whole / "split.json").read_text())
    names = read_table(phantom_folder.csv_file_train).names
    assert sorted(name for client in split["clients"] for name in client) == sorted(names)
    sizes = [len(client) for client in split["clients"]]
    assert len(sizes) == 3 and max(sizes) - min(sizes) <= 1
    assert split["labelled_clients"] == [0, 1]


def test_log_is_in_the_slides_format(runs, phantom_folder):
    lines = (runs.whole / "log.txt").read_text().splitlines()
    assert re.match(rf"{STAMP} Namespace\(.*preset='slides'.*\)$", lines[0])
    size = len(read_table(phantom_folder.csv_file_train))
    assert re.fullmatch(rf"{STAMP} Training Data Size: {size}", lines[1])
    begins = [i for i, line in enumerate(lines) if line.startswith("Begin:")]
    assert [lines[i] for i in begins] == [f"Begin: com_round = {r}" for r in range(ROUNDS)]
    supervised, semi_supervised, rule, loss, scores = (
        line.replace("STAMP", STAMP) for line in LOG_LINES
    )
    for round, begin in enumerate(begins):
        clients = [supervised, rule] * 2 + [semi_supervised, rule] * (round > 0)
        expected = ["", *clients, loss, scores, scores]
        for line, pattern in zip(lines[begin + 1 :], expected, strict=False):
            assert re.fullmatch(pattern, line), (line, pattern)
        numbers = re.findall(r"Client: (\d)", "\n".join(lines[begin : begin + len(expected)]))
        assert numbers == ["0", "1", "2"][: 2 + (round > 0)]
        assert f"Common Round: {round}," in lines[begin + len(clients) + 2]


def test_log_and_metrics_say_the_same(runs):
    (log,) = parse_log(runs.whole / "log.txt")
    rows = rows_of(runs.whole / "metrics.csv")
    assert log.lines_not_understood == 0
    assert len(log.finished_rounds()) == len(rows) == ROUNDS
    for told, row in zip(log.finished_rounds(), rows, strict=True):
        assert told.loss == float(row["loss"]) and told.number == int(row["round"])
        for name in ("test_auroc", "test_f1", "val_accuracy", "test_sensitivity"):
            assert told.metrics[name] == pytest.approx(float(row[name]), abs=1e-6)


def test_metrics_have_a_row_a_round(runs):
    rows = rows_of(runs.whole / "metrics.csv")
    assert [row["phase"] for row in rows] == ["labeled", "all", "all"]
    assert [row["clients_unlabeled"] for row in rows] == ["0", "1", "1"]
    for row in rows:
        assert float(row["supervised_loss"]) > 0 and float(row["seconds_round"]) > 0
        for split in ("val", "test"):
            for name in ("auroc", "accuracy", "top1", "balanced_accuracy", "f1", "specificity"):
                assert 0 <= float(row[f"{split}_{name}"]) <= 1
    unlabeled = ("consistency_loss", "relation_loss", "consistency_weight", "reliable_share")
    assert all(rows[0][name] == "" for name in unlabeled)
    assert all(float(rows[1][name]) > 0 for name in unlabeled)
    # the slides' lambda by local epoch: exp(-5 (1 - 1/30)^2)
    assert float(rows[1]["consistency_weight"]) == pytest.approx(np.exp(-5 * (29 / 30) ** 2))


def test_matrices_are_distributions(runs):
    cells = rows_of(runs.whole / "matrices.csv")
    classes = read_predictions(runs.whole / "predictions_test.csv").class_names
    sums: dict[tuple, float] = {}
    for cell in cells:
        key = (cell["round"], cell["source"], cell["row"])
        sums[key] = sums.get(key, 0) + float(cell["value"])
    assert {key[1] for key in sums if key[0] == "0"} == {"labeled_mean"}
    assert {key[1] for key in sums if key[0] == "2"} == {"labeled_mean", "unlabeled_mean"}
    assert {key[2] for key in sums} == set(classes)
    assert all(total == pytest.approx(1, abs=1e-5) for total in sums.values())


def test_predictions_are_what_the_metrics_say(runs):
    predictions = read_predictions(runs.whole / "predictions_test.csv")
    last = rows_of(runs.whole / "metrics.csv")[-1]
    labels, probabilities = predictions.labels, predictions.probabilities
    present = [c for c in range(5) if 0 < (labels == c).sum() < len(labels)]
    areas = [roc_auc_score(labels == c, probabilities[:, c]) for c in present]
    assert float(last["test_auroc"]) == pytest.approx(np.mean(areas), abs=1e-6)
    top1 = (probabilities.argmax(axis=1) == labels).mean()
    assert float(last["test_top1"]) == pytest.approx(top1)


def test_checkpoint_holds_all_that_a_test_needs(runs):
    weights, content = load_model(runs.whole / "checkpoints" / f"epoch_{ROUNDS - 1}.pth")
    assert len(weights) == 727 and content["preset"] == "slides"
    assert content["class_names"] == list(
        read_predictions(runs.whole / "predictions_test.csv").class_names
    )
    assert content["preprocessing"]["image_size"] == 32 and content["round"] == ROUNDS - 1
    state = load_checkpoint(runs.whole / "checkpoints" / f"state_{ROUNDS:06d}.pth")
    assert_identical(weights, state["weights"])


# ---- stopping and going on


def test_stopped_runs_say_so_and_what_to_type(runs):
    for name, status in (("ctrl_c", 130), ("term", 143)):
        ended = runs.ended[name]
        assert ended.status == status, ended
        assert "Traceback" not in ended.stderr
        last = ended.stdout.strip().splitlines()[-1]
        assert "stopped" in last and "python train_main.py --resume broken" in last


def test_run_stopped_in_its_first_round_begins_again(runs):
    assert runs.ended["ctrl_c"].stdout.count("Common Round") == 0
    assert "Begin: com_round = 0" in runs.ended["term"].stdout
    assert "going on with round 2" in runs.ended["resumed"].stdout
    assert runs.ended["resumed"].status == 0, runs.ended["resumed"].stderr


def test_resumed_run_is_identical_to_the_uninterrupted_one(runs):
    """Weights, matrix, moments, teachers and metrics, on two devices and then on one."""
    states = [
        load_checkpoint(folder / "checkpoints" / f"state_{ROUNDS:06d}.pth")
        for folder in (runs.whole, runs.broken)
    ]
    for key in ("weights", "shared", "server", "matrices", "next_round", "identity"):
        assert_identical(states[0][key], states[1][key])
    memories = [
        {
            client: load_checkpoint(folder / "checkpoints" / "clients" / file[0])["memory"]
            for client, file in state["clients"].items()
        }
        for folder, state in zip((runs.whole, runs.broken), states, strict=True)
    ]
    assert memories[0].keys() == {0, 1, 2}
    assert memories[0][2]["teacher"] is not None and memories[0][2]["step"] > 0
    assert_identical(*memories)
    for name in ("matrices.csv", "predictions_test.csv", "split.json"):
        assert (runs.whole / name).read_bytes() == (runs.broken / name).read_bytes()
    metrics = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in rows_of(path)]
        for path in (runs.whole / "metrics.csv", runs.broken / "metrics.csv")
    ]
    assert metrics[0] == metrics[1]
    weights = [
        load_model(folder / "checkpoints" / f"epoch_{ROUNDS - 1}.pth")[0]
        for folder in (runs.whole, runs.broken)
    ]
    assert_identical(*weights)


def test_log_of_a_resumed_run_reads_as_one(runs):
    rounds = parse_log(runs.broken / "log.txt")[-1].finished_rounds()
    assert [told.number for told in rounds][-ROUNDS + 1 :] == list(range(1, ROUNDS))
    (whole,) = parse_log(runs.whole / "log.txt")
    assert rounds[-1].loss == whole.finished_rounds()[-1].loss
    assert rounds[-1].metrics == whole.finished_rounds()[-1].metrics


# ---- the other methods


def test_self_training_with_attention_and_a_class_for_uncertain_labels(
    phantom_folder, tmp_path, monkeypatch
):
    lines = phantom_folder.csv_file_train.read_text().splitlines()
    name, patient, *labels = lines[1].split(",")
    lines[1] = ",".join([name, patient, "-1", *labels[1:]])
    uncertain = tmp_path / "uncertain.csv"
    uncertain.write_text("\n".join(lines) + "\n")
    flags = [*SMALL, *phantom_folder.flags(), "--rounds", "1", "--join_epoch", "-1", "--gpu", "cpu"]
    flags += ["--method", "fed_selftraining", "--attention", "self"]
    flags += ["--label_uncertainty", "U-MultiClass"]
    flags += ["--csv_file_train", str(uncertain), "--run_dir", "run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_main.py", *flags])
    assert train_main.main() == 0
    weights, content = load_model(tmp_path / "run" / "checkpoints" / "epoch_0.pth")
    assert content["class_names"][-1] == "uncertain" and len(content["class_names"]) == 6
    assert weights["densenet121.classifier.0.weight"].shape == (6, 1024)
    assert "attention.attend.in_proj_weight" in weights
    (row,) = rows_of(tmp_path / "run" / "metrics.csv")
    assert row["phase"] == "all" and "relation_loss" not in row
    assert 0 <= float(row["reliable_share"]) <= 1
