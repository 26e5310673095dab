"""How a run ends before its last round, and what it says about the time that is left."""

import csv
import re

import pytest
import torch

from networks.saved import load_model
from options import args_parser
from record.duration import duration, reason_to_end, round_costs, round_line, seconds_left
from record.run import Run
from rehearsal import Cost, Site, _time_lines
from server import RelationServer
from tests.helpers import PROJECT
from tests.helpers.small_clients import make_args
from tests.helpers.typed_commands import type_here
from utils.errors import UserError
from utils.tables.log_reader import parse_log

SMALL = (
    "--preset paper --pretrained 0 --image_size 32 --batch_size 8 --num_users 2 --num_labeled 1 "
    "--rounds 2 --save_every 100 --progress 0 --cache ram"
)


def rounds_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [row["round"] for row in csv.DictReader(file)]


def test_a_run_that_was_stopped_is_finished_from_its_last_round_and_can_go_on(
    phantom_folder, tmp_path, monkeypatch, capsys
):
    folder, whole_round = tmp_path / "run", Run.finish_round
    flags = " ".join(phantom_folder.flags())

    def first_alone(self, progress, *rest):
        whole_round(self, progress, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "finish_round", first_alone)
    with pytest.raises(AssertionError):  # its exit status is not 0
        type_here(f"python train_main.py {SMALL} {flags} --run_dir {folder}", tmp_path)
    assert not (folder / "REPORT.md").exists()
    assert not list((folder / "checkpoints").glob("epoch_*.pth"))
    log = (folder / "log.txt").read_text()
    assert re.search(r"# round 1 of 2: \d+\.\d s, about \d+ s left\n", log)

    said = type_here(f"python train_main.py --resume {folder} --finish", tmp_path)
    assert "--finish: ended after 1 of 2 rounds" in said and "going on" not in said
    assert "- **Training**: preset paper, 1 rounds" in (folder / "REPORT.md").read_text()
    weights, content = load_model(folder / "checkpoints" / "epoch_0.pth")
    assert content["round"] == 0 and weights
    assert '"finish"' not in (folder / "args.json").read_text()

    monkeypatch.setattr(Run, "finish_round", whole_round)
    said = type_here(f"python train_main.py --resume {folder}", tmp_path)
    assert "going on with round 1 of 2" in said
    assert rounds_of(folder) == ["0", "1"]
    (read,) = parse_log(folder / "log.txt")
    assert read.lines_not_understood == 0 and len(read.finished_rounds()) == 2
    assert "preset paper, 2 rounds" in (folder / "REPORT.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--finish", "--finish: needs --resume and the folder of a run"),
        ("--patience 3", "--patience: needs validation images, name them with --csv_file_val"),
    ],
)
def test_what_cannot_end_is_refused(flags, message, phantom_folder):
    data = phantom_folder.flags()
    without_val = data[:4] + data[6:]
    with pytest.raises(UserError, match=message):
        args_parser([*without_val, *flags.split()])


def rows(*scores):
    return [
        {"round": round, "val_auroc": score, "seconds_round": 2.0}
        for round, score in enumerate(scores)
    ]


def test_patience_counts_the_rounds_since_the_best_one():
    args = make_args("paper", "--patience", "2")
    assert reason_to_end(args, rows(0.5, 0.7, 0.6), 3, "auroc") is None
    said = reason_to_end(args, rows(0.5, 0.7, 0.6, 0.7), 4, "auroc")
    assert said.startswith("--patience 2: ended after 4 of 100 rounds, the best auroc")
    assert said.endswith("0.7000, was in round 1")
    late = make_args("paper", "--patience", "2", "--join_epoch", "1")
    assert reason_to_end(late, rows(0.9, 0.8, 0.7, 0.7), 4, "auroc") is None
    assert reason_to_end(late, rows(0.9, 0.8, 0.7, 0.7, 0.6), 5, "auroc") is not None
    unscored = [{"round": 0}, {"round": 1, "val_auroc": float("nan")}]
    assert reason_to_end(args, unscored, 2, "auroc") is None
    assert reason_to_end(make_args("paper"), rows(0.9, 0.1, 0.1, 0.1), 4, "auroc") is None


def test_the_time_left_knows_that_the_unlabelled_clients_join():
    flags = ("--rounds", "4", "--join_epoch", "1", "--local_ep", "1", "--eval_every", "2")
    args = make_args("paper", *flags)
    sites = [Site(0, True, 100), *(Site(number, False, 100) for number in (1, 2))]
    costs = round_costs(args, RelationServer(args), sites, 50)
    assert costs == pytest.approx([100, 110, 100 + 280, 110 + 280])
    history = rows(0.5, 0.6)
    assert seconds_left(history, costs) == pytest.approx((2 / 100 + 2 / 110) / 2 * (380 + 390))
    assert round_line(history, costs, False) == "round 2 of 4: 2.0 s, about 15 s left"
    assert round_line(history, costs, True) == "round 2 of 4: 2.0 s"


def test_a_dry_run_adds_up_what_single_steps_took():
    flags = ("--rounds", "4", "--join_epoch", "1", "--local_ep", "1", "--eval_every", "2")
    args = make_args("paper", *flags)
    sites = [Site(0, True, 100), *(Site(number, False, 100) for number in (1, 2))]
    costs = {True: Cost(1.0, 0.01), False: Cost(2.0, 0.02)}  # clients of 2 s and of 4 s
    cpus = [torch.device("cpu")]
    said = _time_lines(args, sites, costs, 5.0, cpus)[1]
    assert said.startswith("time: about 34 s for 4 rounds, 15 s for the longest;")  # 2 7 10 15
    said = _time_lines(args, sites, costs, 5.0, 2 * cpus)[1]
    assert said.startswith("time: about 22 s for 4 rounds, 10 s for the longest;")  # 1 6 5 10


def test_times_are_told_as_people_tell_them():
    told = [duration(seconds) for seconds in (4.4, 89, 91, 3599, 11_100, 370_000, float("nan"))]
    assert told == ["4 s", "89 s", "2 min", "1 h 00 min", "3 h 05 min", "4 days 6 h", "unknown"]


def test_the_loop_keeps_its_five_numbered_lines():
    text = (PROJECT / "train_main.py").read_text()
    assert re.findall(r"^ +# (\d)\. ", text, re.MULTILINE) == list("12345")
