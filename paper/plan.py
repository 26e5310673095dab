"""The runs that a table or figure needs: their flags and folders, what is done and what is left."""

import argparse
import heapq
import json
import shlex
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from dataloaders.phantom.embedded import name_embedded_data
from local_unsupervised import UnsupervisedLocalUpdate
from local_update import LocalUpdate
from options import DATA_FLAGS, FREE_ON_RESUME, args_parser, needs_embedded_data
from paper.published import ITEMS, Setting
from record.duration import reason_to_end
from record.state import KEPT_STATES, round_bytes, stored_bytes
from tasks import TASKS
from utils.errors import UserError
from utils.files import folder_bytes, free_bytes, megabytes
from utils.plots.runs import every_argument, read_arguments, read_metrics
from utils.report.blocks import MARKDOWN_FILE

# What decides where a run is stored and how it is run, not what it computes. Data may have moved,
# but nothing here has read both: other paths are other data.
_PLACES = FREE_ON_RESUME - set(DATA_FLAGS) | {"run_dir"}


@dataclass(frozen=True)
class PlannedRun:
    """One training run that an item needs."""

    setting: Setting
    seed: int
    folder: Path
    flags: tuple[str, ...]
    args: argparse.Namespace

    def history(self) -> list[dict]:
        """The rows of metrics.csv; none where there is none yet."""
        metrics = self.folder / "metrics.csv"
        return read_metrics(metrics).to_dict("records") if metrics.exists() else []

    def rounds_left(self) -> int:
        """Rounds that are still to do; 0 for a run that is finished, or that --patience ended."""
        history = self.history()
        headline = TASKS[self.args.task].headline[0]
        if reason_to_end(self.args, history, len(history), headline) is not None:
            return 0
        return max(self.args.rounds - self.args.start_epoch - len(history), 0)

    def state(self) -> str:
        """finished, interrupted or missing. A run is finished with its report: tables are made of
        what it wrote beside it."""
        if not (self.folder / "args.json").exists():
            return "missing"
        reported = (self.folder / MARKDOWN_FILE).exists()
        return "finished" if reported and not self.rounds_left() else "interrupted"

    def check(self) -> None:
        """Raise UserError where the folder holds a run of other flags."""
        if self.state() == "missing":
            return
        kept = _plain(every_argument(self.folder))
        wanted = _plain(vars(self.args))
        for flag, value in wanted.items():
            if flag not in _PLACES and kept[flag] != value:
                raise UserError(
                    f"{self.folder}: was run with --{flag} {kept[flag]}, now {value} is "
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


def _remembered_copies(args: argparse.Namespace) -> int:
    """Copies of the model that the clients of the run remember, at most, and its server."""
    labeled = LocalUpdate.remembered_copies * args.num_labeled
    unlabeled = UnsupervisedLocalUpdate.remembered_copies * args.num_unlabeled
    return labeled + unlabeled + (args.num_labeled if args.labeled_stop else 0)


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
