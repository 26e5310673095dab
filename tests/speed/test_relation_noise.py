"""The chance in a batch's relation matrix, as benchmarks/relation_noise.py measures it."""

import math
import subprocess
import sys

import pytest
import torch

from benchmarks.relation_noise import batch_noise
from utils.metrics.predictions import write_predictions


def noise(logits, size, batches=50):
    generator = torch.Generator().manual_seed(0)
    return batch_noise(logits, size, 1.0, batches, generator).tolist()


def test_a_batch_of_all_images_has_none():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    share, difference, distance = noise(logits, 20)
    assert share == pytest.approx(len(logits.argmax(1).unique()) / 3)
    assert difference == pytest.approx(0) and distance == pytest.approx(0)


def test_single_images_by_hand():
    # Row 0 of all images: softmax of the mean of (2 ln 3, 0) and (0, 0), thus (3/4, 1/4). An image
    # alone has the row (9/10, 1/10) or (1/2, 1/2): differences 0.15 and 0.25. Class 1 is nowhere.
    logits = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    share, difference, distance = noise(logits, 1, 2000)
    kl = [(p - 3 / 4) * math.log(p / (1 - p) / 3) for p in (9 / 10, 1 / 2)]
    assert share == 0.5
    assert difference == pytest.approx(0.2, abs=0.005)
    assert distance == pytest.approx(sum(kl) / 2, abs=0.01)


def test_table_of_runs(tmp_path):
    probabilities = torch.eye(3, dtype=torch.float64).repeat(4, 1).numpy()
    names = [f"{number}.png" for number in range(12)]
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        path = tmp_path / run / "predictions_test.csv"
        write_predictions(path, names, probabilities.argmax(1), probabilities, ["x", "y", "z"])
    command = [sys.executable, "-m", "benchmarks.relation_noise", tmp_path / "a", tmp_path / "b"]
    done = subprocess.run([*command, "--batch_sizes", "12"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "| 12 | 100% | 0.000 | 0.000 |", done.stderr
    done = subprocess.run([*command, "--batch_sizes", "13"], capture_output=True, text=True)
    assert done.returncode and "12 images" in done.stderr and "Traceback" not in done.stderr
