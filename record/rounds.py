"""A finished round as numbers: its row of metrics.csv and its relation matrices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from confuse_matrix import RelationMatrix, average_matrices
from local_update import ClientUpdate
from utils.metrics.numbers import classification_metrics

UNLABELED_STATS = ("consistency_loss", "relation_loss", "consistency_weight", "reliable_share")


def round_row(round: int, reports: Sequence[ClientUpdate]) -> dict:
    """A row of metrics.csv: losses as means over the clients that have them, None where no one has.

    Seconds and learning rates are the mean per client. A client is labelled where it reports a
    relation matrix.
    """
    labeled = [report for report in reports if report.matrix is not None]
    unlabeled = [report for report in reports if report.matrix is None]
    phases = {(True, False): "labeled", (True, True): "all", (False, True): "unlabeled"}
    return {
        "round": round,
        "phase": phases[bool(labeled), bool(unlabeled)],
        "learning_rate_labeled": _mean(labeled, "learning_rate"),
        "learning_rate_unlabeled": _mean(unlabeled, "learning_rate"),
        "loss": float(np.mean([report.loss for report in reports])),
        "supervised_loss": _mean(labeled, "supervised_loss"),
        **{name: _mean(unlabeled, name) for name in UNLABELED_STATS},
        "clients_labeled": len(labeled),
        "clients_unlabeled": len(unlabeled),
        "seconds_labeled": _mean(labeled, "seconds"),
        "seconds_unlabeled": _mean(unlabeled, "seconds"),
    }


def evaluation_numbers(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> dict[str, float]:
    """The class-averaged metrics of metrics.csv; `accuracy` is one-vs-rest at the threshold."""
    metrics = classification_metrics(labels, probabilities, threshold)
    return {
        "auroc": metrics.macro("auroc"),
        "accuracy": metrics.macro("one_vs_rest_accuracy"),
        "top1": metrics.top1_accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "sensitivity": metrics.macro("sensitivity"),
        "specificity": metrics.macro("specificity"),
        "precision": metrics.macro("precision"),
        "f1": metrics.macro("f1"),
    }


class RoundMatrices(NamedTuple):
    """Mean relation matrices of one round, as nested lists (C x C) of probabilities, or None."""

    round: int
    labeled: list | None
    unlabeled: list | None

    @classmethod
    def of_round(cls, round: int, reports: Sequence[ClientUpdate]) -> "RoundMatrices":
        """The means over the clients that report a matrix of either kind."""
        return cls(
            round,
            _mean_matrix([report.matrix for report in reports]),
            _mean_matrix([report.pseudo_matrix for report in reports]),
        )

    def means(self) -> dict[str, np.ndarray]:
        """Source name of matrices.csv -> (C, C) array, for the sources there are."""
        named = {"labeled_mean": self.labeled, "unlabeled_mean": self.unlabeled}
        return {name: np.array(matrix) for name, matrix in named.items() if matrix is not None}


def matrices_rows(rounds: Sequence[RoundMatrices], class_names: Sequence[str]) -> list[dict]:
    """matrices.csv in long form; a row that is not present has the value None."""
    return [
        {
            "round": matrices.round,
            "source": source,
            "row": class_names[row],
            "column": class_names[column],
            "value": None if np.isnan(value) else float(value),
        }
        for matrices in rounds
        for source, matrix in matrices.means().items()
        for (row, column), value in np.ndenumerate(matrix)
    ]


def _mean(reports: Sequence[ClientUpdate], name: str) -> float | None:
    values = [report.stats[name] for report in reports if name in report.stats]
    return float(np.mean(values)) if values else None


def _mean_matrix(matrices: Sequence[RelationMatrix | None]) -> list | None:
    measured = [matrix for matrix in matrices if matrix is not None]
    if not measured:
        return None
    return average_matrices(measured).probabilities().to(torch.float64).tolist()
