"""What the benchmarks compare with: a plain loop whose losses are ours."""

from argparse import Namespace

import pytest
import torch

from benchmarks import same_losses
from benchmarks.data import make_files
from benchmarks.measure import in_turn, ratios, spread
from benchmarks.ours import product_args
from benchmarks.reference import average, relation_distance, relation_matrix
from confuse_matrix import RelationMatrix, get_confuse_matrix, kd_loss
from FedAvg import FedAvg


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Flags, images and folder of a check on two batches of four images."""
    folder = tmp_path_factory.mktemp("benchmark")
    csvs = make_files(folder, {"train": 8, "test": 2}, 64)
    args = product_args(folder, csvs, image_size=64, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(same_losses, "STEPS", 2)
        yield args, same_losses.small_dataset(args), folder / "images"


def test_reference_and_ours_compute_the_same_losses(checked):
    lines = same_losses.check(*checked)
    assert [line.split(":")[0] for line in lines[:2]] == [
        "same draws, labelled",
        "same draws, unlabelled",
    ]


def test_another_loss_is_noticed(checked):
    args, dataset, folder = checked
    other = Namespace(**vars(args) | {"label_smoothing": 0.0})
    with pytest.raises(RuntimeError, match="^labelled: our loss"):
        same_losses.check(other, dataset, folder)


def test_reference_formulas_are_ours():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator) * 3
    labels = torch.tensor([0, 1, 1, 0, 3, 3, 3, 0, 1])  # nobody has class 2
    plain = relation_matrix(logits, labels)
    ours = get_confuse_matrix(logits, labels)
    torch.testing.assert_close(plain, ours.log_rows.exp())
    target = torch.softmax(torch.randn(4, 4, generator=generator), dim=1)
    everywhere = torch.ones(4, dtype=torch.bool)
    distance = 0.5 * kd_loss(ours, RelationMatrix(target.log(), everywhere))
    torch.testing.assert_close(relation_distance(plain, target), distance)
    states = [{"weight": torch.randn(5, generator=generator)} for _ in range(3)]
    expected = FedAvg((state, 1.0) for state in states)
    torch.testing.assert_close(average(states)["weight"], expected["weight"])


def test_pieces_take_turns_in_going_first():
    calls = []
    pieces = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    results = in_turn(pieces, 3)
    assert "".join(calls) == "abcbcacab"
    assert results == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert ratios([3.0, 8.0], [2.0, 2.0]) == [1.5, 4.0]
    assert spread([1.0, 3.0, 2.0], 1) == "2.0 (1.0..3.0)"
