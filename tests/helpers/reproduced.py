"""reproduce.py with a stand-in for train_main.py that writes a run's folder without training."""

import csv
import json
import sys
from pathlib import Path

import reproduce
from paper.flags import parse

ROUNDS = 4


# Values that the tests count on, whatever the preset says.
FLAGS = ["--preset", "demo", "--rounds", str(ROUNDS), "--base_lr", "0.001"]


FLAGS += ["--entropy_threshold", "2", "--mc_passes", "11", "--temperature", "2"]


# Takes the flags that reproduce.py gives train_main.py. plan.json beside it has every run's full
# arguments; stop_after, where it is there, ends a run after that many rounds with status 1.
STAND_IN = """
import csv, json, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
folder = pathlib.Path(given.get("--resume") or given["--run_dir"])
with open(here / "calls.txt", "a") as file:
    file.write(" ".join(words) + chr(10))
args = json.loads((here / "plan.json").read_text())[str(folder)]
folder.mkdir(parents=True, exist_ok=True)
(folder / "args.json").write_text(json.dumps(args))
(folder / "env.json").write_text(json.dumps({"devices": ["cpu"], "commit": "abc123"}))
stop = here / "stop_after"
rounds = int(stop.read_text()) if stop.exists() else args["rounds"]
level = {"fedirm": 0.87, "fed_consistency": 0.85, "fed_selftraining": 0.84, "fedavg": 0.80}
level = level[args["method"]] + args["num_labeled"] / 100
rows, cells = [], []
for number in range(rounds):
    auroc = level + (args["seed"] - 1) / 100 + (0.01 if number == 1 else 0)
    active = args["num_unlabeled"] if number else 0
    rows.append({
        "round": number, "test_auroc": auroc, "val_auroc": auroc - 0.02, "test_accuracy": 0.9,
        "test_f1": 0.5, "test_sensitivity": 0.4, "test_specificity": "",
        "clients_labeled": args["num_labeled"], "clients_unlabeled": active,
        "seconds_labeled": 2.0, "seconds_unlabeled": 5.0 if active else "",
        "seconds_round": 2.0 * args["num_labeled"] + 5.0 * active + 1.0,
    })
    for source in ["labeled_mean", "unlabeled_mean"][: 2 if active else 1]:
        for row in "ab":
            for column in "ab":
                shift = 0.1 * number if source == "unlabeled_mean" else 0.0
                value = 0.8 - shift if row == column else 0.2 + shift
                cells.append([number, source, row, column, value])
with open(folder / "metrics.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
with open(folder / "matrices.csv", "w", newline="") as file:
    csv.writer(file).writerows([["round", "source", "row", "column", "value"], *cells])
if not stop.exists():
    (folder / "REPORT.md").write_text("# Report")
sys.exit(1 if stop.exists() else 0)
"""


class Workplace:
    """A folder with the stand-in, and reproduce.main called as the command line would."""

    def __init__(self, folder: Path, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.runs = folder / "runs"
        self.program = folder / "stand_in.py"
        self.program.write_text(STAND_IN)

    def argv(self, item: str, *more: str) -> list[str]:
        places = ["--program", str(self.program), "--runs", str(self.runs)]
        return [item, *FLAGS, *places, "--seeds", "1", "2", "3", *more]

    def run(self, item: str, *more: str) -> str:
        argv = self.argv(item, *more)
        plan = reproduce.make_plan(*parse(argv))
        arguments = {str(run.folder): vars(run.args) for run in plan}
        (self.folder / "plan.json").write_text(json.dumps(arguments, default=str))
        self.monkeypatch.setattr(sys, "argv", ["reproduce.py", *argv])
        self.capsys.readouterr()
        reproduce.main()
        return self.capsys.readouterr().out

    def calls(self) -> list[str]:
        path = self.folder / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    def table(self, name: str) -> list[dict[str, str]]:
        with open(self.runs / "demo" / "results" / name, newline="") as file:
            return list(csv.DictReader(file))
