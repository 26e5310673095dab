"""Small training runs as processes of their own, to be killed, damaged and compared.

The processes are forked from one that has imported everything, so a run takes a second, not ten;
they are real processes all the same, ended by real signals.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torchvision.models import DenseNet

import networks.models
import tasks.classification
import train_main
from dataloaders.partition import SPLIT_FILES, split_table, write_parts
from dataloaders.phantom.files import write_png
from dataloaders.phantom.patients import generate
from dataloaders.table import read_table
from predict.inference import predict_set
from utils.checkpoint import load_checkpoint, verify_checkpoint
from utils.errors import run_command
from utils.metrics.predictions import write_predictions
from utils.tensors import named_tensors

METHODS = ("fedirm", "fed_consistency", "fed_selftraining", "fedavg")
TIMES = ("seconds_labeled", "seconds_unlabeled", "seconds_round")
ROUNDS = 3


def build_small_densenet(num_outputs: int) -> DenseNet:
    """A stand-in for DenseNet121 with the same parts and some 4,000 weights."""
    network = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, bn_size=2)
    network.classifier = nn.Sequential(nn.Linear(network.classifier.in_features, num_outputs))
    return network


def write_predictions_only(folder: Path, _checkpoint, net, test, args) -> None:
    """A stand-in for the report at the end of a run, whose figures take longer than the run."""
    write_predictions(folder / "predictions_test.csv", *predict_set(net, test, args.batch_size))


def make_data(folder: Path, patients: int = 22, size: int = 32) -> list[str]:
    """A phantom as PNGs and CSVs in `folder`; the flags that name it, and those of a small run."""
    phantom = generate(patients, size, 1, slices_per_patient=2, with_bleed_rows_only=True)
    table = read_table(write_png(phantom, folder))
    parts = split_table(table, [0.6, 0.15, 0.25], 1)
    write_parts(folder, table, dict(zip(SPLIT_FILES, parts, strict=True)))
    names = ("csv_file_train", "csv_file_val", "csv_file_test")
    flags = {name: folder / file for name, file in zip(names, SPLIT_FILES, strict=True)}
    flags |= {"root_path": folder / "images", "cache_dir": folder / "cache", "image_size": size}
    flags |= {"preset": "paper", "pretrained": 0, "gpu": "cpu", "progress": 0}
    flags |= {"num_users": 4, "rounds": ROUNDS, "batch_size": 4}
    flags |= {
        "figure_every": 1000,
        "state_every": 1,
        "consistency_rampup": 2,
        "entropy_threshold": 1.6,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def start(
    arguments: Sequence[str],
    output: Path,
    small: bool = True,
    before: Callable[[], None] | None = None,
    main: Callable[[], int | None] = train_main.main,
) -> int:
    """Fork a process that runs `main` with these command-line arguments; its process id.

    What it prints is appended to `output`. `before` runs in it first.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        # A shell that runs the trials in the background has its children ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["train_main.py", *map(str, arguments)]
        if small:
            networks.models.build_densenet121 = build_small_densenet
            tasks.classification.report_run = write_predictions_only
        if before is not None:
            before()
        run_command(main)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(process: int, limit: float = 300) -> int:
    """Wait for a process: its exit status, or minus the signal that ended it."""
    end = time.monotonic() + limit
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} still ran after {limit} s")
        time.sleep(0.002)


def complete(arguments: Sequence[str], output: Path, **options) -> int:
    """Run to the end; the exit status."""
    return finish(start(arguments, output, **options))


def whole_states(folder: Path) -> list[int]:
    """The rounds whose state, clients' files included, can be loaded; raises for a damaged one."""
    rounds = []
    for path in sorted((folder / "checkpoints").glob("state_*.pth")):
        content = load_checkpoint(path)
        for name, digest in content["clients"].values():
            verify_checkpoint(folder / "checkpoints" / "clients" / name, digest)
        rounds.append(content["next_round"])
    return rounds


def rounds_begun(folder: Path) -> int:
    """How many rounds log.txt says were begun."""
    log = folder / "log.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    begun = [int(line.rsplit("= ")[-1]) for line in lines if line.startswith("Begin: com_round")]
    return max(begun, default=-1) + 1


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on interruptions, by name."""
    found: dict[str, object] = {}
    for path in sorted((folder / "checkpoints").glob("epoch_*.pth")):
        found |= {f"{path.name}/{k}": v for k, v in named_tensors(load_checkpoint(path))}
    path = max((folder / "checkpoints").glob("state_*.pth"))
    state = load_checkpoint(path)
    found |= {f"state/{name}": tensor for name, tensor in named_tensors(state)}
    found["state"] = path.name
    for client, (name, digest) in state["clients"].items():
        memory = load_checkpoint(folder / "checkpoints" / "clients" / name, digest)["memory"]
        found |= {f"client {client}/{key}": tensor for key, tensor in named_tensors(memory)}
        found[f"client {client}/step"] = memory.get("step")
    metrics = pd.read_csv(folder / "metrics.csv", dtype=str).drop(columns=list(TIMES))
    found["metrics.csv"] = metrics.to_csv()
    tested = "scores_test.csv" if (folder / "scores_test.csv").exists() else "predictions_test.csv"
    for name in ("matrices.csv", tested, "split.json"):
        found[name] = (folder / name).read_text()
    return found


def differences(first: dict[str, object], second: dict[str, object]) -> list[str]:
    """Names under which two outcomes are not the same, bit for bit."""
    names = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not same:
            names.append(name)
    return names
