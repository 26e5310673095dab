"""One command per table or figure: runs what is missing, prints ours beside the published numbers.

    python reproduce.py table1 --dry_run
    python reproduce.py table1 | fig2a | fig2b | fig2c | slides | ablation
    python reproduce.py rivals | rates | sources --root_path DIR ...
        (with --csv_file_train A.csv, _val, _test; preset skin-64, which labeled_weight takes, too)
    python reproduce.py table1 --preset paper --root_path DIR --csv_file_train A.csv ...
    python reproduce.py hippocampus | hippocampus_labels | hippocampus_rates --volumes DIR

Flags that are not listed below go to train_main.py. Runs live in RUNS/PRESET/NAME-seedN and are
shared by the tables; finished ones are reused, interrupted ones go on, missing ones are run.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from paper.flags import parse
from utils.errors import UserError, check_flags, run_command
from utils.packages import check_installed

if __name__ == "__main__":  # a mistyped flag is answered before PyTorch is loaded
    check_flags(lambda: parse(sys.argv[1:], __doc__))
    check_installed()

from federation import foresee
from options import DATA_FLAGS, needs_embedded_data
from paper.comparison import SettingRuns, write_item
from paper.plan import PlannedRun, disk_estimate, estimate, make_plan
from paper.published import ITEMS
from paper.rates import write_rates
from paper.volumes import write_volume_item
from tasks import TASKS

SKIN_PRESETS = ("paper-skin", "skin-64")
_POLL_SECONDS = 0.1


def main() -> int:
    """Run what an item lacks, then write its tables and figures; the exit status."""
    options, train_flags = parse(sys.argv[1:], __doc__)
    plan = make_plan(options, train_flags)
    unique = list({run.folder: run for run in plan}.values())
    for run in unique:
        run.check()
    missing = [run for run in unique if run.state() != "finished"]
    print_plan(unique, options)
    if options.dry_run:
        check_data_and_weights(missing)
        return 0
    run_all(missing, options)
    report(plan, options)
    return 0


def check_data_and_weights(runs: Sequence[PlannedRun]) -> None:
    """What `train_main.py --dry_run` says of the data and finds missing, once for each of the
    data sets that the runs name; `UserError` as there, for weights at the end."""
    named = {}
    for run in runs:
        if not needs_embedded_data(run.args):
            data = tuple(str(getattr(run.args, flag)) for flag in DATA_FLAGS)
            named.setdefault(data, run.args)
    for args in named.values():
        print("\n".join(TASKS[args.task].dry_run(args).lines))
    for run in runs:
        foresee(run.args)


def print_plan(runs: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """The runs with their state, and what time and disk the unfinished ones will take."""
    for run in runs:
        state = run.state()
        if state == "interrupted":
            state += f" after {len(run.history())} of {run.args.rounds} rounds"
        print(f"{run.folder}: {state}")
    left = [run for run in runs if run.state() != "finished"]
    print(f"{len(runs) - len(left)} of {len(runs)} runs finished, {len(left)} to do")
    if left:
        print(estimate(left, options))
        print(disk_estimate(left, options))


def run_all(missing: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """Run what is missing, `jobs` at a time; UserError at the end if any run failed.

    When this program is stopped, its runs are stopped too and keep their last states.
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
    task = options.task or ("skin" if options.preset in SKIN_PRESETS else "ICH")
    name = options.item if options.report == "last" else f"{options.item}_{options.report}"
    stem = options.runs / options.preset / "results" / name
    if item.drawing == "volumes":
        text, written = write_volume_item(item, groups, options.preset, stem)
    elif item.drawing == "rates":
        text, written = write_rates(item, groups, options.preset, stem)
    else:
        text, written = write_item(item, groups, options.report, task, options.preset, stem)
    print("\n" + text)
    for path in written:
        print(path)


if __name__ == "__main__":
    run_command(main)
