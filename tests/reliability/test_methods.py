"""Every method of the registry: a run that was stopped ends in the bits of one that was not."""

import pytest

from options import METHODS
from tests.reliability.conftest import SMALL
from tests.torture.runs import differences, outcome
from utils.report.page import rebuild_report

# A round of labelled clients alone, two of all; pseudo labels for a network that knows nothing.
FLAGS = ["--join_epoch", "0", "--confidence_threshold", "0.1", "--fixmatch_threshold", "0.1"]
FLAGS += ["--cbafed_base", "0.1", "--cbafed_tail", "0.3", "--cbafed_record_rounds", "2"]
FLAGS += ["--rscfed_subsets", "2", "--rscfed_clients", "3", "--labeled_weight", "3"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_as_if_nothing_had_been(train, phantom_folder, tmp_path, method):
    flags = [*SMALL, *phantom_folder.flags(), *FLAGS, "--method", method]
    assert train(*flags, "--gpu", "cpu,cpu", "--run_dir", tmp_path / "whole").status == 0
    ended = train(*flags, "--rounds", 2, "--run_dir", tmp_path / "stopped")
    assert ended.status == 0, ended.error
    ended = train("--resume", tmp_path / "stopped", "--rounds", 3)
    assert ended.status == 0, ended.error
    assert differences(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")) == []


def test_a_method_without_matrices_is_drawn_and_reported(train, phantom_folder, tmp_path):
    flags = [*SMALL, *phantom_folder.flags(), *FLAGS, "--method", "cbafed", "--figure_every", 1]
    run = tmp_path / "run"
    ended = train(*flags, "--run_dir", run)
    assert ended.status == 0, ended.error
    assert (run / "matrices.csv").read_text() == "round,source,row,column,value\n"
    rebuild_report(run)
    assert "relation.png" not in (run / "REPORT.md").read_text()
    assert (run / "figures" / "curves.png").exists() and (run / "report.html").exists()
    assert not (run / "figures" / "relation.png").exists()
