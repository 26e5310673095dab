"""The flags of reproduce.py."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from paper.published import ITEMS, PAPER, REPORTS
from utils.errors import OneLineParser, UserError

_SET_HERE = frozenset(
    ["--method", "--num_users", "--num_labeled", "--num_unlabeled", "--seed", "--run_dir"]
    + ["--labeled_ids", "--labeled_fraction", "--split", "--resume", "--gpu", "--preset"]
)
_TRAIN_MAIN = Path(__file__).resolve().parents[1] / "train_main.py"


def parse(argv: Sequence[str], description: str = "") -> tuple[argparse.Namespace, list[str]]:
    """Its options, and the flags that go to train_main.py; --help begins with `description`."""
    parser = OneLineParser(
        prog="python reproduce.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("item", choices=ITEMS, help="table or figure to make")
    parser.add_argument(
        "--preset",
        help="preset of every run (skin-64 for rivals, sources and rates; hippocampus for the "
        "items on volumes; else bench)",
    )
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
        help="whose published numbers stand beside ours; default: skin with presets of skin, "
        "else ICH",
    )
    options, rest = parser.parse_known_args(argv)
    options.preset = options.preset or ITEMS[options.item].preset
    if ITEMS[options.item].drawing == "volumes" and options.report != "last":
        raise UserError(f"--report {options.report}: of volumes the last round's weights are told")
    train_flags = [word for word in rest if word != "--"]
    everywhere = set.intersection(
        *({f"--{flag}" for flag, _ in row.extra} for row in ITEMS[options.item].settings)
    )
    for word in train_flags:
        if word.partition("=")[0] in _SET_HERE | everywhere:
            raise UserError(f"{word}: set by {options.item} itself or by a flag of reproduce.py")
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: must be at least 1")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError("--seeds: the same seed twice is not another sample")
    return options, train_flags
