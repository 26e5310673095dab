"""Consistency, uncertainty and the reliable samples against hand-made numbers."""

import math

import pytest
import torch

from utils.losses import (
    class_softmax,
    mean_prediction,
    predictive_entropy,
    reliable_mask,
    rows,
    softmax_mse_loss,
)

LN3 = math.log(3)


def test_consistency_by_hand():
    student = torch.tensor([[LN3, 0.0], [0.0, 0.0]])  # (3/4, 1/4), (1/2, 1/2)
    teacher = torch.tensor([[0.0, LN3], [0.0, LN3]])  # (1/4, 3/4) twice
    # 2 * (1/2)^2 + 2 * (1/4)^2
    assert softmax_mse_loss(student, teacher, 1).item() == pytest.approx(0.625)
    assert softmax_mse_loss(student, teacher).item() == pytest.approx(0.625 / 2)
    assert softmax_mse_loss(student, teacher, 48).item() == pytest.approx(0.625 / 48)


def test_consistency_gradient_reaches_the_student_only():
    student = torch.randn(4, 3).requires_grad_()
    teacher = torch.randn(4, 3).requires_grad_()
    softmax_mse_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert softmax_mse_loss(student, student).item() == 0


def test_mean_of_probabilities_is_not_the_softmax_of_mean_logits():
    # two passes over one sample: (3/4, 1/4) and (1/2, 1/2)
    passes = torch.tensor([[[LN3, 0.0]], [[0.0, 0.0]]])
    probabilities = mean_prediction(passes, "probabilities")
    torch.testing.assert_close(probabilities, torch.tensor([[5 / 8, 3 / 8]]))
    logits = mean_prediction(passes, "logits")  # softmax(ln 3 / 2, 0): root 3 to 1
    root = math.sqrt(3)
    torch.testing.assert_close(logits, torch.tensor([[root / (1 + root), 1 / (1 + root)]]))
    with pytest.raises(ValueError, match="'probabilities' or 'logits'"):
        mean_prediction(passes, "votes")


def test_entropy_by_hand():
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3, [0.5, 0.25, 0.25]])
    expected = torch.tensor([math.log(2), 0.0, LN3, 1.5 * math.log(2)])
    torch.testing.assert_close(predictive_entropy(probabilities), expected)


def test_reliable_below_the_entropy_and_from_the_confidence_on():
    entropy = torch.tensor([0.1, 0.5, 0.9, 0.1])
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.9, 0.1], [0.6, 0.4]])
    mask = reliable_mask(entropy, probabilities, 0.5, 0.7)
    assert mask.tolist() == [True, False, False, False]  # 0.5 is not below 0.5
    assert reliable_mask(entropy, probabilities, 0.51, 0.7).tolist() == [True, True, False, False]
    assert reliable_mask(entropy, probabilities, 2.0, 0.0).all()


def test_the_released_programs_threshold_never_bites():
    uniform = torch.full((1, 5), 0.2)
    assert predictive_entropy(uniform).item() == pytest.approx(1.6094379)
    assert reliable_mask(predictive_entropy(uniform), uniform, 2.0, 0.0).all()
    assert not reliable_mask(predictive_entropy(uniform), uniform, math.log(2), 0.0).any()
    assert not reliable_mask(predictive_entropy(uniform), uniform, 2.0, 0.3).any()


def test_a_row_is_an_image_or_a_voxel_and_classes_are_its_columns():
    images = torch.randn(4, 3)
    assert rows(images) is images
    voxels = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    found = rows(voxels)
    assert found.shape == (240, 3)
    assert torch.equal(found[1 * 120 + 2 * 30 + 3 * 6 + 4], voxels[1, :, 2, 3, 4])
    passes = torch.randn(7, 2, 3, 4, 5, 6)
    assert torch.equal(rows(passes, 2)[3], rows(passes[3]))


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4, 2, 2)])
def test_softmax_over_classes_wherever_they_lie_in_memory(shape):
    outputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = class_softmax(rows(outputs))
    torch.testing.assert_close(found, torch.softmax(rows(outputs).contiguous(), dim=1))
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), outputs)
    plain = torch.softmax(outputs.movedim(1, -1).reshape(-1, shape[1]), dim=1)
    (expected,) = torch.autograd.grad((plain * weights).sum(), outputs)
    torch.testing.assert_close(gradient, expected)
