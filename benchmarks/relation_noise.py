"""How far a batch's relation matrix is from the one of all images, by batch size.

From the predictions of finished runs. Batches are drawn at random from the predicted images; the
matrix of each (pseudo labels, absent classes skipped) is compared with the matrix of all images of
its run. Both describe the same images and the same network, so all that is seen is chance: what
inter-client relation matching would pull at although the relation is already the right one.

    python -m benchmarks.relation_noise runs/bench/fedavg-2-0-seed*
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from confuse_matrix import get_confuse_matrix, kd_loss
from utils.errors import UserError, run_command
from utils.metrics.predictions import read_predictions
from utils.table_files import to_markdown

HEADER = ["batch", "rows present", "mean absolute difference", "symmetric KL (eq. 6)"]


def batch_noise(
    logits: torch.Tensor, size: int, temperature: float, batches: int, generator: torch.Generator
) -> torch.Tensor:
    """Means over `batches` random batches of `size` of logits (N, C): (3,), as in HEADER.

    Logits may miss a constant per image, as logarithms of probabilities do: the softmax over a
    row of the matrix does not see it.
    """
    labels = logits.argmax(dim=1)
    whole = get_confuse_matrix(logits, labels, temperature, "skip")
    found = []
    for _ in range(batches):
        picked = torch.randperm(len(logits), generator=generator)[:size]
        batch = get_confuse_matrix(logits[picked], labels[picked], temperature, "skip")
        difference = (batch.log_rows.exp() - whole.log_rows.exp()).abs()[batch.present]
        share = batch.present.double().mean()
        found.append(torch.stack([share, difference.mean(), kd_loss(batch, whole)]))
    return torch.stack(found).mean(dim=0)


def noise_table(runs: Sequence[Path], sizes: Sequence[int], args: argparse.Namespace) -> str:
    """Markdown: a row per batch size, each a mean over the runs."""
    logits = []
    for run in runs:
        probabilities = torch.from_numpy(read_predictions(run).probabilities)
        if max(sizes) > len(probabilities):
            raise UserError(
                f"{run}: {len(probabilities)} images; --batch_sizes {max(sizes)} is more than that"
            )
        logits.append(probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log())
    rows = []
    for size in sizes:
        generator = torch.Generator().manual_seed(args.seed)
        found = [batch_noise(x, size, args.temperature, args.draws, generator) for x in logits]
        share, difference, distance = torch.stack(found).mean(dim=0).tolist()
        rows.append([str(size), f"{share:.0%}", f"{difference:.3f}", f"{distance:.3f}"])
    return to_markdown(HEADER, rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 24, 48])
    parser.add_argument("--draws", type=int, default=1000, help="batches of each size and run")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = [run / "predictions_test.csv" for run in args.runs]
    print(noise_table(files, args.batch_sizes, args), end="")


if __name__ == "__main__":
    run_command(main)
