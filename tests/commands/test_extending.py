"""What docs/howto-add-*.md add, in a copy of the programs: it runs, and does what the page says."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tasks.classification import Classification
from tests.helpers import PROJECT
from tests.helpers.pages import DEMO, PLAN, add_what_a_page_adds, packages, page
from tests.helpers.small_clients import CPU, make_args, make_dataset, make_network
from tests.helpers.typed_commands import type_command
from utils.metrics.numbers import confusion_matrix
from utils.metrics.predictions import read_predictions
from utils.tensors import copy_weights

METHOD, MORE = "docs/howto-add-a-method.md", "docs/howto-add-more.md"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the programs with all that the two pages add."""
    folder = tmp_path_factory.mktemp("house")
    for path in PROJECT.glob("*.py"):
        shutil.copy2(path, folder)
    for path in packages():
        if path.name != "tests":
            shutil.copytree(path, folder / path.name)
    for name in (METHOD, MORE):
        add_what_a_page_adds(page(name), folder)
    return folder


def typed(beginning: str, folder) -> str:
    """What the command of howto-add-more.md that begins so prints."""
    (command,) = [command for command in PLAN[MORE] if command.startswith(f"python {beginning}")]
    return type_command(f"{command} {PLAN[MORE][command]}", folder)


@pytest.fixture(scope="module")
def with_flag(house):
    """The run of the added flag; it has the added metric, too."""
    typed("train_main.py --preset demo --focal_gamma 2", house)
    return house / "runs/NAME"


def test_how_to_add_a_method(house):
    """Its run is that of `make demo` but for the method."""
    (command,) = PLAN["docs/howto-add-a-method.md"]
    printed = type_command(f"{command} {DEMO} --run_dir runs/entropy", house)
    assert "Semi-Supervised Client: 2" in printed
    assert "generating head CT" in printed
    assert "done: runs/entropy/REPORT.md" in printed


def test_the_added_method_reads_no_labels(house):
    scope = {}
    exec((house / "methods/entropy.py").read_text(), scope)  # noqa: S102
    net, results = make_network(), []
    weights = copy_weights(net)
    for labels in (0, 1):
        dataset = make_dataset()
        dataset.labels = torch.full_like(dataset.labels, labels)
        client = scope["EntropyLocalUpdate"](
            make_args("paper"), dataset, torch.arange(8), 2, Classification()
        )
        results.append(client.train(net.to(CPU), weights, 3, {}))
    assert results[0].stats["loss"] == results[1].stats["loss"] > 0
    for name, value in results[0].weights.items():
        assert torch.equal(value, results[1].weights[name])
    assert not torch.equal(
        results[0].weights["densenet121.classifier.0.weight"],
        weights["densenet121.classifier.0.weight"],
    )


# ---- a flag


def refused(house, *flags: str) -> str:
    command = [sys.executable, "train_main.py", *flags]
    ended = subprocess.run(command, cwd=house, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_an_added_flag_is_known_everywhere(house, with_flag):
    assert json.loads((with_flag / "args.json").read_text())["focal_gamma"] == 2.0
    log = (with_flag / "log.txt").read_text()
    assert "focal_gamma=2.0" in log and " focal_gamma" in log.partition("flags beside preset")[2]
    assert "--focal_gamma 11.0: must lie between 0 and 10" in refused(
        house, "--preset", "demo", "--focal_gamma", "11"
    )
    assert "--focal_gamma 1.0 (was 2.0)" in refused(
        house, "--resume", "runs/NAME", "--rounds", "2", "--focal_gamma", "1"
    )


# ---- a metric


def test_an_added_metric_stands_in_every_table(house, with_flag):
    predictions = read_predictions(with_flag / "predictions_test.csv")
    counts = confusion_matrix(predictions.labels, predictions.probabilities)
    total = counts.sum()
    agreed = np.trace(counts) / total
    chance = sum(counts[k].sum() * counts[:, k].sum() for k in range(len(counts))) / total**2
    kappa = (agreed - chance) / (1 - chance)
    assert pd.read_csv(with_flag / "metrics.csv")["test_kappa"][0] == pytest.approx(kappa)
    overall = pd.read_csv(with_flag / "tables/overall.csv").set_index("metric")
    assert overall["value"]["Cohen's kappa"] == pytest.approx(kappa, abs=1e-3)
    assert "Cohen's kappa" in typed("-m utils.metrics", house)
    assert "Cohen's kappa" in (with_flag / "REPORT.md").read_text()


# ---- a data set


def test_an_added_data_set_becomes_images_and_a_csv(house):
    generator = np.random.default_rng(0)
    for number in range(30):
        folder = house / "pictures" / ("benign", "malignant")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"lesion_{number}.png")
    assert "30" in typed("-m dataloaders.prepare folders", house)
    labels = pd.read_csv(house / "data/pictures/labels.csv")
    assert list(labels.columns) == ["ImageID", "benign", "malignant"] and len(labels) == 30
    number = labels["ImageID"].str.extract(r"lesion_(\d+)")[0].astype(int)
    assert (labels["malignant"] == number % 2).all() and (labels["benign"] == 1 - number % 2).all()
    assert len(list((house / "data/pictures/images").iterdir())) == 30
    typed("-m dataloaders.partition", house)
    assert (house / "data/pictures/training.csv").exists()


# ---- a task


def test_an_added_task_trains_scores_and_reports(house):
    assert "done: runs/grading/REPORT.md" in typed("train_main.py --preset demo --task", house)
    metrics = pd.read_csv(house / "runs/grading/metrics.csv")
    assert 0 < metrics["test_grade_error"][0] < 4
    spec = importlib.util.spec_from_file_location("grading", house / "tasks/grading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Of five grades all alike: 0.8^2 + 0.6^2 + 0.4^2 + 0.2^2 = 1.2 off where the lowest is right,
    # 2 (0.2^2 + 0.4^2) = 0.4 where the middle one is.
    loss = module.Grading().supervised_loss(torch.zeros(2, 5), torch.tensor([0, 2]), None)
    assert loss.item() == pytest.approx((1.2 + 0.4) / 2)
