"""reproduce.py with a stand-in for train_main.py that writes the run folder without training."""

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reproduce
from options import build_parser
from paper import plan
from paper.comparison import nearest_rounds, reported_rows
from paper.published import ITEMS, METHOD_TITLES, PAPER, SLIDES, gap_closed
from tests.helpers import PROJECT
from utils.errors import UserError
from utils.plots import style as figures
from utils.plots.runs import read_metrics

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
        plan = reproduce.make_plan(*reproduce.parse(argv))
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


@pytest.fixture
def place(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)  # drawing takes most of the time
    return Workplace(tmp_path, monkeypatch, capsys)


@pytest.fixture
def no_report(monkeypatch):
    """For tests of the runs alone."""
    monkeypatch.setattr(reproduce, "report", lambda plan, options: None)


def test_table1_stands_beside_the_paper_and_every_number_is_a_csv_cell(place):
    printed = place.run("table1")
    rows = place.table("table1.csv")
    assert [row["row"] for row in rows if row["whose"] == "ours, synthetic head CT"] == [
        "FedAvg 10/0",
        "FedAvg 2/0",
        "Fed-SelfTraining 2/8",
        "Fed-Consistency 2/8",
        "FedIRM 2/8",
    ]
    ours, paper = (row for row in rows if row["row"] == "FedIRM 2/8")
    # Seeds 1, 2, 3 give 0.89, 0.90, 0.91: the sample's standard deviation is 0.01.
    assert (ours["AUROC"], ours["runs"], ours["specificity"]) == ("90.00 ± 1.00", "3", "NA")
    assert (paper["AUROC"], paper["whose"]) == ("87.56 ± 0.56", "paper, ICH")
    # Lower bound 0.83, upper bound 0.91 (mean over seeds): 7 of 8 hundredths.
    assert "FedIRM closes 88% of the AUROC gap" in printed
    assert "Made on cpu, commit abc123, 4 rounds a run." in printed
    for row in place.table("table1_runs.csv"):
        with open(Path(row["run"]) / "metrics.csv", newline="") as file:
            cells = {found["round"]: found for found in csv.DictReader(file)}
        assert row["rounds"] == "3"
        assert row["test_auroc"] == cells["3"]["test_auroc"]
    results = place.runs / "demo" / "results"
    assert "90.00 $\\pm$ 1.00" in (results / "table1.tex").read_text()
    assert (results / "table1.md").read_text() in printed
    assert all((results / f"table1{kind}.png").stat().st_size > 3000 for kind in ("", "_curves"))


def test_finished_runs_are_reused_interrupted_go_on_missing_are_run(place, no_report):
    place.run("fig2a", "--seeds", "1")
    first, second = place.calls()
    finished = place.runs / "demo" / "fedirm-2-8-seed1"
    assert first.split()[-2:] == ["--run_dir", str(finished)]
    cut = place.runs / "demo" / "fed_consistency-2-8-seed1" / "metrics.csv"
    cut.write_text("".join(cut.read_text().splitlines(True)[:3]))
    out = place.run("fig2a", "--seeds", "1", "2", "--cache", "ram")
    assert "interrupted after 2 of 4 rounds" in out and "1 of 4 runs finished, 3 to do" in out
    assert place.calls()[2:] == [
        place.calls()[2],
        f"--resume {cut.parent} --rounds 4 --cache ram",
        place.calls()[4],
    ]
    assert [call.split("--run_dir ")[-1][-5:] for call in place.calls()[2::2]] == ["seed2", "seed2"]
    place.run("fig2a", "--seeds", "1", "2")
    assert len(place.calls()) == 5


def test_other_flags_in_a_run_folder_are_refused_not_reused(place, no_report):
    place.run("fig2a", "--seeds", "1")
    with pytest.raises(UserError, match="was run with --base_lr 0.001, now 0.01 is asked for"):
        place.run("fig2a", "--seeds", "1", "--base_lr", "0.01")
    with pytest.raises(UserError, match="has 4 rounds, now 3"):
        place.run("fig2a", "--seeds", "1", "--rounds", "3")
    assert "2 to do" in place.run("fig2a", "--seeds", "1", "--rounds", "5", "--dry_run")
    assert "0 to do" in place.run("fig2a", "--seeds", "1", "--gpu", "cpu", "--dry_run")


