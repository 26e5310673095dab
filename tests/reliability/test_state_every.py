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
