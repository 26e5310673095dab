"""Runs that are started together in one folder: one gets it."""

import time
from collections import Counter
from pathlib import Path

from tests.torture import runs


def run_trials(place: Path, number: int, _seed: int) -> int:
    """`number` times ten runs at the same moment; prints counts, 0 if exactly one each time ran."""
    flags = runs.make_data(place / "data")
    counts: Counter[str] = Counter()
    for i in range(number):
        run_dir, moment = place / f"run-{i}", time.time() + 0.3
        processes = [
            runs.start(
                [*flags, "--run_dir", run_dir],
                place / f"{i}-{k}.txt",
                before=lambda moment=moment: time.sleep(max(0, moment - time.time())),
            )
            for k in range(10)
        ]
        statuses = Counter(runs.finish(process) for process in processes)
        said = "".join((place / f"{i}-{k}.txt").read_text() for k in range(10))
        one = statuses == {0: 1, 2: 9} and said.count(f"error: {run_dir}: in use by") == 9
        counts["exactly one ran" if one else "NOT ONE"] += 1
        if not one:
            print(statuses, [line for line in said.splitlines() if "error" in line])
    print(f"ten started together: {dict(counts)}")
    return int(counts["NOT ONE"] > 0)
