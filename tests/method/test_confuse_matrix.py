"""Relation matrices (eq. 2, 3, 5) and their distances (eq. 6) against hand-made numbers."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch.nn import functional

from confuse_matrix import (
    RelationMatrix,
    RelationMeter,
    average_matrices,
    get_confuse_matrix,
    kd_loss,
    relation_loss,
    wasserstein_loss,
)

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def matrix(*rows, present=None) -> RelationMatrix:
    """A relation matrix from rows of probabilities."""
    probabilities = torch.tensor(rows, dtype=torch.float64)
    present = [True] * len(rows) if present is None else present
    return RelationMatrix(probabilities.log(), torch.tensor(present))


def random_matrix(classes: int, seed: int, spread: float = 2.0) -> RelationMatrix:
    logits = torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed)).double()
    return RelationMatrix((spread * logits).log_softmax(dim=1), torch.ones(classes).bool())


# ---- eq. 2 and 3


def test_rows_are_softmaxed_class_means_over_the_temperature():
    # class 0: mean of (4 ln 2, 0) and (0, 0) is (2 ln 2, 0); over tau 2 (ln 2, 0): 2/3, 1/3
    # class 1: (0, 2 ln 3); over tau 2 (0, ln 3): 1/4, 3/4
    logits = torch.tensor([[4 * LN2, 0.0], [0.0, 2 * LN3], [0.0, 0.0]])
    relation = get_confuse_matrix(logits, torch.tensor([0, 1, 0]), temperature=2.0)
    expected = torch.tensor([[2 / 3, 1 / 3], [1 / 4, 3 / 4]])
    torch.testing.assert_close(relation.probabilities(), expected)
    assert relation.present.tolist() == [True, True]


def test_temperature_one_sharpens():
    logits = torch.tensor([[2 * LN2, 0.0], [0.0, 2 * LN3]])
    relation = get_confuse_matrix(logits, torch.tensor([0, 1]), temperature=1.0)
    expected = torch.tensor([[4 / 5, 1 / 5], [1 / 10, 9 / 10]])
    torch.testing.assert_close(relation.probabilities(), expected)


def test_weights_pick_the_samples_of_eq_5():
    logits = torch.tensor([[4 * LN2, 0.0], [100.0, -100.0], [0.0, 2 * LN3]])
    labels = torch.tensor([0, 0, 1])
    some = get_confuse_matrix(logits, labels, weights=torch.tensor([True, False, True]))
    without = get_confuse_matrix(logits[[0, 2]], labels[[0, 2]])
    torch.testing.assert_close(some.probabilities(), without.probabilities())


def test_absent_class_is_a_uniform_row_that_counts_or_is_skipped():
    logits, labels = torch.tensor([[4 * LN2, 0.0, 0.0]]), torch.tensor([0])
    uniform = get_confuse_matrix(logits, labels, absent="uniform")
    # softmax(2 ln 2, 0, 0) is 4, 1 and 1 sixths
    expected = torch.tensor([[4 / 6, 1 / 6, 1 / 6], [1 / 3] * 3, [1 / 3] * 3])
    torch.testing.assert_close(uniform.probabilities(), expected)
    assert uniform.present.tolist() == [True, True, True]
    skipped = get_confuse_matrix(logits, labels, absent="skip")
    assert skipped.present.tolist() == [True, False, False]
    assert skipped.probabilities().isnan().any(dim=1).tolist() == [False, True, True]


def test_absent_classes_change_the_loss_as_asked():
    logits, labels = torch.tensor([[4 * LN2, 0.0]], dtype=torch.float64), torch.tensor([0])
    target = matrix([0.5, 0.5], [0.25, 0.75])
    # row 0: source (4/5, 1/5) against (1/2, 1/2): sum of (t - s) ln(t/s)
    row_0 = (0.5 - 0.8) * math.log(0.5 / 0.8) + (0.5 - 0.2) * math.log(0.5 / 0.2)
    row_1 = (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)
    skip = get_confuse_matrix(logits, labels, temperature=2.0, absent="skip")
    uniform = get_confuse_matrix(logits, labels, temperature=2.0, absent="uniform")
    assert kd_loss(skip, target).item() == pytest.approx(row_0, rel=1e-12)
    assert kd_loss(uniform, target).item() == pytest.approx((row_0 + row_1) / 2, rel=1e-12)


def test_row_absent_in_the_target_is_not_matched():
    source = matrix([0.8, 0.2], [0.5, 0.5])
    target = matrix([0.5, 0.5], [0.9, 0.1], present=[True, False])
    only_first = kd_loss(matrix([0.8, 0.2]), matrix([0.5, 0.5]))
    torch.testing.assert_close(kd_loss(source, target), only_first)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="'uniform' or 'skip'"):
        get_confuse_matrix(torch.zeros(1, 2), torch.tensor([0]), absent="zero")
    with pytest.raises(ValueError, match="'dataset' or 'batches'"):
        RelationMeter(2.0, "skip", "epoch")


# ---- eq. 6


def test_kl_by_hand():
    source = matrix([0.5, 0.5], [0.25, 0.75])
    target = matrix([0.75, 0.25], [0.25, 0.75])
    # row 0: KL(t||s) = .75 ln 1.5 + .25 ln .5, KL(s||t) = .5 ln(2/3) + .5 ln 2; row 1: 0
    row_0 = 0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert kd_loss(source, target).item() == pytest.approx(row_0 / 2, rel=1e-12)
    assert row_0 == pytest.approx(LN3 / 4, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 5, 7])
def test_kl_equals_torchs(classes):
    source, target = random_matrix(classes, 1), random_matrix(classes, 2)
    forth = functional.kl_div(
        source.log_rows, target.log_rows, reduction="batchmean", log_target=True
    )
    back = functional.kl_div(
        target.log_rows, source.log_rows, reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(kd_loss(source, target), forth + back)
    # The released program's form: half of both, each a mean over the C rows.
    torch.testing.assert_close(0.5 * kd_loss(source, target), (forth + back) / 2)


def test_kl_is_a_distance_like_number():
    source, target = random_matrix(5, 3), random_matrix(5, 4)
    assert kd_loss(source, source).item() == 0
    assert kd_loss(source, target).item() > 0
    torch.testing.assert_close(kd_loss(source, target), kd_loss(target, source))


@pytest.mark.parametrize("gap", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("distance", ["kl", "wasserstein"])
def test_loss_and_gradient_stay_finite(gap, distance):
    logits = torch.tensor([[gap, 0.0, -gap], [-gap, gap, 0.0], [0.0, 0.0, gap]])
    logits.requires_grad_()
    labels = torch.arange(3)
    target = get_confuse_matrix(-logits.detach(), labels)
    loss = relation_loss(get_confuse_matrix(logits, labels), target, distance)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert logits.grad.isfinite().all()
    if distance == "kl":  # rows whose mass lies elsewhere are far apart, and pull
        assert loss.item() > gap / 4
        assert logits.grad.abs().max() > 0.01


def test_kl_gradient_equals_finite_differences():
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    target = random_matrix(4, 6)
    for absent in ("uniform", "skip"):
        for distance in ("kl", "wasserstein"):
            assert torch.autograd.gradcheck(
                lambda x, a=absent, d=distance: relation_loss(
                    get_confuse_matrix(x, labels, absent=a), target, d
                ),
                (logits.clone().requires_grad_(),),
            )


@pytest.mark.parametrize("absent", ["uniform", "skip"])
@pytest.mark.parametrize("distance", ["kl", "wasserstein"])
def test_empty_mask_gives_exactly_zero(absent, distance):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(7)).requires_grad_()
    nobody = torch.zeros(4, dtype=torch.bool)
    relation = get_confuse_matrix(logits, torch.tensor([0, 1, 2, 0]), absent=absent, weights=nobody)
    loss = relation_loss(relation, random_matrix(3, 8), distance)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_gradients_flow_into_the_source_only():
    source, target = random_matrix(3, 9), random_matrix(3, 10)
    for distance in ("kl", "wasserstein"):
        leaves = [part.log_rows.clone().requires_grad_() for part in (source, target)]
        pair = [RelationMatrix(leaf, source.present) for leaf in leaves]
        relation_loss(*pair, distance).backward()
        assert leaves[0].grad.abs().sum() > 0
        assert leaves[1].grad is None


# ---- Wasserstein


@pytest.mark.parametrize("classes", [2, 5, 9])
def test_wasserstein_equals_scipys(classes):
    source, target = random_matrix(classes, 11), random_matrix(classes, 12)
    places = range(classes)
    expected = [
        wasserstein_distance(places, places, s, t)
        for s, t in zip(source.probabilities(), target.probabilities(), strict=True)
    ]
    mean = sum(expected) / classes
    assert wasserstein_loss(source, target).item() == pytest.approx(mean, rel=1e-12)


def test_wasserstein_counts_the_way():
    first, second = [1.0, 1e-30, 1e-30], [1e-30, 1.0, 1e-30]
    last = [1e-30, 1e-30, 1.0]
    assert wasserstein_loss(matrix(first), matrix(second)).item() == pytest.approx(1)
    assert wasserstein_loss(matrix(first), matrix(last)).item() == pytest.approx(2)


# ---- averages and the meter


def test_average_is_of_probabilities_row_by_row():
    first = matrix([0.2, 0.8], [0.9, 0.1], present=[True, False])
    second = matrix([0.6, 0.4], [0.3, 0.7])
    mean = average_matrices([first, second])
    expected = torch.tensor([[0.4, 0.6], [0.3, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(mean.probabilities(), expected)
    assert mean.present.tolist() == [True, True]


def test_average_of_rows_that_nobody_has():
    mean = average_matrices([matrix([0.2, 0.8], [0.9, 0.1], present=[True, False])] * 2)
    assert mean.present.tolist() == [True, False]
    assert mean.log_rows.isfinite().all()
    assert mean.probabilities()[1].isnan().all()


def test_average_does_not_underflow():
    far = RelationMatrix(torch.tensor([[0.0, -5000.0]]), torch.tensor([True]))
    mean = average_matrices([far, far])
    torch.testing.assert_close(mean.log_rows, far.log_rows)


def batches_of(seed: int, sizes=(5, 4, 3), classes=4):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        scores = 3 * torch.randn(size, classes, generator=generator)
        yield scores, torch.randint(classes - 1, (size,), generator=generator)  # last class absent


def plain_matrix(scores, labels, temperature):
    """Eq. 2 and 3 as a loop, absent classes with a mean of 0."""
    rows = []
    for c in range(scores.shape[1]):
        members = [score for score, label in zip(scores, labels, strict=True) if label == c]
        mean = sum(members) / len(members) if members else torch.zeros(scores.shape[1])
        rows.append(torch.softmax(mean / temperature, dim=0))
    return torch.stack(rows)


def test_meter_over_the_data_set():
    meter = RelationMeter(2.0, "uniform", "dataset")
    for scores, labels in batches_of(seed=1):
        meter.add(scores + 9, labels)
    meter.restart()  # the next local epoch forgets the one before
    for scores, labels in batches_of(seed=2):
        meter.add(scores, labels)
    everything = [torch.cat(parts) for parts in zip(*batches_of(seed=2), strict=True)]
    torch.testing.assert_close(meter.matrix().probabilities(), plain_matrix(*everything, 2.0))


def test_meter_over_batches():
    meter = RelationMeter(1.5, "uniform", "batches")
    plain = []
    for seed in (1, 2):
        meter.restart()  # local epochs add up
        for scores, labels in batches_of(seed):
            batch = meter.add(scores, labels)
            torch.testing.assert_close(batch.probabilities(), plain_matrix(scores, labels, 1.5))
            plain.append(plain_matrix(scores, labels, 1.5))
    torch.testing.assert_close(meter.matrix().probabilities(), torch.stack(plain).mean(dim=0))
    dataset = RelationMeter(1.5, "uniform", "dataset")
    for scores, labels in batches_of(2):
        dataset.add(scores, labels)
    assert (dataset.matrix().probabilities() - meter.matrix().probabilities()).abs().max() > 0.01


@pytest.mark.parametrize("over", ["dataset", "batches"])
def test_meter_skips_what_no_batch_had(over):
    meter = RelationMeter(2.0, "skip", over)
    for scores, labels in batches_of(seed=3):
        meter.add(scores, labels)
    assert meter.matrix().present.tolist() == [True, True, True, False]


def test_meter_keeps_no_graph():
    meter = RelationMeter(2.0, "uniform", "batches")
    scores = torch.randn(3, 2).requires_grad_()
    assert meter.add(scores, torch.tensor([0, 1, 1])).log_rows.requires_grad
    assert not meter.matrix().log_rows.requires_grad


@pytest.mark.parametrize("over", ["dataset", "batches"])
@pytest.mark.parametrize("absent", ["uniform", "skip"])
def test_a_row_of_few_samples_says_nothing_of_them(over, absent):
    """Three images of class 0, one of class 1, none of class 2, in two batches."""
    draws = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(4, 3, generator=draws)
    meters = [RelationMeter(2.0, absent, over, least) for least in (1, 2)]
    for meter in meters:
        meter.restart()
        meter.add(scores[:2], torch.tensor([0, 1]))
        meter.add(scores[2:], torch.tensor([0, 0]))
    plain, hidden = (meter.matrix() for meter in meters)
    if (over, absent) == ("dataset", "uniform"):  # the leak: it is that image's prediction
        assert torch.allclose(plain.log_rows[1], (scores[1] / 2).log_softmax(dim=0))
    assert torch.equal(plain.log_rows[0], hidden.log_rows[0])
    for row in (1, 2):
        assert torch.allclose(hidden.log_rows[row], torch.full((3,), -math.log(3)))
    assert hidden.present.tolist() == ([True] * 3 if absent == "uniform" else [True, False, False])


def test_samples_are_counted_anew_in_each_pass():
    meter = RelationMeter(2.0, "skip", "dataset", 3)
    for _ in range(2):
        meter.restart()
        meter.add(torch.randn(2, 2), torch.tensor([0, 0]))
    assert not meter.matrix().present.any()  # the same two images seen twice are not four
