"""The command: `fedirm train --preset demo`, `fedirm predict runs/NAME scans`, ... (also `python -m
fedirm`), each the program of the same flags in a checkout, from any folder."""

import os
import runpy
import sys

from fedirm import house_on_path

# command -> the program in a checkout, a file or a module, and what it is for.
COMMANDS = {
    "train": ("train_main.py", "train by federated learning; --preset demo needs no data"),
    "prepare": ("dataloaders.prepare", "raw data sets -> images or volumes, and one CSV"),
    "partition": ("dataloaders.partition", "one CSV -> training, validation and test set"),
    "test": ("test.py", "a run or a checkpoint against a test set"),
    "predict": ("test.py", "fedirm predict RUN PATH ...: images or scans without labels"),
    "tables": ("utils.tables", "tables of finished runs, from their log files"),
    "plots": ("utils.plots", "curves of runs, side by side"),
    "report": ("utils.report", "a run's report again, from its own files"),
    "metrics": ("utils.metrics", "tables of a file of predictions"),
    "reproduce": ("reproduce.py", "the paper's tables and figures"),
}
TYPED = "FEDIRM_COMMAND"  # in the environment: printed commands begin with fedirm


def usage() -> str:
    """What `fedirm` alone prints."""
    lines = [f"  {name:<11}{words}" for name, (_, words) in COMMANDS.items()]
    return "\n".join(["usage: fedirm COMMAND ... (fedirm COMMAND --help)", "", *lines])


def main() -> None:
    """Run the command that was typed, as if its program had been."""
    command, *words = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        print(f"error: no command {command!r} (fedirm --help lists them)", file=sys.stderr)
        sys.exit(2)
    if command == "predict" and words and not words[0].startswith("-"):
        words = ["--resume", words[0], "--predict", *words[1:]]
    os.environ[TYPED] = "1"
    folder = house_on_path()
    program = COMMANDS[command][0]
    if program.endswith(".py"):
        sys.argv = [str(folder / program), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = [program, *words]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
