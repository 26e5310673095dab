"""One command per table or figure: runs what is missing, prints ours beside the published numbers.

    python reproduce.py table1 --dry_run
    python reproduce.py table1 | fig2a | fig2b | fig2c | slides | ablation
    python reproduce.py table1 --preset paper --root_path DIR --csv_file_train A.csv ...

Flags that are not listed below go to train_main.py. Runs live in RUNS/PRESET/NAME-seedN and are
shared by the tables; finished ones are reused, interrupted ones go on, missing ones are run.
"""

import argparse
import heapq
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from dataloaders.embedded import name_embedded_data
from local_unsupervised import UnsupervisedLocalUpdate
from options import DATA_FLAGS, FREE_ON_RESUME, args_parser, needs_embedded_data
from utils.client import LocalUpdate
from utils.comparison import REPORTS, SettingRuns, write_item
from utils.errors import UserError, run_command
from utils.experiments import ITEMS, Setting
from utils.files import folder_bytes, free_bytes, megabytes
from utils.flags import OneLineParser
from utils.paper_numbers import PAPER
from utils.run_folder import read_arguments, read_metrics
from utils.run_state import KEPT_STATES, round_bytes, stored_bytes

# What decides where a run is stored and how it is run, not what it computes. Data may have moved,
# but nothing here has read both: other paths are other data.
_PLACES = FREE_ON_RESUME - set(DATA_FLAGS) | {"run_dir"}
_SET_HERE = frozenset(
    ["--method", "--num_users", "--num_labeled", "--num_unlabeled", "--seed", "--run_dir"]
    + ["--labeled_ids", "--labeled_fraction", "--split", "--resume", "--gpu", "--preset"]
)
_TRAIN_MAIN = Path(__file__).with_name("train_main.py")
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PlannedRun:
    """One training run that an item needs."""

    setting: Setting
    seed: int
    folder: Path
    flags: tuple[str, ...]
    args: argparse.Namespace

    def rounds_done(self) -> int:
        """Rounds in metrics.csv; 0 where there is none yet."""
        metrics = self.folder / "metrics.csv"
        return len(read_metrics(metrics)) if metrics.exists() else 0

    def rounds_left(self) -> int:
        """Rounds that are still to do; 0 for a finished run."""
        return max(self.args.rounds - self.args.start_epoch - self.rounds_done(), 0)

    def state(self) -> str:
        """finished, interrupted or missing."""
        if not (self.folder / "args.json").exists():
            return "missing"
        return "interrupted" if self.rounds_left() else "finished"

    def check(self) -> None:
        """Raise UserError where the folder holds a run of other flags."""
        if self.state() == "missing":
            return
        kept = read_arguments(self.folder)
        wanted = _plain(vars(self.args))
        for flag, value in wanted.items():
            if flag not in _PLACES and kept.get(flag) != value:
                raise UserError(
                    f"{self.folder}: was run with --{flag} {kept.get(flag)}, now {value} is "
                    "asked for; give another --runs folder or remove it"
                )
        if kept["rounds"] > self.args.rounds:
            raise UserError(
                f"{self.folder}: has {kept['rounds']} rounds, now {self.args.rounds} are asked "
                "for; give another --runs folder or remove it"
            )

    def command(self, program: str, gpu: str | None, quiet: bool) -> list[str]:
        """The command line that starts the run or goes on with it."""
        if self.state() == "interrupted":
            free = FREE_ON_RESUME - {"rounds"}
            words = ["--resume", str(self.folder), "--rounds", str(self.args.rounds)]
            words += _only_flags(self.flags, {f"--{flag}" for flag in free})
        else:
            words = [*self.flags, "--run_dir", str(self.folder)]
        words += ["--gpu", gpu] if gpu else []
        words += ["--progress", "0"] if quiet else []
        return [sys.executable, *shlex.split(program), *words]


def _only_flags(words: Sequence[str], wanted: Set[str]) -> list[str]:
    """The flags among `words` that are `wanted`, each with its values."""
    kept, keeping = [], False
    for word in words:
        if word.startswith("--"):
            keeping = word.partition("=")[0] in wanted
        if keeping:
            kept.append(word)
    return kept


