"""The metrics against scikit-learn and hand-made cases."""

import numpy as np
import pytest
from sklearn import metrics as reference

from utils.metrics.numbers import calibration, classification_metrics, sweep, youden_thresholds

NAN = float("nan")


def random_case(num_images=600, num_classes=5, seed=0, decimals=None):
    generator = np.random.default_rng(seed)
    labels = generator.integers(num_classes, size=num_images)
    logits = generator.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 1.2
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(1, keepdims=True)
    if decimals is not None:
        probabilities = np.round(probabilities, decimals)
    return labels, probabilities


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("threshold", [0.4, 0.1, np.array([0.1, 0.2, 0.3, 0.4, 0.5])])
def test_every_number_equals_scikit_learn(decimals, threshold):
    labels, probabilities = random_case(decimals=decimals)
    metrics = classification_metrics(labels, probabilities, threshold)
    thresholds = np.broadcast_to(threshold, 5)
    for c in range(5):
        truth, score = labels == c, probabilities[:, c]
        decision = score >= thresholds[c]
        expected = {
            "auroc": reference.roc_auc_score(truth, score),
            "average_precision": reference.average_precision_score(truth, score),
            "sensitivity": reference.recall_score(truth, decision),
            "specificity": reference.recall_score(truth, decision, pos_label=False),
            "precision": reference.precision_score(truth, decision),
            "negative_predictive_value": reference.precision_score(
                truth, decision, pos_label=False
            ),
            "f1": reference.f1_score(truth, decision),
            "one_vs_rest_accuracy": reference.accuracy_score(truth, decision),
        }
        for name, value in expected.items():
            assert getattr(metrics, name)[c] == pytest.approx(value, abs=1e-12), name
    top1 = probabilities.argmax(1)
    assert metrics.top1_accuracy == pytest.approx(reference.accuracy_score(labels, top1), abs=1e-12)
    assert metrics.balanced_accuracy == pytest.approx(
        reference.balanced_accuracy_score(labels, top1), abs=1e-12
    )
    assert np.array_equal(metrics.confusion, reference.confusion_matrix(labels, top1))
    assert np.array_equal(metrics.images, np.bincount(labels))


def test_hand_made_case():
    probabilities = np.array([[0.5, 0.5], [0.3, 0.7], [0.8, 0.2], [0.45, 0.55]])
    metrics = classification_metrics(np.array([0, 0, 1, 1]), probabilities, 0.5)
    # class 0 is predicted for images 0 and 2; class 1 for images 0, 1 and 3
    assert metrics.sensitivity.tolist() == [0.5, 0.5]
    assert metrics.specificity.tolist() == [0.5, 0.0]
    assert metrics.precision.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert metrics.negative_predictive_value.tolist() == [0.5, 0.0]
    assert metrics.f1.tolist() == pytest.approx([2 / 4, 2 / 5])
    assert metrics.one_vs_rest_accuracy.tolist() == [0.5, 0.25]
    # positives of class 0 score 0.5 and 0.3, negatives 0.8 and 0.45: one of four pairs is in order
    assert metrics.auroc.tolist() == [0.25, 0.25]
    assert metrics.top1_accuracy == 0.5  # a tie goes to the first class
    assert metrics.confusion.tolist() == [[1, 1], [1, 1]]
    brier = (2 * 0.25 + 2 * 0.49 + 2 * 0.64 + 2 * 0.2025) / 4
    assert metrics.brier == pytest.approx(brier, abs=1e-12)