def test_a_folder_older_than_a_flag_was_run_as_runs_were_before_it(place, no_report):
    place.run("fig2a", "--seeds", "1")
    kept = place.runs / "demo" / "fedirm-2-8-seed1" / "args.json"
    flags = json.loads(kept.read_text())
    kept.write_text(json.dumps({n: v for n, v in flags.items() if n not in ("optimizer", "norm")}))
    assert "0 to do" in place.run("fig2a", "--seeds", "1", "--dry_run")
    kept.write_text(json.dumps({n: v for n, v in flags.items() if n != "stopped_clients"}))
    with pytest.raises(UserError, match="with --stopped_clients leave, now average is asked for"):
        place.run("fig2a", "--seeds", "1")


def test_other_data_and_flags_given_then_and_not_now_are_other_runs(place, no_report):
    named = ["--root_path", "a", "--csv_file_train", "a/train.csv", "--csv_file_test", "a/test.csv"]
    place.run("fig2a", "--seeds", "1", *named)
    assert "0 to do" in place.run("fig2a", "--seeds", "1", "--dry_run", *named)
    with pytest.raises(UserError, match=r"--csv_file_test a/test.csv, now b/test.csv is asked for"):
        place.run("fig2a", "--seeds", "1", *named[:-1], "b/test.csv")
    with pytest.raises(UserError, match="was run with --root_path a, now data/phantom-.* is asked"):
        place.run("fig2a", "--seeds", "1")
    place.run("fig2c", "--seeds", "7", "--phantom_proportions", *"12345")
    with pytest.raises(UserError, match="was run with --root_path data/phantom-.*, now data/ph"):
        place.run("fig2c", "--seeds", "7")


def test_dry_run_runs_nothing_and_estimates_from_measured_rounds(place, no_report):
    assert "time: unknown" in place.run("table1", "--dry_run")
    assert place.calls() == []
    place.run("fig2a", "--seeds", "1")
    out = place.run("table1", "--dry_run", "--seeds", "1", "--jobs", "2")
    # Left: FedAvg 10/0, 2/0 and Fed-SelfTraining: 4 rounds of 21, 5 and 45 s. The worker that is
    # through with 2/0 takes the last: 20 + 180 s, while the other needs 84.
    assert "at most about 0:03:20 with --jobs 2, from 8 measured rounds of 2 run(s)" in out
    assert "labelled client 2.00 s, unlabelled client 5.00 s, rest of a round 1.00 s" in out
    assert len(place.calls()) == 2


def test_plan_says_what_the_disk_needs(place, no_report, monkeypatch):
    assert "disk: unknown, no run of this preset has finished yet" in place.run("fig2a")
    sizes = {"epoch_3.pth": 10_000_000, "state_000004.pth": 5_000_000, "clients/client_0.pth": 10}
    for name, size in sizes.items():
        path = place.runs / "demo/fedirm-2-8-seed1/checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
    # Left: FedAvg 10/0, 2/0 and Fed-SelfTraining 2/8. Their rounds' states hold 1 + 20, 1 + 4 and
    # 1 + 28 times the model's 10 MB. Each run leaves 10 MB of weights behind, and three rounds'
    # states lie there while two runs train: 30 + 3 * (290 + 210). With --keep_state 1 two rounds'
    # of all three stay, and a third of two: 30 + 2 * (210 + 50 + 290) + 290 + 210.
    words = ["table1", "--dry_run", "--seeds", "1", "--jobs", "2"]
    line = re.compile(r"disk: about (\S+)\.\d MB, .* free in \S+runs$", re.MULTILINE)
    assert line.search(place.run(*words))[1] == "1,530"
    assert line.search(place.run(*words, "--keep_state", "1"))[1] == "1,630"
    monkeypatch.setattr(plan, "free_bytes", lambda folder: 1_500_000_000)
    assert "1,500.0 MB free in" in (out := place.run(*words))
    assert out.rstrip().endswith("make room or name another place with --runs")


def test_parallel_jobs_get_one_device_each(place, no_report):
    place.run("fig2b", "--seeds", "1", "--jobs", "3", "--gpu", "0,1")
    calls = place.calls()
    assert len(calls) == 9
    assert {call.split("--gpu ")[1].split()[0] for call in calls} == {"0", "1"}
    assert all(call.endswith("--progress 0") for call in calls)


def test_a_failed_run_is_named_and_the_others_still_run(place, no_report):
    (place.folder / "stop_after").write_text("2")
    with pytest.raises(UserError, match=r"2 run\(s\) failed, the first is .*fedirm-2-8-seed1;"):
        place.run("fig2a", "--seeds", "1")
    assert len(place.calls()) == 2
    (place.folder / "stop_after").unlink()
    place.run("fig2a", "--seeds", "1")
    assert all("--resume" in call for call in place.calls()[2:])


