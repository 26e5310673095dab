"""`python -m tests.torture kill|...`: long trials; exit status 1 where a promise did not hold."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the trials fork

import torch  # noqa: E402

from tests.torture import kill  # noqa: E402
from tests.torture.runs import METHODS  # noqa: E402


def main() -> int:
    """Parse the command line and run one trial."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--place", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("kill", help="interrupt runs, resume them, compare with a whole")
    command.add_argument("--runs", type=int, default=200, help="interruptions in all")
    command.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    command.add_argument("--signal", choices=kill.SIGNALS, default="kill")
    command.add_argument("--gpu", default="cpu", help="as of train_main.py: cpu, or cpu,cpu")
    command.add_argument("--real", action="store_true", help="DenseNet121 itself, not a stand-in")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = args.place or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        return kill.run_trials(
            place, args.runs, args.methods, args.signal, not args.real, args.gpu, args.seed
        )


if __name__ == "__main__":
    sys.exit(main())
