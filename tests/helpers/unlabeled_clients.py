"""FedIRM's unlabelled clients and the formulas of their step, as two sources have them."""

import math

import torch

from confuse_matrix import RelationMeter
from federation import METHODS
from local_unsupervised import UnsupervisedLocalUpdate
from tasks.classification import Classification
from tests.helpers.small_clients import (
    entropy_of,
    make_args,
    make_target,
    plain_distance,
    plain_matrix,
    with_draws,
)
from utils.tensors import copy_weights

INDICES = torch.tensor([1, 2, 4, 7, 9, 11, 12])  # batches of 4 and 3


HEAD = "densenet121.classifier.0.weight"


def make_client(dataset, preset="official", *flags) -> UnsupervisedLocalUpdate:
    args = make_args(preset, *flags)
    return METHODS[args.method].unlabeled(args, dataset, INDICES, 4, Classification())


def set_momentum(net, momentum):
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum


def statistics_of(net) -> dict[str, torch.Tensor]:
    return {name: value for name, value in copy_weights(net).items() if ".running_" in name}


def fresh_meter(args) -> RelationMeter:
    return RelationMeter(args.temperature, args.absent_class, "batches")


def losses_of(client, net, weights, batch, teacher=None, target="mean"):
    """`client.losses` on `net` with `weights`, with the draws of round 0."""
    net.load_state_dict(weights)
    with_draws(net.train(), client, 0)
    set_momentum(net, 0.1)
    client.teacher = teacher
    target = make_target() if target == "mean" else target
    meter = fresh_meter(client.args)
    return client.losses(net, client.teacher_network(net), batch, target, meter)


def plain_losses(client, net, batch, passes, average, entropy_limit, confidence, scores, size):
    """Eq. 1 to 6 in their plain forms: (L_c, L_KL + L_KL, reliable), the student its own teacher.

    Dropout masks are drawn in the trainer's order: student, teacher, stochastic passes.
    """
    student_logits = net(batch.views[0])[1]
    student = student_logits.softmax(dim=1)
    with torch.no_grad():
        teacher = net(batch.views[1])[1].softmax(dim=1)
        stochastic = torch.stack([net(batch.views[0])[1] for _ in range(passes)])
        if average == "probabilities":
            mean = stochastic.softmax(dim=2).mean(dim=0)
        else:
            mean = stochastic.mean(dim=0).softmax(dim=1)
        reliable = (entropy_of(mean) < entropy_limit) & (student.max(dim=1).values >= confidence)
    consistency = ((student - teacher) ** 2).sum() / size
    pseudo_labels = student.argmax(dim=1)
    averaged = student_logits if scores == "logits" else student
    relation, present = plain_matrix(averaged, pseudo_labels, reliable)
    target = make_target()
    rows = target.present & present if scores == "probabilities" else target.present
    return consistency, plain_distance(relation, target.log_rows.exp(), rows), reliable


PAPER = {
    "passes": 8,
    "average": "probabilities",
    "entropy_limit": math.log(2),
    "confidence": 0.0,
    "scores": "probabilities",
    "size": 8,
}


OFFICIAL = {
    "passes": 11,
    "average": "logits",
    "entropy_limit": 2.0,
    "confidence": 0.3,
    "scores": "logits",
    "size": 48,
}
