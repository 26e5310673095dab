"""Long trials of docs/RELIABILITY.md; exit status 1 where a promise did not hold."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.torture import attacks, disk, flips, folder, images, kill
from tests.torture.runs import METHODS

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the trials fork

KILLS, STOPS, BITS, IMAGES, DISKS, FOLDERS, SEEDS = 200, 60, 400, 1000, 40, 10, 3


def main() -> int:
    """Parse the command line and run one trial, or all."""
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        if args.command == "all":
            return all_trials(Path(place), args.share, args.seed)
        return one_trial(Path(place), args)


def one_trial(place: Path, args: argparse.Namespace) -> int:
    """The trial that the command line names."""
    if args.command == "kill":
        return kill.run_trials(
            place, args.runs, args.methods, args.signal, not args.real, args.gpu, args.seed
        )
    trial = {"attacks": attacks, "flips": flips, "images": images, "disk": disk, "folder": folder}[
        args.command
    ]
    return trial.run_trials(place, args.runs, args.seed)


def all_trials(place: Path, share: float, seed: int) -> int:
    """Every trial, with this share of its usual number of runs."""

    def scaled(number: int) -> int:
        return max(1, round(share * number))

    methods = list(METHODS)
    failed = kill.run_trials(place / "kill", scaled(KILLS), methods, "kill", True, "cpu", seed)
    for how in ("term", "int"):
        failed |= kill.run_trials(place / how, scaled(STOPS), methods, how, True, "cpu,cpu", seed)
    for trial, number in ((flips, BITS), (images, IMAGES), (disk, DISKS), (folder, FOLDERS)):
        failed |= trial.run_trials(place / trial.__name__, scaled(number), seed)
    return failed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument(
        "--place",
        type=Path,
        default=Path("/dev/shm"),
        help="where to make a folder to work in (%(default)s: a disk would take most of the time)",
    )
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("all", help="every trial below")
    command.add_argument("--share", type=float, default=1.0, help="of the usual number of runs")
    command = commands.add_parser("kill", help="interrupt runs, resume them, compare with a whole")
    command.add_argument("--runs", type=int, default=KILLS, help="interruptions in all")
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    command.add_argument("--signal", choices=kill.SIGNALS, default="kill")
    command.add_argument("--gpu", default="cpu", help="as of train_main.py: cpu, or cpu,cpu")
    command.add_argument("--real", action="store_true", help="DenseNet121 itself, not a stand-in")
    for name, number, what in (
        ("attacks", SEEDS, "one of five clients lies in every round, by each rule of --aggregate"),
        ("flips", BITS, "flip bits of checkpoints and of image caches"),
        ("images", IMAGES, "flip bits of images"),
        ("disk", DISKS, "fill a small tmpfs during runs, which takes root"),
        ("folder", FOLDERS, "start ten runs in one folder"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--runs", type=int, default=number, help="how often")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
