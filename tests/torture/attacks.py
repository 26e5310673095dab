"""One of five clients lies in every round: what each rule of `--aggregate` makes of it.

`python -m tests.torture attacks` prints the table of docs/RELIABILITY.md: the AUROC after six
rounds with a stand-in network, or that the run was refused, and in how many rounds the log named
the liar as an outlier.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from confuse_matrix import RelationMatrix
from local_supervised import SupervisedLocalUpdate
from local_update import ClientUpdate, LocalUpdate
from robust import AGGREGATES
from tests.torture.runs import complete
from utils.files import write_text
from utils.table_files import to_csv

SIZE, CLASSES, TRAINING, TEST = 32, 5, 150, 60
ROUNDS, LIAR = 6, 1  # of the clients 0 to 4 the first three have labels
Lie = Callable[[ClientUpdate, dict[str, torch.Tensor]], ClientUpdate]


def make_images(folder: Path) -> None:
    """Noise whose brightness is its class, and the CSVs of a training and a test set."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    header = ["ImageID", *"abcde"[:CLASSES]]
    for name, count in (("train", TRAINING), ("test", TEST)):
        rows = []
        for i in range(count):
            label = i % CLASSES
            noise = draws.integers(0, 120, (SIZE, SIZE), dtype=np.uint8) + np.uint8(25 * label)
            Image.fromarray(noise).save(folder / f"{name}_{i}.png")
            rows.append([f"{name}_{i}.png", *(str(int(c == label)) for c in range(CLASSES))])
        write_text(folder / f"{name}.csv", to_csv(header, rows))


def changed(update: ClientUpdate, function, ending: str = "") -> ClientUpdate:
    """`update` with `function(name, value)` in the place of its floating entries."""
    lies = {
        name: function(name, value)
        for name, value in update.weights.items()
        if value.is_floating_point() and name.endswith(ending)
    }
    return update._replace(weights=update.weights | lies)


def moved(factor: float) -> Lie:
    """The change of the parameters times `factor`."""

    def lie(update: ClientUpdate, received: dict[str, torch.Tensor]) -> ClientUpdate:
        def move(name: str, value: torch.Tensor) -> torch.Tensor:
            statistic = "running_" in name
            return value if statistic else received[name] + factor * (value - received[name])

        return changed(update, move)

    return lie


def noise(update: ClientUpdate, received: dict[str, torch.Tensor]) -> ClientUpdate:
    """N(0, 25) for the parameters."""
    draws = torch.Generator().manual_seed(update.num_samples)
    return changed(
        update,
        lambda name, value: (
            value if "running_" in name else 5 * torch.randn(value.shape, generator=draws)
        ),
    )


def wrong_matrix(update: ClientUpdate, received: dict[str, torch.Tensor]) -> ClientUpdate:
    """A relation matrix that is certain of the next class."""
    count = len(update.shared["relation_present"])
    rows = (20 * torch.eye(count).roll(1, dims=1)).log_softmax(dim=1)
    return update._replace(shared=RelationMatrix(rows, torch.ones(count, dtype=torch.bool)).named())


ATTACKS: dict[str, Lie] = {
    "none": lambda update, received: update,
    "weights x 1000": lambda update, received: changed(update, lambda _, value: value * 1000),
    "update x 1e6": moved(1e6),
    "running_mean 1e5": lambda update, received: changed(
        update, lambda _, value: torch.full_like(value, 1e5), "running_mean"
    ),
    "sign flip x 10": moved(-10),
    "all zeros": lambda update, received: changed(update, lambda _, value: value * 0),
    "N(0, 25)": noise,
    "matrix of the wrong class": wrong_matrix,
    "num_samples 1e12": lambda update, received: noise(update, received)._replace(
        num_samples=10**12
    ),
}


def lie_in_every_round(lie: Lie) -> Callable[[], None]:
    """What makes the trainers of a process those of a federation with one liar."""

    def begin() -> None:
        honest = SupervisedLocalUpdate.train

        def train(self: LocalUpdate, net, weights, round, shared) -> ClientUpdate:
            update = honest(self, net, weights, round, shared)
            return lie(update, weights) if self.client == LIAR else update

        SupervisedLocalUpdate.train = train

    return begin


def outcome(folder: Path, status: int, output: str) -> str:
    """One cell of the table."""
    if status:
        return "refused: " + output.rsplit("error: ", 1)[-1].split(";")[0].strip()
    auroc = pd.read_csv(folder / "metrics.csv")["test_auroc"].iloc[-1]
    named = (folder / "log.txt").read_text().count(f": client {LIAR}: its parameters lie")
    statistics = (folder / "log.txt").read_text().count(f": client {LIAR}: its BatchNorm")
    return f"{auroc:.3f} ({max(named, statistics)})"


def run_trials(place: Path, number: int, seed: int) -> int:
    """Every attack against every rule, with `number` seeds from `seed` on; prints a table."""
    place.mkdir(parents=True, exist_ok=True)
    make_images(place / "data")
    flags = ["--preset", "paper", "--pretrained", 0, "--gpu", "cpu", "--progress", 0]
    flags += ["--root_path", place / "data", "--csv_file_train", place / "data" / "train.csv"]
    flags += ["--csv_file_test", place / "data" / "test.csv", "--cache_dir", place / "cache"]
    flags += ["--image_size", SIZE, "--batch_size", 4, "--num_users", 5, "--num_labeled", 3]
    flags += ["--join_epoch", -1, "--local_ep", 4, "--rounds", ROUNDS, "--base_lr", 0.005]
    flags += ["--labeled_lr_late", 0, "--fedavg_weights", "size", "--figure_every", 1000]
    print("| attack | " + " | ".join(AGGREGATES) + " |\n|" + "---|" * (len(AGGREGATES) + 1))
    for attack, lie in ATTACKS.items():
        cells = []
        for rule in AGGREGATES:
            found = []
            for trial in range(seed, seed + number):
                folder = place / f"{attack}-{rule}-{trial}".replace(" ", "_").replace("/", "_")
                output = folder.with_suffix(".txt")
                words = [*flags, "--aggregate", rule, "--seed", trial, "--run_dir", folder]
                status = complete(words, output, before=lie_in_every_round(lie))
                found.append(outcome(folder, status, output.read_text()))
            cells.append(" / ".join(dict.fromkeys(found)))
        print(f"| {attack} | " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({"rounds": ROUNDS, "seeds": number}))
    return 0
