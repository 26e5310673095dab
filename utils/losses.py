"""The unlabelled clients' consistency loss and what decides which samples are reliable."""

import torch
from torch.nn import functional


def rows(outputs: torch.Tensor, class_dim: int = 1) -> torch.Tensor:
    """Outputs with one distribution per image or per voxel -> a row for each.

    (B, C) stays as it is, (B, C, D, H, W) becomes (M, C) with M = B D H W; what stands before the
    batch, as in (T, B, C, ...) with class_dim 2, stays: (T, M, C). Differentiable. Rows of voxels
    keep the classes outermost in memory: few classes side by side make slow loops.
    """
    if outputs.ndim == class_dim + 1:
        return outputs
    return outputs.movedim(class_dim, 0).flatten(class_dim).movedim(0, -1)


def class_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, the classes; ten times faster on a CPU where they are
    outermost in memory, as `rows` has them for voxels. Differentiable."""
    if logits.stride(-1) == 1:
        return functional.softmax(logits, dim=-1)
    return functional.softmax(logits.movedim(-1, 0), dim=0).movedim(0, -1)


def softmax_mse_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, denominator: float | None = None
) -> torch.Tensor:
    """Squared L2 distance between two softmax outputs (eq. 1), a scalar.

    Both logits (B, C). Summed over samples and classes, then divided by `denominator`, or by B
    when that is None. The teacher's side gets no gradient.
    """
    student = class_softmax(student_logits)
    teacher = class_softmax(teacher_logits.detach())
    return (student - teacher).square().sum() / (denominator or len(student_logits))


def mean_prediction(stochastic_logits: torch.Tensor, average: str) -> torch.Tensor:
    """T stochastic predictions (T, B, C) -> one distribution per sample (B, C).

    average "probabilities": the mean of the T softmax outputs (the paper's text to eq. 4).
    average "logits": the softmax of the mean logits (the released program).
    """
    if average == "probabilities":
        return class_softmax(stochastic_logits).mean(dim=0)
    if average == "logits":
        return class_softmax(stochastic_logits.mean(dim=0))
    raise ValueError(f"average is 'probabilities' or 'logits', not {average!r}")


def predictive_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """w of eq. 4 in nats: probabilities (B, C) -> (B,), between 0 and ln C."""
    return torch.special.entr(probabilities).sum(dim=1)


def reliable_mask(
    entropy: torch.Tensor,
    probabilities: torch.Tensor,
    entropy_threshold: float,
    confidence_threshold: float,
) -> torch.Tensor:
    """Which samples take part in relation matching: bool (B,).

    entropy (B,) below `entropy_threshold` (h of the paper) and the student's largest probability
    in (B, C) at least `confidence_threshold` (the released program's second filter; 0 is off).
    """
    confident = probabilities.amax(dim=1) >= confidence_threshold
    return (entropy < entropy_threshold) & confident
