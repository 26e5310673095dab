"""The patient-level bootstrap: draws against scikit-learn, intervals against formulas."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from utils.metrics.intervals import (
    Ranking,
    auroc_draws,
    bootstrap_auroc,
    bootstrap_curves,
    draw_weights,
    effective_groups,
)


def clustered_case(num_patients=80, num_classes=4, seed=0, decimals=None):
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_patients), generator.integers(1, 9, num_patients))
    labels = generator.integers(num_classes, size=num_patients)[groups]
    logits = generator.normal(size=(len(groups), num_classes))
    logits += generator.normal(size=(num_patients, num_classes))[groups]
    logits[np.arange(len(groups)), labels] += 1.5
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(1, keepdims=True)
    if decimals is not None:
        probabilities = np.round(probabilities, decimals)
    return labels, probabilities, groups


@pytest.mark.parametrize("decimals", [None, 1])
def test_weighted_auroc_equals_scikit_learn(decimals):
    labels, probabilities, groups = clustered_case(decimals=decimals)
    weights = next(draw_weights(len(labels), groups, 20, seed=3))
    for c in range(4):
        truth, scores = labels == c, probabilities[:, c]
        expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
        assert Ranking(truth, scores).auroc(weights) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_a_weighting_without_positives_or_negatives_is_undefined():
    ranking = Ranking(np.array([True, False, True]), np.array([0.2, 0.3, 0.4]))
    weights = np.array([[1, 0, 1], [0, 2, 0], [1, 1, 0], [0, 1, 1], [3, 1, 1.0]])
    assert ranking.auroc(weights).tolist() == pytest.approx(
        [np.nan, np.nan, 0.0, 1.0, 0.25], nan_ok=True
    )


def test_a_draw_takes_whole_patients_with_all_their_images():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = next(draw_weights(6, groups, 400, seed=0))
    assert weights.shape == (400, 6)
    for name in "abc":
        of_patient = weights[:, groups == name]
        assert (of_patient == of_patient[:, :1]).all()
    per_patient = weights[:, [1, 0, 3]]
    assert (per_patient.sum(1) == 3).all()
    assert per_patient.mean(0) == pytest.approx([1, 1, 1], abs=0.12)


def test_draws_do_not_depend_on_how_many_come_at_a_time(monkeypatch):
    labels, probabilities, groups = clustered_case()
    together = auroc_draws(labels, probabilities, groups, 50, seed=1)[1]
    monkeypatch.setattr("utils.metrics.intervals.CHUNK_BYTES", 8 * len(labels) * 7)
    in_sevens = auroc_draws(labels, probabilities, groups, 50, seed=1)[1]
    assert np.array_equal(together, in_sevens)


def test_the_same_seed_gives_the_same_interval_and_ids_may_be_any_kind():
    labels, probabilities, groups = clustered_case()
    first = bootstrap_auroc(labels, probabilities, groups, draws=100, seed=5)
    names = np.array([f"patient {group:04d}" for group in groups])
    assert np.array_equal(
        first.low, bootstrap_auroc(labels, probabilities, names, draws=100, seed=5).low
    )
    other = bootstrap_auroc(labels, probabilities, groups, draws=100, seed=6)
    assert not np.array_equal(first.low, other.low)


def test_interval_follows_its_formula():
    labels, probabilities, groups = clustered_case()
    result = bootstrap_auroc(labels, probabilities, groups, draws=300, seed=2)
    _, samples = auroc_draws(labels, probabilities, groups, 300, seed=2)
    area = roc_auc_score(labels == 1, probabilities[:, 1])
    patients = effective_groups(labels, groups, 4)[1]
    deviation = samples[:, 1].std(ddof=1) * np.sqrt(patients / (patients - 1))
    margin = stats.t.ppf(0.975, patients - 1) * deviation / (area * (1 - area))
    centre = np.log(area / (1 - area))
    bounds = 1 / (1 + np.exp(-np.array([centre - margin, centre + margin])))
    assert [result.low[1], result.high[1]] == pytest.approx(bounds, abs=1e-12)
    assert result.macro_low < roc_auc_score(labels, probabilities, multi_class="ovr")
    assert result.macro_high > roc_auc_score(labels, probabilities, multi_class="ovr")


def test_effective_patients_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    groups = np.array([1, 1, 2, 1, 2, 3, 4])
    # class 0 has 2 and 1 images in two patients: 9 / 5; class 1 has 1, 1, 1, 1: 16 / 4
    assert effective_groups(labels, groups, 3).tolist() == [1.8, 1.8, 0.0]
    assert effective_groups(labels, None, 2).tolist() == [3.0, 3.0]


def test_intervals_are_wider_when_the_patients_are_known():
    labels, probabilities, groups = clustered_case(num_patients=200)
    by_patient = bootstrap_auroc(labels, probabilities, groups, draws=200)
    by_image = bootstrap_auroc(labels, probabilities, None, draws=200)
    assert (by_patient.high - by_patient.low > 1.2 * (by_image.high - by_image.low)).all()


def test_absent_classes_have_no_interval_and_are_left_out_of_the_macro():
    labels, probabilities, groups = clustered_case()
    present = labels != 2
    result = bootstrap_auroc(labels[present], probabilities[present], groups[present], draws=100)
    assert np.isnan([result.low[2], result.high[2]]).all()
    assert result.used_draws[2] == 0
    assert result.macro_used_draws == 100
    assert 0 < result.macro_low < result.macro_high < 1


def test_a_class_in_one_patient_has_no_interval_nor_has_the_macro():
    labels, probabilities, groups = clustered_case()
    labels = np.where(labels == 3, 0, labels)
    labels[groups == groups[5]] = 3
    result = bootstrap_auroc(labels, probabilities, groups, draws=200)
    assert np.isnan(result.low[3])
    assert np.isnan(result.macro_low)
    assert 0.5 * 200 < result.used_draws[3] < 0.75 * 200  # 1 - 1/e of the draws have the patient
    assert result.macro_used_draws == result.used_draws[3]


def test_perfect_separation_is_no_certainty():
    labels = np.tile([0, 1, 2], 30)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 90)
    probabilities[labels == 0, 0] += 10
    result = bootstrap_auroc(labels, probabilities, np.repeat(np.arange(30), 3), draws=100)
    assert np.isnan([result.low[0], result.high[0]]).all()
    assert not np.isnan(result.low[1:]).any()
    assert not np.isnan(result.macro_low)


@pytest.mark.filterwarnings("error")
def test_nothing_to_draw_from():
    empty = bootstrap_auroc(np.zeros(0, int), np.zeros((0, 3)), draws=10)
    assert np.isnan([*empty.low, empty.macro_low]).all()
    one_class = bootstrap_auroc(np.zeros(4, int), np.full((4, 2), 0.5), draws=10)
    assert np.isnan([*one_class.high, one_class.macro_high]).all()
    assert one_class.macro_used_draws == 0


def test_curves_of_one_weighting_equal_scikit_learn():
    labels, probabilities, _ = clustered_case(decimals=1)
    truth, scores = labels == 1, probabilities[:, 1]
    # a single draw makes both bounds that draw's own curve
    bands = bootstrap_curves(truth, scores, None, draws=1, seed=4)
    weights = next(draw_weights(len(truth), None, 1, seed=4))[0]
    assert np.array_equal(bands.roc_low, bands.roc_high)
    false_rate, true_rate, _ = roc_curve(truth, scores, sample_weight=weights)
    assert bands.roc_low == pytest.approx(np.interp(bands.grid, false_rate, true_rate), abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, scores, sample_weight=weights)
    expected = [precision[recall >= level - 1e-9][-1] for level in bands.grid[1:]]
    assert bands.precision_low[1:] == pytest.approx(expected, abs=1e-12)


def test_bands_hold_the_curve_and_a_lone_patient_has_none():
    labels, probabilities, groups = clustered_case(num_patients=150)
    truth, scores = labels == 0, probabilities[:, 0]
    bands = bootstrap_curves(truth, scores, groups, draws=200)
    false_rate, true_rate, _ = roc_curve(truth, scores)
    middle = np.interp(bands.grid, false_rate, true_rate)
    inside = (bands.roc_low <= middle + 1e-9) & (middle <= bands.roc_high + 1e-9)
    assert inside[1:].all()
    alone = bootstrap_curves(groups == 3, scores, groups, draws=20)
    assert np.isnan([alone.roc_low, alone.precision_high]).all()
