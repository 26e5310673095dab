"""The disease relation matrix (eq. 2, 3, 5) and the distance between two of them (eq. 6).

Matrices travel as logarithms of their softmax rows: KL terms then stay finite, gradients too,
where the probabilities themselves would underflow to 0.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

DISTANCES = ("kl", "wasserstein")


class RelationMatrix(NamedTuple):
    """log_rows (C, C): row c is log s_c of eq. 3. present (C,) bool: rows that count."""

    log_rows: torch.Tensor
    present: torch.Tensor

    def probabilities(self) -> torch.Tensor:
        """The matrix itself, (C, C), each row summing to 1; NaN in rows that are not present."""
        return self.log_rows.exp().masked_fill(~self.present[:, None], math.nan)

    def to(self, device: torch.device | str) -> "RelationMatrix":
        """The same matrix on `device`."""
        return RelationMatrix(self.log_rows.to(device), self.present.to(device))

    def named(self) -> dict[str, torch.Tensor]:
        """The matrix as named tensors: so it travels, and lies in a run's state."""
        return {f"relation_{name}": value for name, value in self._asdict().items()}

    @classmethod
    def from_named(cls, tensors: Mapping[str, torch.Tensor]) -> "RelationMatrix | None":
        """The matrix among named tensors, None where there is none."""
        names = [f"relation_{name}" for name in cls._fields]
        return cls(*map(tensors.get, names)) if tensors.keys() >= set(names) else None


