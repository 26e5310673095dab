"""The methods beside the paper's on Flower: the bits of the loop."""

import pytest
import torch

from tests.flower.conftest import Result
from tests.flower.local_grid import run_rounds
from tests.reliability.conftest import SMALL, small_parts, train  # noqa: F401

FLAGS = [*SMALL, "--num_users", "2", "--num_labeled", "1", "--rounds", "3", "--join_epoch", "0"]
FLAGS += ["--fixmatch_threshold", "0.1", "--cbafed_base", "0.1", "--cbafed_record_rounds", "2"]
FLAGS += ["--rscfed_subsets", "2", "--rscfed_clients", "1", "--labeled_weight", "3"]


@pytest.mark.parametrize("method", ["fixmatch", "rscfed", "cbafed"])
def test_the_bits_of_the_loop(train, phantom_folder, tmp_path, method):  # noqa: F811
    flags = [*FLAGS, *phantom_folder.flags(), "--method", method]
    flags += ["--cache_dir", str(tmp_path / "cache")]
    assert train(*flags, "--run_dir", tmp_path / "loop").status == 0
    run_rounds(tmp_path / "flower", flags, lambda client, round, answer: answer, lambda grid: None)
    loop, flower = (Result(tmp_path / name) for name in ("loop", "flower"))
    assert loop.metrics() == flower.metrics()
    trained = [
        int(row["clients_labeled"]) + int(row["clients_unlabeled"]) for row in loop.metrics()
    ]
    assert trained[0] == 1 and 2 in trained
    mine, theirs = (result.state(3) for result in (loop, flower))
    for part in ("weights", "shared"):
        assert mine[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][name]) for name, value in mine[part].items())


def test_patience_ends_a_run_as_it_ends_the_loops(train, phantom_folder, tmp_path):  # noqa: F811
    still = ["--unlabeled_lr", "1e-12", "--labeled_lr_late", "1e-12", "--ema_decay", "0"]
    flags = [*FLAGS, *phantom_folder.flags(), *still, "--rounds", "6", "--patience", "1"]
    flags += ["--cache_dir", str(tmp_path / "cache")]
    assert train(*flags, "--run_dir", tmp_path / "loop").status == 0
    run_rounds(tmp_path / "flower", flags, lambda client, round, answer: answer, lambda grid: None)
    loop, flower = (Result(tmp_path / name) for name in ("loop", "flower"))
    assert loop.metrics() == flower.metrics() and len(loop.metrics()) < 6
    assert "--patience 1: ended after" in (tmp_path / "flower" / "log.txt").read_text()
