"""A finished round as numbers: its row of metrics.csv and its matrices."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from local_update import ClientUpdate
from utils.plots.runs import SOURCES

BY_KIND = ("learning_rate", "seconds")  # what is told of labelled and unlabelled clients apart


def round_row(round: int, reports: Sequence[ClientUpdate]) -> dict:
    """A row of metrics.csv: each statistic by its own name, the mean of the clients that have it.

    Seconds and learning rates are told of either kind of client apart, None where there is none.
    """
    labeled = [report for report in reports if report.labeled]
    unlabeled = [report for report in reports if not report.labeled]
    phases = {(True, False): "labeled", (True, True): "all", (False, True): "unlabeled"}
    names = dict.fromkeys(name for report in reports for name in report.stats)
    return {
        "round": round,
        "phase": phases[bool(labeled), bool(unlabeled)],
        "learning_rate_labeled": _mean(labeled, "learning_rate"),
        "learning_rate_unlabeled": _mean(unlabeled, "learning_rate"),
        **{name: _mean(reports, name) for name in names if name not in BY_KIND},
        "clients_labeled": len(labeled),
        "clients_unlabeled": len(unlabeled),
        "seconds_labeled": _mean(labeled, "seconds"),
        "seconds_unlabeled": _mean(unlabeled, "seconds"),
    }


def is_scored(round: int, args: Namespace) -> bool:
    """Whether the model is evaluated after this round; after the run's last one it always is."""
    last = round + 1 == args.rounds
    return last or (round + (args.eval_at == "last")) % args.eval_every == 0


class RoundMatrices(NamedTuple):
    """The matrices of one round for the figures, by their source in matrices.csv: nested lists
    (C x C), NaN where there is no value."""

    round: int
    means: dict[str, list]

    @classmethod
    def of_round(cls, round: int, pictures: Mapping[str, torch.Tensor]) -> "RoundMatrices":
        """Of a server's `pictures`."""
        return cls(round, {name: matrix.tolist() for name, matrix in pictures.items()})


def classes_not_found(matrices: RoundMatrices, class_names: Sequence[str]) -> list[str]:
    """Classes that labelled clients have, and that no unlabelled one took anything for."""
    if not matrices.means.keys() >= set(SOURCES):
        return []
    has, finds = (np.isfinite(matrices.means[source]).any(axis=1) for source in SOURCES)
    return [name for name, lost in zip(class_names, has & ~finds, strict=True) if lost]


MATRIX_COLUMNS = ("round", "source", "row", "column", "value")


def matrices_rows(matrices: RoundMatrices, class_names: Sequence[str]) -> list[dict]:
    """One round in matrices.csv's long form; a row that is not present has the value None."""
    return [
        {
            "round": matrices.round,
            "source": source,
            "row": class_names[row],
            "column": class_names[column],
            "value": None if np.isnan(value) else float(value),
        }
        for source, matrix in matrices.means.items()
        for (row, column), value in np.ndenumerate(np.array(matrix))
    ]


def _mean(reports: Sequence[ClientUpdate], name: str) -> float | None:
    values = [report.stats[name] for report in reports if name in report.stats]
    return float(np.mean(values)) if values else None
