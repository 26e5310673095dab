"""What Flower costs per round beside the plain loop: DenseNet121's weights, few small images.

python -m benchmarks.flower --clients 10 100

Each number is the median of `seconds_round` over the rounds between the first, in which the workers
start, and the last, which evaluates. The work of training is kept small on purpose: what remains is
transport and storage.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from networks.models import DenseNet121
from networks.saved import model_bytes
from utils.errors import UserError, run_command
from utils.plots.runs import read_metrics
from utils.table_files import to_markdown

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print a table: clients, engine, seconds of the first round and of the middle ones, factor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    if args.rounds < 3:
        raise UserError(f"--rounds {args.rounds}: must be at least 3, a first, a middle, a last")
    print(f"weights on the wire: {model_bytes(DenseNet121(5)) / 1e6:.2f} MB a client each way")
    rows = []
    for clients in args.clients:
        baseline = None
        for engine in ("loop", "flower"):
            first, middle = measure(engine, clients, args.rounds)
            baseline = baseline or middle
            numbers = [f"{first:.2f}", f"{middle:.2f}", f"{middle / baseline:.2f}"]
            rows.append([str(clients), engine, *numbers])
    print(to_markdown(["clients", "engine", "first round, s", "middle rounds, s", "factor"], rows))
    return 0


def measure(engine: str, clients: int, rounds: int) -> tuple[float, float]:
    """Seconds of the first round, and the median of those between the first and the last."""
    with tempfile.TemporaryDirectory() as place:
        flags = ["--preset", "demo", "--image_size", "32", "--gpu", "cpu", "--join_epoch", "-1"]
        flags += ["--num_users", str(clients), "--num_labeled", "2", "--rounds", str(rounds)]
        flags += ["--phantom_patients", str(max(20, 4 * clients)), "--phantom_slices", "1"]
        flags += ["--engine", engine, "--run_dir", f"{place}/run", "--eval_every", str(rounds)]
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "train_main.py"), *flags],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"{engine}, {clients} clients: {done.stderr[-500:]}")
        seconds = read_metrics(f"{place}/run/metrics.csv")["seconds_round"]
    return seconds.iloc[0], seconds.iloc[1:-1].median()


if __name__ == "__main__":
    run_command(main)