def test_stopping_stops_the_runs_too(place, monkeypatch):
    ready, stopped = place.folder / "ready", place.folder / "stopped"
    place.program.write_text(
        "import pathlib, signal, sys, time\n"
        f"def stop(*_): pathlib.Path({str(stopped)!r}).touch(); sys.exit(143)\n"
        f"signal.signal(signal.SIGTERM, stop); pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    pause = time.sleep

    def interrupt(seconds: float) -> None:
        pause(seconds)
        if ready.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        place.run("fig2a", "--seeds", "1")
    assert stopped.exists()


def test_best_validation_round_is_reported_on_request(place):
    place.run("fig2b", "--seeds", "1", "--report", "best_val")
    assert {row["rounds"] for row in place.table("fig2b_best_val_runs.csv")} == {"1"}
    caption = (place.runs / "demo" / "results" / "fig2b_best_val.md").read_text().splitlines()[0]
    assert "the round with the highest validation AUROC" in caption
    metrics = place.runs / "demo" / "fedirm-2-8-seed1" / "metrics.csv"
    frame = read_metrics(metrics).drop(columns="val_auroc")
    with pytest.raises(UserError, match="no round has val_auroc; give --csv_file_val"):
        reported_rows(frame, "best_val", metrics.parent)


def test_mean_of_the_last_four_evaluations_is_reported_on_request(place):
    place.run("table1", "--report", "last4")
    caption = (place.runs / "demo" / "results" / "table1_last4.md").read_text().splitlines()[0]
    assert "the mean of the last four evaluated rounds" in caption
    row = place.table("table1_last4_runs.csv")[0]
    assert (row["row"], row["seed"], row["rounds"]) == ("FedAvg 10/0", "1", "0 1 2 3")
    # 0.90 in every round but round 1, which has 0.91.
    assert math.isclose(float(row["test_auroc"]), 0.9025)
    assert row["test_specificity"] == "nan"
    # A round without an evaluation does not count as one of the four.
    metrics = place.runs / "demo" / "fedavg-2-0-seed1" / "metrics.csv"
    frame = read_metrics(metrics)
    frame.loc[2, "test_auroc"] = math.nan
    assert list(reported_rows(frame, "last4", metrics.parent)["round"]) == [0, 1, 3]


def test_figure_2a_measures_the_difference_of_the_matrices(place):
    place.run("fig2a", "--seeds", "1", "2", "--jobs", "4")
    rows = place.table("fig2a.csv")
    # Round 1 is the first with unlabelled clients; 3 is the nearest to 30 and to 60.
    assert [(row["row"], row["round"]) for row in rows] == [
        ("FedIRM 2/8", "1"),
        ("FedIRM 2/8", "3"),
        ("Fed-Consistency 2/8", "1"),
        ("Fed-Consistency 2/8", "3"),
    ]
    assert rows[1]["mean absolute difference"] == "0.3000 ± 0.0000"
    assert len(place.table("fig2a_runs.csv")) == 8


def test_nearest_rounds():
    both = dict.fromkeys(["labeled_mean", "unlabeled_mean"])
    rounds = dict.fromkeys(range(20, 100, 7), both) | {1: {"labeled_mean": None}}
    assert nearest_rounds(rounds, Path("run")) == [20, 27, 62]
    with pytest.raises(UserError, match="no round has both"):
        nearest_rounds({1: {"labeled_mean": None}}, Path("run"))


@pytest.mark.parametrize("item", ["slides", "ablation", "fig2c"])
def test_every_other_item(place, item):
    printed = place.run(item, "--seeds", "1", "--jobs", "4")
    rows = place.table(f"{item}.csv")
    assert len([row for row in rows if row["whose"].startswith("ours, ")]) == len(
        ITEMS[item].settings
    )
    if item == "slides":
        published = [row["accuracy"] for row in rows if row["whose"] == "slides"]
        assert published == ["66.32", "68.22", "71.00"]
        assert "skin lesion row" in printed
    if item == "ablation":
        # The preset's own T and tau are the plain run under another name.
        folders = {row["row"]: row["run"] for row in place.table("ablation_runs.csv")}
        same = [label for label, run in folders.items() if run == folders["FedIRM 2/8"]]
        assert same == ["FedIRM 2/8", "tau = 2"]


def test_settings_use_flags_that_exist_and_names_that_differ():
    known = {action.dest for action in build_parser()._actions}
    for item in ITEMS.values():
        names = [setting.name for setting in item.settings]
        assert len(set(names)) == len(names)
        for setting in item.settings:
            assert {word[2:] for word in setting.flags(1)[::2]} <= known
            assert setting.method in METHOD_TITLES
            assert setting.labeled + setting.unlabeled <= 10


def test_published_numbers_agree_with_the_papers_own_claims():
    for task, expected in (("ICH", 0.59), ("skin", 0.43)):
        keys = ("fedavg", 2, 0), ("fedirm", 2, 8), ("fedavg", 10, 0)
        share = gap_closed(*(PAPER[task][key]["test_auroc"][0] for key in keys))
        assert math.isclose(share, expected, abs_tol=0.005)


def test_published_numbers_are_those_of_the_method_page():
    """Two places where they were typed, one from the other's source."""
    methods = {title: method for method, title in METHOD_TITLES.items()}
    metrics = ("test_auroc", "test_sensitivity", "test_specificity", "test_accuracy", "test_f1")
    found = {"paper": 0, "slides": 0}
    for line in (PROJECT / "docs/METHOD.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 9 or cells[-1] not in found:
            continue
        data, title, clients, *numbers, whose = cells
        values = [
            tuple(map(float, number.split(" ")[0].split("±"))) for number in numbers if number
        ]
        present = [name for name, number in zip(metrics, numbers, strict=True) if number]
        row = dict(zip(present, values, strict=True))
        if whose == "paper":
            labeled, unlabeled = map(int, clients.split("/"))
            assert PAPER[data][methods[title], labeled, unlabeled] == row
        else:
            slides = SLIDES[title.removeprefix("slides' ").removesuffix(" distance")]
            assert {name: numbers[:1] for name, numbers in slides.items()} == row
        found[whose] += 1
    assert found == {"paper": 10, "slides": 3}


def test_flags_set_by_the_item_and_unknown_ones_are_refused(place):
    with pytest.raises(UserError, match="--seed: set by fig2a itself"):
        place.run("fig2a", "--seed", "3")
    with pytest.raises(UserError, match="--labeled_ids: set by fig2a itself"):
        place.run("fig2a", "--labeled_ids", "0", "1")
    with pytest.raises(UserError, match="--mc_pases"):
        place.run("fig2a", "--mc_pases", "3")
    with pytest.raises(UserError, match="--seeds: the same seed twice"):
        place.run("fig2a", "--seeds", "3", "3")


def test_as_a_command(tmp_path):
    line = [sys.executable, "reproduce.py", "fig2a", "--dry_run", "--runs", str(tmp_path), *FLAGS]
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0 of 6 runs finished, 6 to do" in done.stdout


def test_a_run_that_patience_ended_is_finished(place, no_report, monkeypatch):
    monkeypatch.setattr("reproduce.check_data_and_weights", lambda runs: None)
    flags = ["--seeds", "1", "--join_epoch", "-1", "--csv_file_val", "val.csv"]
    flags += ["--root_path", "a", "--csv_file_train", "a.csv", "--csv_file_test", "b.csv"]
    place.run("fig2a", *flags, "--patience", "1")
    for metrics in place.runs.glob("*/*/metrics.csv"):
        header, *rows = metrics.read_text().splitlines()
        cut = [f"{row},{auroc}" for row, auroc in zip(rows[:3], (0.9, 0.8, 0.7), strict=True)]
        metrics.write_text("\n".join([f"{header},val_auroc", *cut]) + "\n")
    assert "2 of 2 runs finished" in place.run("fig2a", *flags, "--patience", "1", "--dry_run")
    longer = place.run("fig2a", *flags, "--patience", "3", "--dry_run")
    assert "interrupted after 3 of 4 rounds" in longer and "0 of 2 runs finished" in longer


def test_rates_are_chosen_on_validation_phase_by_phase(place):
    """The stand-in's rounds 0 and 1 are before the join here, 2 and 3 after it."""
    text = place.run("rates", "--seeds", "1", "3", "--join_epoch", "1", "--local_ep", "1")
    rows = place.table("rates.csv")
    assert [row["value"] for row in rows] == [
        "0.0003",
        "0.001",
        "0.003",
        "0.0001",
        "0.0003",
        "0.001",
    ]
    # 0.80 + 0.02 - 0.02, in round 1 a hundredth more; seed 3 two hundredths more.
    assert rows[0]["validation AUROC"] == "81.50 ± 1.41"
    assert rows[5]["validation AUROC"] == "81.00 ± 1.41"
    assert "Best: --base_lr 0.0003." in text and "Best: --labeled_lr_late 0.0001 (the" in text
    assert not any(
        "unlabeled" in call and "--num_unlabeled 0" not in call for call in place.calls()
    )
