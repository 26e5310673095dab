"""A disk that fills up in the middle of a run: a small tmpfs (as root) or a limit on file sizes."""

import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.torture import runs

DISK_BYTES = 4_000_000


def run_trials(place: Path, number: int, seed: int) -> int:
    """`number` runs on a tmpfs that is filled to within some 60 kB at a random moment.

    Prints counts; 0 if every run ended with one line, left its old state whole and no temporary
    file behind, and went on to the same end as a run with room.
    """
    chance = random.Random(seed)
    flags = runs.make_data(place / "data")
    whole = place / "whole"
    assert runs.complete([*flags, "--run_dir", whole], place / "whole.txt") == 0
    expected = runs.outcome(whole)
    counts: Counter[str] = Counter()
    disk = place / "disk"
    disk.mkdir()
    for i in range(number):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], check=True
        )
        try:
            counts += _fill_up(flags, disk, place / f"full-{i}.txt", chance, expected)
        finally:
            subprocess.run(["umount", disk], check=True)
    print(f"disk full: {dict(counts)}")
    return int(any(name.isupper() for name in counts))


def _fill_up(flags, disk: Path, output: Path, chance: random.Random, expected) -> Counter[str]:
    counts: Counter[str] = Counter(["runs"])
    run_dir, filler = disk / "run", disk / "filler"
    process = runs.start([*flags, "--run_dir", run_dir], output)
    checkpoints = run_dir / "checkpoints"
    wanted = chance.randrange(0, runs.ROUNDS)
    while wanted and not (checkpoints / f"state_{wanted:06d}.pth").exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.1))
    free = shutil.disk_usage(disk).free
    with open(filler, "wb") as file:
        file.write(b"x" * max(0, free - chance.randrange(0, 60_000)))
    status = runs.finish(process)
    said = output.read_text()
    if status == 0:
        counts["finished before it was full"] += 1
        return counts
    counts["ended by it"] += 1
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if status != 2 or len(errors) != 1 or "Traceback" in said or "free" not in errors[0]:
        counts["NOT ONE LINE"] += 1
        print(said[-3000:])
    if list(disk.rglob(".*.partial")):
        counts["LEFTOVERS"] += 1
    try:
        runs.whole_states(run_dir)
    except Exception as error:
        counts["UNLOADABLE STATES"] += 1
        print(error)
    filler.unlink()
    resume = (run_dir / "args.json").exists()
    arguments = ["--resume", run_dir] if resume else [*flags, "--run_dir", run_dir]
    if runs.complete(arguments, output) or runs.differences(expected, runs.outcome(run_dir)):
        counts["RESUMED RUN DIFFERS"] += 1
        print(output.read_text()[-3000:])
    return counts


def limit_file_size(size: int) -> None:
    """Files of this process cannot grow beyond `size` bytes: a full disk without being root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