def test_calibration_by_hand():
    confidence = np.array([0.5, 0.6, 0.75, 0.9, 1.0, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    result = calibration(np.array([0, 1, 0, 0, 0, 1]), probabilities, num_bins=4)
    # bins (0.25, 0.5], (0.5, 0.75] and (0.75, 1] hold 1, 2 and 3 images, 1, 1 and 2 of them right
    assert result.images.tolist() == [0, 1, 2, 3]
    expected = [NAN, 0.5, 0.675, 2.9 / 3]
    assert result.confidence == pytest.approx(expected, nan_ok=True)
    assert result.accuracy == pytest.approx([NAN, 1.0, 0.5, 2 / 3], nan_ok=True)
    assert result.expected_error == pytest.approx((1 * 0.5 + 2 * 0.175 + 3 * 0.3) / 6)
    metrics = classification_metrics(np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert metrics.calibration_error == 0.0


def test_macro_is_over_the_classes_where_the_number_is_defined():
    labels, probabilities = random_case(num_classes=4)
    absent = labels != 2
    metrics = classification_metrics(labels[absent], probabilities[absent])
    assert np.isnan(metrics.auroc[2])
    assert np.isnan(metrics.sensitivity[2])
    assert not np.isnan(metrics.specificity[2])
    assert metrics.defined("auroc") == 3
    assert metrics.macro("auroc") == pytest.approx(metrics.auroc[[0, 1, 3]].mean())
    recalls = metrics.confusion.diagonal()[[0, 1, 3]] / metrics.images[[0, 1, 3]]
    assert metrics.balanced_accuracy == pytest.approx(recalls.mean())


def test_no_positive_prediction_has_no_precision_and_an_f1_of_zero():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    metrics = classification_metrics(np.array([0, 1, 0]), probabilities, 0.5)
    assert np.isnan(metrics.precision[1])
    assert metrics.f1[1] == 0.0
    assert metrics.negative_predictive_value[1] == pytest.approx(2 / 3)
    assert np.isnan(metrics.negative_predictive_value[0])


def test_f1_is_undefined_without_positives_and_without_positive_predictions():
    metrics = classification_metrics(np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]]), 0.5)
    assert np.isnan(metrics.f1[1])
    assert np.isnan(metrics.auroc).all()
    assert metrics.average_precision[0] == 1.0
    assert np.isnan(metrics.specificity[0])


def test_no_images_at_all():
    metrics = classification_metrics(np.zeros(0, int), np.zeros((0, 3)))
    assert np.isnan(metrics.one_vs_rest_accuracy).all()
    assert np.isnan([metrics.top1_accuracy, metrics.balanced_accuracy, metrics.brier]).all()
    assert np.isnan(metrics.macro("auroc"))
    assert metrics.defined("auroc") == 0


def test_auroc_and_average_precision_do_not_see_a_monotone_change_of_the_scores():
    labels, probabilities = random_case()
    before = classification_metrics(labels, probabilities)
    after = classification_metrics(labels, probabilities**3)
    assert np.array_equal(before.auroc, after.auroc)
    assert np.array_equal(before.average_precision, after.average_precision)


def test_youden_threshold_maximises_sensitivity_plus_specificity():
    labels, probabilities = random_case(decimals=2)
    thresholds = youden_thresholds(labels, probabilities)
    for c in range(5):
        false_rate, true_rate, candidates = reference.roc_curve(
            labels == c, probabilities[:, c], drop_intermediate=False
        )
        best = np.argmax(true_rate - false_rate)
        assert thresholds[c] == candidates[best]
    metrics = classification_metrics(labels, probabilities, thresholds)
    fixed = classification_metrics(labels, probabilities, 0.4)
    assert (
        metrics.sensitivity + metrics.specificity >= fixed.sensitivity + fixed.specificity
    ).all()


def test_a_class_without_a_youden_threshold_has_no_decisions():
    labels, probabilities = random_case(num_classes=3)
    labels[labels == 1] = 0
    thresholds = youden_thresholds(labels, probabilities)
    assert np.isnan(thresholds).tolist() == [False, True, False]
    metrics = classification_metrics(labels, probabilities, thresholds)
    for name in ("specificity", "precision", "negative_predictive_value", "f1"):
        assert np.isnan(getattr(metrics, name)).tolist() == [False, True, False], name
    assert np.isnan(metrics.one_vs_rest_accuracy).tolist() == [False, True, False]


def test_sweep_covers_the_released_range():
    labels, probabilities = random_case()
    swept = sweep(labels, probabilities)
    assert swept[0][0] == 0.40
    assert swept[-1][0] == 0.92
    threshold, metrics = swept[5]
    again = classification_metrics(labels, probabilities, threshold)
    assert np.array_equal(metrics.f1, again.f1, equal_nan=True)
    sensitivities = [m.macro("sensitivity") for _, m in swept]
    assert sensitivities == sorted(sensitivities, reverse=True)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([0, 1], np.full((3, 2), 0.5)),
        ([0, 2], np.full((2, 2), 0.5)),
        ([-1, 0], np.full((2, 2), 0.5)),
        ([0, 1], np.array([[0.5, 0.5], [NAN, 0.5]])),
        ([0, 1], np.full(2, 0.5)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, probabilities):
    with pytest.raises(ValueError):
        classification_metrics(np.array(labels), probabilities)
