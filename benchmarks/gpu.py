"""What only a GPU can show.

python -m benchmarks.gpu waits        # no step waits for the device
python -m benchmarks.gpu paper        # rounds at the paper's scale, extrapolated to 100
python -m benchmarks.gpu precision    # bf16 and fp32 runs of the bench preset, several seeds
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev

import torch

from benchmarks.data import make_files
from benchmarks.measure import conditions, spread
from benchmarks.ours import Ours, as_a_real_run, product_args, shortened
from local_update import LocalUpdate
from networks.models import Network
from options import args_parser
from utils.errors import UserError, run_command
from utils.table_files import NOT_AVAILABLE, to_markdown
from utils.tensors import net_device

ROOT = Path(__file__).resolve().parents[1]
PAPER_TRAINING, PAPER_TEST, PAPER_ROUNDS = 17_503, 5_007, 100
BATCH_SIZE = 8


def main() -> None:
    """Measure what the command line names; Markdown."""
    options = parse()
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu: no CUDA device here")
    first = torch.device("cuda", int(options.gpu.split(",")[0]))
    print(conditions(first, options.repeats), end="\n\n")
    MEASURES[options.what](options)


def parse() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("what", choices=MEASURES)
    add("--gpu", default="0", help="number of the GPU, or of several: 0,1")
    add("--repeats", type=int, default=3, help="rounds measured, or seeds")
    add("--precision", default="auto", help="as of train_main.py")
    add("--compile", default="auto", help="as of train_main.py")
    add("--deterministic", default="1", help="as of train_main.py")
    return parser.parse_args()


# ---- no step waits


def waits(options: Namespace) -> None:
    """Count the waits for the device in clients of few and of many steps: they must be as many."""
    rows = []
    for cache in ("device", "ram", "disk"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            csvs = make_files(folder, {"train": 16 * BATCH_SIZE, "test": 8}, 64)
            flags = {"gpu": options.gpu, "image_size": 64, "batch_size": BATCH_SIZE}
            flags |= {"num_users": 2, "num_labeled": 1, "cache": cache, "compile": "off"}
            ours = Ours(product_args(folder, csvs, **flags))
            try:
                ours.train()
                for net, client in product(ours.networks, ours.clients):
                    counts = [_waits_of(ours, net, client, steps) for steps in (2, 8)]
                    kind = "labelled" if client.labeled else "unlabelled"
                    rows.append([str(net_device(net)), cache, kind, *map(str, counts)])
            finally:
                ours.run.close()
    print(to_markdown(["device", "images", "client", "waits in 2 steps", "in 8 steps"], rows))
    if any(few != many for *_, few, many in rows):
        raise RuntimeError("a step waits for the device")


def _waits_of(ours: Ours, net: Network, client: LocalUpdate, steps: int) -> int:
    ours.run.store.flush()  # its thread waits for the device, and may
    for device in ours.devices:
        torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with shortened(client, steps), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            client.train(net, ours.weights, 1, ours.shared)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


# ---- the paper's scale


def paper(options: Namespace) -> None:
    """Rounds of train_main.py on 17,503 images of 224 pixels, evaluated on 5,007 each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csvs = make_files(folder, {"train": PAPER_TRAINING, "test": PAPER_TEST}, 224)
        whole = args_parser(["--preset", "paper", "--medmnist", "none.npz"])
        whole.compile, whole.gpu = options.compile, options.gpu
        compiled = as_a_real_run(whole, PAPER_TRAINING)
        print(f"--compile {compiled}, as in a run of {PAPER_ROUNDS} rounds", end="\n\n")
        command = _command(
            "paper",
            root_path=folder / "images",
            csv_file_train=csvs["train"],
            csv_file_test=csvs["test"],
            cache_dir=folder / "cache",
            run_dir=folder / "run",
            rounds=options.repeats + 2,
            figure_every=1000,
            state_every=1,
            gpu=options.gpu,
            precision=options.precision,
            compile=compiled,
            deterministic=options.deterministic,
        )
        moments = _moments(command)
    begins, losses = moments["Begin: com_round"], moments["Loss Avg"]
    # The first round warms up, the last has the report of the run behind it.
    training = [loss - begin for begin, loss in zip(begins[1:-1], losses[1:-1], strict=True)]
    after = [begin - loss for loss, begin in zip(losses[1:-1], begins[2:], strict=True)]
    whole = [one + other for one, other in zip(training, after, strict=True)]
    rows = [
        ["local training and FedAvg, s", spread(training)],
        ["evaluation of 5,007 images, log, checkpoint, s", spread(after)],
        ["their share of the round", f"{median(after) / median(whole):.1%}"],
        ["round, s", spread(whole)],
        [
            f"{PAPER_ROUNDS} rounds, minutes, extrapolated",
            f"{median(whole) * PAPER_ROUNDS / 60:.1f}",
        ],
        ["from the command to the first round, s", f"{begins[0]:.1f}"],
    ]
    print(to_markdown(["10 clients, batches of 48, 224 pixels", ""], rows))


def _command(preset: str, **flags) -> list[str]:
    words = [f"--{name}={value}" for name, value in (flags | {"pretrained": 0}).items()]
    return [sys.executable, "train_main.py", "--preset", preset, "--progress", "0", *words]


def _moments(command: list[str]) -> dict[str, list[float]]:
    """Seconds since the command at which lines with either of these words came."""
    moments: dict[str, list[float]] = {"Begin: com_round": [], "Loss Avg": []}
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            for words, found in moments.items():
                if words in line:
                    found.append(time.perf_counter() - started)
            if "Loss Avg" in line or "compiled" in line or "recorded" in line:  # for who is stopped
                print(f"{time.perf_counter() - started:.1f} s: {line.strip()}", flush=True)
    if process.returncode:
        raise RuntimeError(f"train_main.py ended with {process.returncode}")
    return moments


# ---- precision


def precision(options: Namespace) -> None:
    """Last test AUROC of the bench preset in bf16 and in fp32, a run per seed and precision."""
    rows = []
    for name in ("fp32", "bf16"):
        found = []
        for seed in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                run_dir = Path(folder) / "run"
                flags = {"gpu": options.gpu, "precision": name, "seed": seed, "run_dir": run_dir}
                subprocess.run(_command("bench", **flags), cwd=ROOT, check=True)
                with (run_dir / "metrics.csv").open(newline="") as file:
                    values = [row["test_auroc"] for row in csv.DictReader(file)]
                found.append(float([value for value in values if value][-1]))
                print(f"{name}, seed {seed}: test AUROC {found[-1]:.4f}", flush=True)
        deviation = f"{stdev(found):.4f}" if len(found) > 1 else NOT_AVAILABLE
        rows.append([name, f"{mean(found):.4f}", deviation, ", ".join(map(str, found))])
    print(to_markdown(["precision", "mean AUROC", "standard deviation", "by seed"], rows))


MEASURES = {"waits": waits, "paper": paper, "precision": precision}

if __name__ == "__main__":
    run_command(main)
