"""Which runs reproduce.py starts, goes on with, takes as they are or refuses."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

import reproduce
from paper import plan
from paper.flags import parse
from tests.helpers import PROJECT
from tests.helpers.reproduced import FLAGS
from utils.errors import UserError


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


def test_a_run_that_ended_before_its_report_goes_on_with_it(place, no_report):
    place.run("fig2a", "--seeds", "1")
    folder = place.runs / "demo" / "fedirm-2-8-seed1"
    (folder / "REPORT.md").unlink()
    out = place.run("fig2a", "--seeds", "1")
    assert "interrupted after 4 of 4 rounds" in out and "1 of 2 runs finished, 1 to do" in out
    assert place.calls()[2] == f"--resume {folder} --rounds 4"
    assert "2 of 2 runs finished" in place.run("fig2a", "--seeds", "1")


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


def test_flags_set_by_the_item_and_unknown_ones_are_refused(place):
    with pytest.raises(UserError, match="--seed: set by fig2a itself"):
        place.run("fig2a", "--seed", "3")
    with pytest.raises(UserError, match="--rounds: set by hippocampus_labels itself"):
        parse(["hippocampus_labels", "--volumes", "unread", "--rounds", "3"])
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
