"""What Flower costs per round beside the plain loop: DenseNet121's weights, few small images.

python -m benchmarks.flower --clients 10 100

Each number is the median of `seconds_round` over the rounds after the first (the workers start in
the first). The work of training is kept small on purpose: what remains is transport and storage.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from networks.models import DenseNet121
from utils.errors import UserError, run_command
from utils.run import model_bytes

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print a table: clients, engine, seconds of the first round and of the others, factor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flower", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    print(f"weights on the wire: {model_bytes(DenseNet121(5)) / 1e6:.2f} MB a client each way")
    print("clients  engine  first round  other rounds  factor")
    for clients in args.clients:
        baseline = None
        for engine in ("loop", "flower"):
            first, later = measure(engine, clients, args.rounds)
            baseline = baseline or later
            print(
                f"{clients:7}  {engine:6}  {first:10.2f}s  {later:11.2f}s  {later / baseline:5.2f}x"
            )
    return 0


def measure(engine: str, clients: int, rounds: int) -> tuple[float, float]:
    """Seconds of the first round, and the median of the others."""
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
        with open(f"{place}/run/metrics.csv") as file:
            seconds = [float(row["seconds_round"]) for row in csv.DictReader(file)]
    return seconds[0], statistics.median(seconds[1:-1])


if __name__ == "__main__":
    run_command(main)
