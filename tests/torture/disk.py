"""A disk that fills up in the middle of a run: a small tmpfs (as root) or a limit on file sizes."""

import os
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.torture import runs

DISK_BYTES = 4_000_000
FILE_LIMITS = (8_000, 25_000, 40_000)  # stop matrices.csv, weights, an unlabelled client


def run_trials(place: Path, number: int, seed: int) -> int:
    """Runs that run out of room; prints counts, 0 if each ended as promised.

    As promised: one line with the bytes that are free, exit status 2, old states whole, no
    temporary file left; and when there is room again, the same end as a run that had it.
    `number` runs are on a tmpfs that is filled to within some 60 kB at a random moment, which
    takes a root user; a few more have a limit on the size of their files.
    """
    chance = random.Random(seed)
    flags = runs.make_data(place / "data")
    whole = place / "whole"
    assert runs.complete([*flags, "--run_dir", whole], place / "whole.txt") == 0
    expected = runs.outcome(whole)
    counts: Counter[str] = Counter()
    for limit in FILE_LIMITS:
        run_dir, output = place / f"limited-{limit}", place / f"limited-{limit}.txt"
        arguments = [*flags, "--run_dir", run_dir]
        status = runs.complete(arguments, output, before=partial(limit_file_size, limit))
        counts += Counter(["ended by a limit"]) + judge(
            status, arguments, run_dir, output, expected
        )
    disk = place / "disk"
    disk.mkdir()
    for i in range(number if os.geteuid() == 0 else 0):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], check=True
        )
        try:
            counts += fill_up(flags, disk, place / f"full-{i}.txt", chance, expected)
        finally:
            subprocess.run(["umount", disk], check=True)
    print(f"disk: {dict(counts)}")
    return int(any(name.isupper() for name in counts))


def fill_up(flags, disk: Path, output: Path, chance: random.Random, expected) -> Counter[str]:
    """One run on `disk`, which another program fills; what was seen, failures in capitals."""
    run_dir, filler = disk / "run", disk / "filler"
    arguments = [*flags, "--run_dir", run_dir]
    process = runs.start(arguments, output)
    wanted = chance.randrange(0, runs.ROUNDS)
    while wanted and not (run_dir / "checkpoints" / f"state_{wanted:06d}.pth").exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.1))
    with suppress(OSError), open(filler, "wb") as file:  # the run may take the last room first
        file.write(b"x" * max(0, shutil.disk_usage(disk).free - chance.randrange(0, 60_000)))
    status = runs.finish(process)
    if status == 0:
        return Counter(["finished before it was full"])
    return Counter(["ended by a full disk"]) + judge(
        status, arguments, run_dir, output, expected, room=filler.unlink
    )


def judge(status, arguments, run_dir: Path, output: Path, expected, room=None) -> Counter[str]:
    """What is wrong with a run that ran out of room, and with how it goes on after `room()`."""
    wrong: Counter[str] = Counter()
    said = output.read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if status != 2 or len(errors) != 1 or "Traceback" in said or " free" not in errors[0]:
        wrong["NOT ONE LINE"] += 1
        print(said[-3000:])
    if list(run_dir.parent.rglob(".*.partial")):
        wrong["LEFTOVERS"] += 1
    try:
        runs.whole_states(run_dir)
    except Exception as error:
        wrong["UNLOADABLE STATES"] += 1
        print(error)
    if room is not None:
        room()
    if (run_dir / "args.json").exists():
        arguments = ["--resume", run_dir]
    if runs.complete(arguments, output) or runs.differences(expected, runs.outcome(run_dir)):
        wrong["RESUMED RUN DIFFERS"] += 1
        print(output.read_text()[-3000:])
    return wrong


def limit_file_size(size: int) -> None:
    """Files of this process cannot grow beyond `size` bytes: a full disk for any user."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
