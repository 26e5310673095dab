"""`--state_every`: fewer states, and a stopped run that ends in the same bits all the same."""

import os
from argparse import Namespace

import pytest

from options import args_parser
from record.pace import Pace
from record.run import Run
from tests.reliability.conftest import SMALL, refused
from tests.torture.runs import differences, outcome, whole_states

FLAGS = ["--rounds", 5, "--join_epoch", "0", "--cbafed_base", "0.1"]
FLAGS += ["--rscfed_subsets", "1", "--rscfed_clients", "2"]


@pytest.fixture
def stop_before(monkeypatch):
    """Has the next run end by Ctrl-C as a round begins."""

    def arrange(number: int) -> None:
        start = Run.start_round

        def interrupted(self, round, active):
            if round == number:
                monkeypatch.setattr(Run, "start_round", start)
                raise KeyboardInterrupt
            return start(self, round, active)

        monkeypatch.setattr(Run, "start_round", interrupted)

    return arrange


@pytest.mark.parametrize("place", ["host", "disk", "device"])
@pytest.mark.parametrize("method", ["fedirm", "rscfed", "cbafed"])
def test_a_stopped_run_ends_in_the_same_bits(
    train, phantom_folder, tmp_path, stop_before, place, method
):
    flags = [*SMALL, *phantom_folder.flags(), *FLAGS, "--method", method, "--client_state", place]
    assert train(*flags, "--run_dir", tmp_path / "whole").status == 0
    stop_before(3)
    run = tmp_path / "run"
    ended = train(*flags, "--state_every", 2, "--run_dir", run)
    assert ended.status == 130 and "kept up to the last state (--state_every 2)" in ended.said
    assert whole_states(run) == [2]
    (run / "checkpoints" / "epoch_3.pth").write_bytes(b"of a round that no state is of")
    ended = train("--resume", run)
    assert ended.status == 0 and "going on with round 2 of 5" in ended.said, ended.error
    assert whole_states(run) == [4, 5]
    assert differences(outcome(tmp_path / "whole"), outcome(run)) == []
    kept = len(os.listdir(run / "checkpoints" / "clients"))
    assert kept == len(os.listdir(tmp_path / "whole" / "checkpoints" / "clients"))


def test_at_a_pace(monkeypatch):
    """By rounds where they are told; else at first, and then never twice within the time."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    by_rounds, by_clock = Pace(3, 60.0), Pace(0, 60.0)
    assert [round for round in range(7) if by_rounds.is_due(round)] == [2, 5]
    found = []
    for round, seconds in enumerate((30, 40, 50, 5, 56)):
        now[0] += seconds
        if by_clock.is_due(round):
            found.append(round)
            by_clock.done()
    assert found == [0, 2, 4]
    for seconds, wanted in ((600, [0, 1, 2, 3]), (40, [0, 2])):  # asked as a round begins
        pace, found = Pace(0, 60.0), []
        for round in range(4):
            due = pace.is_due(round, seconds if round else 0.0)
            now[0] += seconds
            if due:
                found.append(round)
                pace.done()
        assert found == wanted


def test_by_the_clock_unless_told_otherwise(tmp_path):
    args = args_parser(["--preset", "demo"])
    assert (args.state_every, args.figure_every) == (0, 0)
    for engine in ("loop", "sites"):  # clients at sites go back by two rounds at most
        run = Run(Namespace(**vars(args) | {"engine": engine}), tmp_path, None)
        run.state_pace.done()
        assert run.state_pace.is_due(0) is (engine == "sites")
        run.log.close(), run.store.close()


def test_by_the_clock_a_short_run_keeps_its_first_and_last_state(train, phantom_folder, tmp_path):
    flags = [*SMALL, *phantom_folder.flags(), "--state_every", 0, "--run_dir", tmp_path / "run"]
    assert train(*flags).status == 0
    assert whole_states(tmp_path / "run") == [1, 3]
    ended = train("--resume", tmp_path / "run", "--rounds", 4)
    assert ended.status == 0 and "going on with round 3 of 4" in ended.said


def test_weights_of_rounds_without_a_state_go(train, phantom_folder, tmp_path):
    """Else test.py would take the newest file, and the report would be of another."""
    flags = [*SMALL, *phantom_folder.flags(), "--save_every", 1, "--run_dir", tmp_path / "run"]
    assert train(*flags).status == 0
    folder = tmp_path / "run" / "checkpoints"
    (folder / "epoch_9.pth").write_bytes((folder / "epoch_2.pth").read_bytes())
    (folder / "epoch_mine.pth").write_bytes(b"not a round's")
    assert train("--resume", tmp_path / "run", "--finish").status == 0
    names = {path.name for path in folder.glob("epoch_*")}
    assert names == {"epoch_0.pth", "epoch_1.pth", "epoch_2.pth", "epoch_mine.pth"}


def test_a_run_that_ends_early_keeps_its_end(train, phantom_folder, tmp_path):
    still = ["--unlabeled_lr", "1e-12", "--labeled_lr_late", "1e-12", "--base_lr", "1e-12"]
    flags = [*SMALL, *phantom_folder.flags(), *still, "--rounds", 9, "--patience", 1]
    ended = train(*flags, "--state_every", 50, "--run_dir", tmp_path / "run")
    assert ended.status == 0 and "--patience 1: ended after" in ended.said, ended.error
    (last,) = whole_states(tmp_path / "run")
    assert f"ended after {last} of 9" in ended.said and last < 9


def test_elsewhere_clients_remember_two_rounds_and_it_is_refused(train, phantom_folder, tmp_path):
    flags = [*SMALL, *phantom_folder.flags(), "--state_every", 2, "--engine", "flower"]
    assert "--state_every 2: only with --engine loop" in refused(train(*flags))