def class_sums(
    scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-class sums of scores (B, C) by labels (B,): ((C, C), counts (C,)).

    `weights` (B,), 0 or 1, picks the samples that take part. Differentiable in `scores`.
    """
    members = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)  # (B, C)
    if weights is not None:
        members = members * weights.to(scores.dtype)[:, None]
    return members.T @ scores, members.sum(dim=0)


def relation_matrix(
    sums: torch.Tensor,
    counts: torch.Tensor,
    temperature: float = 2.0,
    absent: str = "uniform",
    min_rows: int = 1,
) -> RelationMatrix:
    """Relation matrix from per-class sums (C, C) and counts (C,): eq. 2 and 3.

    Row c is softmax(v_c / temperature) with v_c = sums_c / counts_c. A class without samples
    has a uniform row that counts (absent "uniform", the released program) or does not take part
    in the matching (absent "skip"; then a class of fewer than `min_rows` samples is no better than
    an absent one). Where there is no sample at all, no row counts.
    """
    means = sums / counts.clamp(min=1)[:, None]
    log_rows = functional.log_softmax(means / temperature, dim=1)
    if absent == "uniform":
        present = (counts.sum() > 0).expand(len(counts))
    elif absent == "skip":
        present = counts >= min_rows
    else:
        raise ValueError(f"absent is 'uniform' or 'skip', not {absent!r}")
    return RelationMatrix(log_rows, present)


def get_confuse_matrix(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    absent: str = "uniform",
    weights: torch.Tensor | None = None,
) -> RelationMatrix:
    """The relation matrix of one batch: logits (B, C), labels (B,) -> `RelationMatrix`.

    With probabilities instead of logits, pseudo labels, and the reliable samples as `weights`
    (B,), it is eq. 5. Differentiable in `logits`.
    """
    return relation_matrix(*class_sums(logits, labels, weights), temperature, absent)


def average_matrices(matrices: Sequence[RelationMatrix]) -> RelationMatrix:
    """Row by row the mean of the matrices whose row is present; in probabilities, not logs.

    One matrix at least, all on one device; a row that none has is uniform and not present.
    """
    log_rows = torch.stack([matrix.log_rows for matrix in matrices])  # (K, C, C)
    present = torch.stack([matrix.present for matrix in matrices])  # (K, C)
    counted = log_rows.masked_fill(~present[:, :, None], -math.inf)
    mean = torch.logsumexp(counted, dim=0) - present.sum(dim=0).clamp(min=1).log()[:, None]
    anywhere = present.any(dim=0)
    uniform = torch.full_like(mean, -math.log(mean.shape[1]))
    return RelationMatrix(torch.where(anywhere[:, None], mean, uniform), anywhere)


def kd_loss(source: RelationMatrix, target: RelationMatrix) -> torch.Tensor:
    """Symmetric KL between matching rows, eq. 6: mean over rows of KL(t||s) + KL(s||t).

    A scalar, at least 0, finite for logit gaps up to 1e4. The mean runs over the rows present in
    both (over all C where every class is present, as eq. 6 has it); 0 when there is none.
    Gradients flow into `source` only.
    """
    target_log = target.log_rows.detach()
    difference = target_log - source.log_rows
    per_row = ((target_log.exp() - source.log_rows.exp()) * difference).sum(dim=1)
    return _mean_over_present(per_row, source, target)


def wasserstein_loss(source: RelationMatrix, target: RelationMatrix) -> torch.Tensor:
    """First Wasserstein distance between matching rows, mean over rows, a scalar.

    On a line the distance is the area between the two cumulative distributions; here the classes
    stand on that line, one unit apart, in the order of the label file's columns. The order
    therefore matters: mass moved from the first class to the last costs C - 1, to its neighbour 1.
    For classes without a natural order that is a convention of the file, not of medicine.
    Gradients flow into `source` only. Rows as in `kd_loss`.
    """
    difference = source.log_rows.exp() - target.log_rows.detach().exp()
    per_row = difference.cumsum(dim=1).abs().sum(dim=1)
    return _mean_over_present(per_row, source, target)


def relation_loss(source: RelationMatrix, target: RelationMatrix, distance: str) -> torch.Tensor:
    """L_IRM with the distance "kl" (eq. 6) or "wasserstein" (the slides' experiment)."""
    return {"kl": kd_loss, "wasserstein": wasserstein_loss}[distance](source, target)


def _mean_over_present(
    per_row: torch.Tensor, source: RelationMatrix, target: RelationMatrix
) -> torch.Tensor:
    counted = (source.present & target.present).to(per_row.dtype)
    return (per_row * counted).sum() / counted.sum().clamp(min=1)


class RelationMeter:
    """Measures a client's relation matrix while it trains.

    over "dataset": per-class mean over all samples added since `restart`, then softmax (the
    paper's eq. 2 and 3). over "batches": the mean of each batch's own softmaxed matrix (the
    released program).

    A class of fewer than `min_samples` samples since `restart` is given the row of a class without
    any: of one sample the row would be what the network says about that very sample. `min_rows` is
    that of `relation_matrix`, for each batch's matrix and for the one of all.
    """

    def __init__(
        self, temperature: float, absent: str, over: str, min_samples: int = 1, min_rows: int = 1
    ):
        if over not in ("dataset", "batches"):
            raise ValueError(f"over is 'dataset' or 'batches', not {over!r}")
        self.temperature, self.absent, self.over = temperature, absent, over
        self.min_samples, self.min_rows = min_samples, min_rows
        self.seen: torch.Tensor | None = None  # (C,) samples, where rows may have to be hidden
        self.sums: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None
        self.batches: list[RelationMatrix] = []

    def restart(self) -> None:
        """A new pass over the client's data begins: "dataset" forgets the one before it."""
        self.sums = self.counts = self.seen = None

    def add(
        self, scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> RelationMatrix:
        """Count one batch in: scores (B, C), labels (B,), weights (B,); the batch's own matrix."""
        sums, counts = class_sums(scores, labels, weights)
        if self.min_samples > 1:
            self.seen = counts.detach() + (0 if self.seen is None else self.seen)
        batch = self._matrix(sums, counts)
        if self.over == "batches":
            self.batches.append(RelationMatrix(batch.log_rows.detach(), batch.present))
        elif self.sums is None:
            self.sums, self.counts = sums.detach(), counts.detach()
        else:
            self.sums, self.counts = self.sums + sums.detach(), self.counts + counts.detach()
        return batch

    def matrix(self) -> RelationMatrix:
        """What was measured; at least one batch must have been added."""
        if self.over == "batches":
            measured = average_matrices(self.batches)
        else:
            measured = self._matrix(self.sums, self.counts)
        if self.min_samples == 1:
            return measured
        enough = self.seen >= self.min_samples
        uniform = torch.full_like(measured.log_rows, -math.log(len(enough)))
        log_rows = torch.where(enough[:, None], measured.log_rows, uniform)
        # In the words of `relation_matrix`: absent classes count, or take no part.
        present = measured.present if self.absent == "uniform" else measured.present & enough
        return RelationMatrix(log_rows, present)

    def _matrix(self, sums: torch.Tensor, counts: torch.Tensor) -> RelationMatrix:
        return relation_matrix(sums, counts, self.temperature, self.absent, self.min_rows)