def main() -> int:
    """Run what an item lacks, then write its tables and figures; the exit status."""
    options, train_flags = parse(sys.argv[1:])
    plan = make_plan(options, train_flags)
    unique = list({run.folder: run for run in plan}.values())
    for run in unique:
        run.check()
    missing = [run for run in unique if run.state() != "finished"]
    print_plan(unique, options)
    if options.dry_run:
        return 0
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    run_all(missing, options)
    report(plan, options)
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This program's options, and the flags that go to train_main.py."""
    parser = OneLineParser(
        prog="python reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("item", choices=ITEMS, help="table or figure to make")
    parser.add_argument("--preset", default="bench", help="preset of every run (bench)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1338, 1339])
    parser.add_argument(
        "--report",
        choices=REPORTS,
        default="last",
        help="numbers of the last evaluated round, their mean over the last four, or those of the "
        "round with the best validation AUROC",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument(
        "--gpu", default=None, help="CUDA devices, one per job where --jobs > 1; or 'cpu'"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/reproduce"), help="folder of all runs and results"
    )
    parser.add_argument(
        "--program",
        default=shlex.quote(str(_TRAIN_MAIN)),
        help="Python program that trains a run, options of its own behind it",
    )
    parser.add_argument(
        "--task",
        choices=PAPER,
        default=None,
        help="whose published numbers stand beside ours; default: skin with preset paper-skin, "
        "else ICH",
    )
    options, rest = parser.parse_known_args(argv)
    train_flags = [word for word in rest if word != "--"]
    for word in train_flags:
        if word.partition("=")[0] in _SET_HERE:
            raise UserError(f"{word}: set by {options.item} itself or by a flag of reproduce.py")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("--seeds: the same seed twice is not another sample")
    return options, train_flags


def make_plan(options: argparse.Namespace, train_flags: Sequence[str]) -> list[PlannedRun]:
    """One run per row and seed; rows that come to the same flags share their runs.

    Raises UserError where train_main.py would refuse a flag.
    """
    plan: list[PlannedRun] = []
    known: dict[str, Path] = {}
    for setting in ITEMS[options.item].settings:
        for seed in options.seeds:
            flags = ["--preset", options.preset, *train_flags, *setting.flags(seed)]
            args = args_parser(flags)
            if needs_embedded_data(args):
                name_embedded_data(args)
            folder = options.runs / options.preset / f"{setting.name}-seed{seed}"
            key = json.dumps(_plain(vars(args)), sort_keys=True)
            folder = known.setdefault(key, folder)
            plan.append(PlannedRun(setting, seed, folder, tuple(flags), args))
    return plan


def _plain(values: dict) -> dict:
    return json.loads(json.dumps(values, default=str))


def print_plan(runs: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """The runs with their state, and what time and disk the unfinished ones will take."""
    for run in runs:
        state = run.state()
        if state == "interrupted":
            state += f" after {run.rounds_done()} of {run.args.rounds} rounds"
        print(f"{run.folder}: {state}")
    left = [run for run in runs if run.state() != "finished"]
    print(f"{len(runs) - len(left)} of {len(runs)} runs finished, {len(left)} to do")
    if left:
        print(estimate(left, options))
        print(disk_estimate(left, options))


def estimate(left: Sequence[PlannedRun], options: argparse.Namespace) -> str:
    """How long the unfinished runs take, from the rounds measured so far in the same folder."""
    files = sorted((options.runs / options.preset).glob("*/metrics.csv"))
    if not files:
        return "time: unknown, no run of this preset has finished a round yet"
    rows = pd.concat([read_metrics(file) for file in files], ignore_index=True)
    clients = {kind: rows[f"clients_{kind}"] for kind in ("labeled", "unlabeled")}
    costs = {kind: rows[f"seconds_{kind}"].mean() for kind in clients}
    busy = sum(clients[kind] * rows[f"seconds_{kind}"].fillna(0) for kind in clients)
    costs["rest"] = (rows["seconds_round"] - busy).clip(lower=0).mean()
    if any(run.args.num_unlabeled for run in left) and pd.isna(costs["unlabeled"]):
        return "time: unknown, no unlabelled client of this preset has been measured yet"
    wall = timedelta(seconds=round(_queue_seconds(left, costs, options.jobs)))
    said = {
        kind: "not measured" if pd.isna(cost) else f"{cost:.2f} s" for kind, cost in costs.items()
    }
    return (
        f"time: at most about {wall} with --jobs {options.jobs}, from {len(rows)} measured rounds "
        f"of {len(files)} run(s): labelled client {said['labeled']}, unlabelled client "
        f"{said['unlabeled']}, rest of a round {said['rest']}"
    )


def disk_estimate(left: Sequence[PlannedRun], options: argparse.Namespace) -> str:
    """What the unfinished runs need of the disk, from the largest finished one of the same folder.

    A run leaves tables, figures and weights and, unless --keep_state is 0, two rounds' states;
    while it trains there are three.
    """
    model = lasting = 0
    for metrics in (options.runs / options.preset).glob("*/metrics.csv"):
        args = read_arguments(metrics.parent)
        if len(read_metrics(metrics)) == args["rounds"] - args["start_epoch"]:
            states = metrics.parent / "checkpoints"
            weights = [path.stat().st_size for path in states.glob("epoch_*.pth")]
            model = max([model, *weights])
            lasting = max(lasting, folder_bytes(metrics.parent) - stored_bytes(states))
    if not model:
        return "disk: unknown, no run of this preset has finished yet"
    needed, while_training = 0, []
    for run in left:
        one_round = round_bytes(model, _remembered_copies(run.args))
        kept = KEPT_STATES * one_round if run.args.keep_state else 0
        needed += max(lasting + kept - folder_bytes(run.folder), 0)
        while_training.append((KEPT_STATES + 1) * one_round - kept)
    needed += sum(sorted(while_training)[-options.jobs :])
    free = free_bytes(options.runs)
    line = f"disk: about {megabytes(needed)}, {megabytes(free)} free in {options.runs}"
    return line if needed <= free else f"{line}: make room or name another place with --runs"


def _remembered_copies(args: argparse.Namespace) -> list[int]:
    """Copies of the model that each client of the run remembers, at most."""
    labeled = [LocalUpdate.remembered_copies] * args.num_labeled
    return labeled + [UnsupervisedLocalUpdate.remembered_copies] * args.num_unlabeled


def _run_seconds(run: PlannedRun, costs: dict[str, float]) -> float:
    """Seconds for the rounds left, as if every client took part in every round."""
    clients = {"labeled": run.args.num_labeled, "unlabeled": run.args.num_unlabeled}
    training = sum(count * costs[kind] for kind, count in clients.items() if count)
    return run.rounds_left() * (costs["rest"] + training)


def _queue_seconds(left: Sequence[PlannedRun], costs: dict[str, float], jobs: int) -> float:
    """Seconds until the last run ends where `jobs` workers take them in order."""
    ends = [0.0] * jobs
    for run in left:
        heapq.heapreplace(ends, ends[0] + _run_seconds(run, costs))
    return max(ends)


def run_all(missing: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """Run what is missing, `jobs` at a time; UserError at the end if any run failed.

    When this program is stopped, its runs are stopped too and keep their finished rounds.
    """
    waiting, running, failed = list(missing), {}, []
    gpus = options.gpu.split(",") if options.gpu and options.jobs > 1 else [options.gpu]
    free = [gpus[number % len(gpus)] for number in range(options.jobs)]
    try:
        while waiting or running:
            while waiting and free:
                run, gpu = waiting.pop(0), free.pop(0)
                running[start(run, gpu, options)] = (run, gpu)
            time.sleep(_POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                run, gpu = running.pop(process)
                free.append(gpu)
                if process.returncode or run.state() != "finished":
                    failed.append(run)
                done = len(missing) - len(waiting) - len(running)
                print(f"[{done}/{len(missing)}] {run.folder}: {run.state()}", flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        raise UserError(
            f"{len(failed)} run(s) failed, the first is {failed[0].folder}; "
            "its error stands above; give the same command again to go on"
        )


def start(run: PlannedRun, gpu: str | None, options: argparse.Namespace) -> subprocess.Popen:
    """Start a run; alone it shows its progress, beside others only its errors."""
    quiet = options.jobs > 1
    command = run.command(options.program, gpu, quiet)
    print(shlex.join(command), flush=True)
    threads = str(max((os.cpu_count() or 1) // options.jobs, 1))
    environment = {"OMP_NUM_THREADS": threads} | os.environ if quiet else None
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(command, stdout=output, env=environment)


def report(plan: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """Write the item's tables and figures and print its Markdown."""
    item = ITEMS[options.item]
    groups = [
        SettingRuns(setting, {run.seed: run.folder for run in plan if run.setting == setting})
        for setting in item.settings
    ]
    task = options.task or ("skin" if options.preset == "paper-skin" else "ICH")
    name = options.item if options.report == "last" else f"{options.item}_{options.report}"
    stem = options.runs / options.preset / "results" / name
    text, written = write_item(item, groups, options.report, task, options.preset, stem)
    print("\n" + text)
    for path in written:
        print(path)


if __name__ == "__main__":
    run_command(main)
