"""Runs killed at random moments and at file operations, resumed, and compared with a whole one."""

import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.torture import runs

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
KILLS_PER_RUN = 3
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod")


class Trial:
    """One method: a whole run to compare with, and runs that are interrupted."""

    def __init__(self, place: Path, data_flags: list[str], method: str, small: bool, gpu: str):
        self.place, self.small = place, small
        self.flags = [*data_flags, "--method", method, "--gpu", gpu]
        self.output = place / f"{method}.txt"
        whole = place / f"whole-{method}-{gpu.replace(',', '')}"
        began = time.time()
        status = runs.complete([*self.flags, "--run_dir", whole], self.output, small=small)
        assert status == 0, f"the whole run ended with {status}: see {self.output}"
        newest = max((whole / "checkpoints").glob("state_*.pth"))
        self.training_seconds = newest.stat().st_mtime - began
        self.expected = runs.outcome(whole)
        self.counts: Counter[str] = Counter()
        self.slowest_stop = 0.0

    def interrupt(self, number: int, kills: int, chance: random.Random, sign: int) -> None:
        """Start a run, interrupt it `kills` times, resume it to its end and compare."""
        folder = self.place / f"run-{number}"
        begin = [*self.flags, "--run_dir", folder]
        for _ in range(kills):
            resume = (folder / "args.json").exists()
            arguments = ["--resume", folder] if resume else begin
            before = None
            if sign == signal.SIGKILL and chance.random() < 0.5:
                countdown = chance.randrange(1, 120)
                before = lambda left=countdown: die_at_file_operation(folder, left)  # noqa: E731
            process = runs.start(arguments, self.output, self.small, before)
            if before is None:
                if sign != signal.SIGKILL:
                    wait_for_lock(folder, process)
                time.sleep(chance.uniform(0, 1.15 * self.training_seconds))
                os.kill(process, sign)
            sent = time.monotonic()
            status = runs.finish(process)
            if status == 0:
                self.counts["finished before the signal"] += 1
                break
            if before is None and sign != signal.SIGKILL:
                self.slowest_stop = max(self.slowest_stop, time.monotonic() - sent)
            self.counts["interruptions"] += 1
            if status != STATUS[sign]:
                self.counts[f"odd exit status {status}"] += 1
                print(self.output.read_text(errors="replace")[-3000:], file=sys.stderr)
            self._inspect(folder)
        arguments = ["--resume", folder] if (folder / "args.json").exists() else begin
        status = runs.complete(arguments, self.output, small=self.small)
        self.counts["runs"] += 1
        if status:
            self.counts[f"resumed run ended with {status}"] += 1
            return
        odd = runs.differences(self.expected, runs.outcome(folder))
        leftovers = list(folder.rglob(".*.partial"))
        if odd or leftovers:
            self.counts["runs that differ"] += 1
            print(f"{folder}: {odd[:5]} {leftovers}", file=sys.stderr)
        shutil.rmtree(folder)

    def _inspect(self, folder: Path) -> None:
        try:
            finished = max(runs.whole_states(folder), default=0)
        except Exception as error:
            self.counts["unloadable states"] += 1
            print(f"{folder}: {error}", file=sys.stderr)
            return
        if finished < runs.rounds_begun(folder) - 1:
            self.counts["rounds lost"] += 1


def wait_for_lock(folder: Path, process: int) -> None:
    """Wait until the process has the folder; its handlers of signals are in place by then."""
    lock, end = folder / ".lock", time.monotonic() + 60
    while not (lock.exists() and f"process {process} " in lock.read_text()):
        assert time.monotonic() < end, f"process {process} does not take {folder}"
        time.sleep(0.001)


def die_at_file_operation(folder: Path, countdown: int) -> None:
    """From now on count what this process does to files under `folder`; SIGKILL at the last."""
    left = countdown
    watched = str(folder)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in FILE_EVENTS and str(arguments[0]).startswith(watched):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_trials(
    place: Path, number: int, methods: list[str], how: str, small: bool, gpu: str, seed: int
) -> int:
    """At least `number` interruptions shared out over the methods; prints counts, 0 if all held."""
    data_flags = runs.make_data(place / "data")
    chance = random.Random(seed)
    failed = False
    for method in methods:
        trial = Trial(place, data_flags, method, small, gpu)
        wanted = -(-number // len(methods))
        started = time.monotonic()
        while (left := wanted - trial.counts["interruptions"]) > 0:
            assert trial.counts["runs"] < 10 + 5 * wanted, "runs end before they are interrupted"
            kills = min(left, chance.randint(1, KILLS_PER_RUN))
            trial.interrupt(trial.counts["runs"], kills, chance, SIGNALS[how])
        harmless = {"runs", "interruptions", "finished before the signal"}
        failed |= bool(trial.counts.keys() - harmless)
        counts = ", ".join(f"{count} {name}" for name, count in sorted(trial.counts.items()))
        stop = f", slowest stop {trial.slowest_stop:.2f} s" if trial.slowest_stop else ""
        seconds = time.monotonic() - started
        print(f"{how} {method} on {gpu}: {counts}{stop} ({seconds:.0f} s)", flush=True)
    return int(failed)
