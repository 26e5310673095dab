"""A run's folder for figures, and what was drawn."""

import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd

CLASSES = ["epidural", "subdural", 'any, "other"']


def make_run(folder: Path, seed: int = 1, rounds: int = 5, **flags: object) -> Path:
    """A run folder as train_main.py leaves it, evaluated every second round."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    numbers = np.arange(rounds)
    unlabeled = np.where(numbers > 0, draws.random(rounds), np.nan)
    metrics = pd.DataFrame(
        {
            "round": numbers,
            "phase": np.where(numbers > 0, "all", "labeled"),
            "learning_rate_labeled": 2e-4,
            "loss": draws.random(rounds),
            "supervised_loss": draws.random(rounds),
            "consistency_loss": unlabeled,
            "reliable_share": unlabeled,
            "test_auroc": np.where(numbers % 2 == 0, draws.random(rounds), np.nan),
            "seconds_labeled": 2.0,
        }
    )
    metrics.to_csv(folder / "metrics.csv", index=False)
    rows = [
        (number, source, row, column, 1 / 3 if source == "labeled_mean" else draws.random())
        for number in range(rounds)
        for source in ("labeled_mean", "unlabeled_mean")[: 1 + (0 < number < rounds - 1)]
        for row in CLASSES
        for column in CLASSES
    ]
    frame = pd.DataFrame(rows, columns=["round", "source", "row", "column", "value"])
    frame.to_csv(folder / "matrices.csv", index=False)
    (folder / "args.json").write_text(json.dumps({"seed": seed, "run_dir": str(folder), **flags}))
    return folder


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])
