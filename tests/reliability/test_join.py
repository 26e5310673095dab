"""What a run says when unlabelled clients join: classes that nobody finds can stay lost."""

import math
from types import SimpleNamespace

import pytest

from dataloaders.overlap import Listed
from predict.card import describe_run
from record.checks import never_join
from record.rounds import RoundMatrices, classes_not_found
from tests.reliability.conftest import SMALL

NAMES = ("background", "Anterior", "Posterior")
ROW, NO_ROW = [0.2, 0.3, 0.5], [math.nan] * 3


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "lost"),
    [
        ([ROW, ROW, ROW], [ROW, ROW, NO_ROW], ["Posterior"]),
        ([ROW, ROW, NO_ROW], [ROW, ROW, NO_ROW], []),  # nobody has it
        ([ROW, NO_ROW, ROW], [ROW, ROW, ROW], []),
        ([ROW, ROW, ROW], [NO_ROW, NO_ROW, NO_ROW], list(NAMES)),
        ([ROW, ROW, ROW], None, []),  # a method without matrices, or a round of one kind alone
    ],
)
def test_classes_that_no_unlabelled_client_finds(labeled, unlabeled, lost):
    means = {"labeled_mean": labeled, "unlabeled_mean": unlabeled}
    means = {name: matrix for name, matrix in means.items() if matrix is not None}
    assert classes_not_found(RoundMatrices(7, means), NAMES) == lost


def test_it_is_said_once_in_the_round_of_the_join(train, phantom_folder, tmp_path):
    flags = [*SMALL, *phantom_folder.flags(), "--join_epoch", 1, "--rounds", 4]
    flags += ["--confidence_threshold", 1, "--run_dir", tmp_path / "run"]  # nothing is reliable
    ended = train(*flags)
    assert ended.status == 0, ended.error
    before, joined, after = ended.said.partition("warning: the unlabelled clients have joined")
    assert joined and "warning: the unlabelled clients" not in after
    assert before.count("Begin: com_round") == 3  # rounds 0 and 1 of the labelled client alone
    assert "none of them finds epidural, intraparenchymal," in after
    said = "thresholds let no sample of the unlabelled clients into their relation matrix (relia"
    assert ended.said.count(said) == 1
    ended = train("--resume", tmp_path / "run", "--rounds", 5)
    assert ended.status == 0 and "the unlabelled clients have joined" not in ended.said


@pytest.mark.parametrize(
    ("join_epoch", "rounds", "unlabeled", "warns"),
    [(1, 2, 3, True), (1, 3, 3, False), (-1, 1, 3, False), (9, 2, 0, False)],
)
def test_a_run_that_ends_before_the_join_is_warned_of(join_epoch, rounds, unlabeled, warns):
    args = SimpleNamespace(join_epoch=join_epoch, rounds=rounds, local_ep=1)
    assert (never_join(args, unlabeled) is not None) is warns


def test_a_run_in_which_nobody_joins_says_so_everywhere(train, phantom_folder, tmp_path):
    flags = [*SMALL, *phantom_folder.flags(), "--join_epoch", 9, "--rounds", 1]
    said = "the unlabelled clients join after epoch 9, and this run of 1 rounds of 1 ends before"
    assert said in train(*flags, "--dry_run").said
    ended = train(*flags, "--run_dir", tmp_path / "run")
    assert said in ended.said
    facts = describe_run(tmp_path / "run", Listed([], None, "patient"))
    assert facts["training data"].endswith("with labels, the only ones that ever trained")
