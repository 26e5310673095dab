"""Clocks, repeats in turn, ratios with their spread."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from record.opening import describe_environment

Result = TypeVar("Result")


class Clock:
    """Seconds of work on one device.

    A GPU's end when all that was queued is done. On the CPU they are the process's own processor
    time, which other programs do not disturb; with one thread that is the time of an idle machine.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def now(self) -> float:
        """Seconds since some moment in the past."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    def time(self, work: Callable[[], object]) -> float:
        """How long `work` takes."""
        started = self.now()
        work()
        return self.now() - started


def in_turn(pieces: dict[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """The results of every piece, `repeats` times; each repeat begins with another piece."""
    results: dict[str, list[Result]] = {name: [] for name in pieces}
    names = list(pieces)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(pieces[name]())
    return results


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range: 3.91 (3.85..4.02)."""
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, median, max))
    return f"{middle} ({low}..{high})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """over / under, repeat by repeat."""
    return [one / other for one, other in zip(over, under, strict=True)]


def conditions(device: torch.device, repeats: int) -> str:
    """What a table was measured on, in one line."""
    facts = describe_environment([device])
    versions = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "torchvision"))
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    where = _processor() if device.type == "cpu" else facts["devices"][0]
    return f"{where}{threads}; {versions}; commit {facts['commit']}; {repeats} repeats"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else subprocess.getoutput("uname -p")
