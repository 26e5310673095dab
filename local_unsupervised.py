"""An unlabelled client: mean-teacher consistency and inter-client relation matching."""

import math
from argparse import Namespace
from collections.abc import Iterable

import torch

from confuse_matrix import RelationMatrix, RelationMeter, relation_loss
from dataloaders.dataset import Batch
from local_update import ClientUpdate, LocalUpdate, StepLog, take_step
from networks.models import BATCHNORM_MOMENTUM, Network
from utils.losses import (
    class_softmax,
    mean_prediction,
    predictive_entropy,
    reliable_mask,
    rows,
    softmax_mse_loss,
)
from utils.ramps import get_current_consistency_weight
from utils.tensors import copy_tensors, net_device, set_tensors


def update_ema_variables(
    model: Iterable[torch.Tensor],
    ema_model: Iterable[torch.Tensor],
    alpha: float,
    global_step: int,
) -> None:
    """teacher = a * teacher + (1 - a) * student, in place, a = min(1 - 1/(step + 1), alpha).

    model, ema_model: the parameters of student and teacher in the same order. BatchNorm's
    statistics are not parameters and stay the teacher's own. Needs no gradient, gives none.
    """
    alpha = min(1 - 1 / (global_step + 1), alpha)
    with torch.no_grad():
        torch._foreach_lerp_(list(ema_model), list(model), 1 - alpha)


def entropy_in_nats(args: Namespace, num_classes: int) -> float:
    """h of the paper: --entropy_threshold is in nats, or a share of the largest entropy, ln C."""
    largest = math.log(num_classes) if args.entropy_unit == "share" else 1.0
    return args.entropy_threshold * largest


class UnsupervisedLocalUpdate(LocalUpdate):
    """Trains without labels: lambda (L_c + L_IRM), eq. 7 right.

    The teacher is made from the first weights the client receives and lives on from round to
    round, beside Adam's moments and the count of steps.
    """

    remembered_copies = 3  # the teacher, too
    matches_relation = True  # whether L_IRM is part of the loss

    def __init__(self, args, dataset, indices, client, task):
        super().__init__(args, dataset, indices, client, task)
        self.teacher: dict[str, torch.Tensor] | None = None
        self.step = args.global_step

    def state_dict(self) -> dict:
        """Adam's moments, the teacher's parameters and the number of steps taken."""
        return super().state_dict() | {"teacher": self.teacher, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.teacher, self.step = state["teacher"], state["step"]

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights` on the device of `net`.

        `shared` holds the labelled clients' mean relation matrix of the round before; without it
        (nobody has measured one yet) the relation loss is 0.
        """
        args = self.args
        log = StepLog("loss", "consistency_loss", "relation_loss", "reliable_share")
        device = net_device(net)
        self.receive(net, weights, round)
        optimizer = self.build_optimizer(net, round)
        teacher = self.teacher_network(net)
        parameters, teacher_parameters = list(net.parameters()), list(teacher.parameters())
        target = RelationMatrix.from_named({k: v.to(device) for k, v in shared.items()})
        # An image is counted once in each local epoch.
        least = args.relation_min_samples * (args.local_ep if args.relation_min_samples > 1 else 1)
        meter = RelationMeter(
            args.temperature, args.absent_class, "batches", least, args.relation_min_rows
        )
        step = self.step

        for epoch, batches in self.epochs(2, round, device):
            weight = args.unsupervised_weight * self.consistency_weight(round, epoch)
            for batch in batches:
                consistency, relation, reliable = self.losses(net, teacher, batch, target, meter)
                loss = weight * (consistency + self.matches_relation * relation)  # eq. 7
                take_step(optimizer, loss)
                update_ema_variables(parameters, teacher_parameters, self.ema_decay, step)
                step += 1
                log.add(batch, loss, consistency, relation, reliable.float().mean())

        self.remember(optimizer, teacher, step)
        return self.report(
            net,
            log,
            shown=meter.matrix().named(),
            learning_rate=self.learning_rate(round),
            consistency_weight=self.consistency_weight(round, epoch),
        )

    def losses(
        self,
        net: Network,
        teacher: Network,
        batch: Batch,
        target: RelationMatrix | None,
        meter: RelationMeter,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L_c and L_IRM of one batch, scalars, and which of its rows are reliable, bool (M,)."""
        args = self.args
        student_view, teacher_view = batch.views  # (B, 3, S, S) each
        features, outputs = net(student_view)  # (B, 1024), (B, C)
        student_logits = rows(outputs)  # (M, C): a row for each image, or each voxel
        student_probabilities = class_softmax(student_logits)
        with torch.no_grad():
            teacher_logits = rows(teacher(teacher_view)[1])
            # In train mode the backbone gives the same features at every pass, so T stochastic
            # passes are T draws of the dropout behind it.
            stochastic = rows(net.stochastic(features, args.mc_passes), 2)
            prediction = mean_prediction(stochastic, args.mc_average)
            entropy = predictive_entropy(prediction)  # eq. 4
            reliable = reliable_mask(
                entropy,
                student_probabilities,
                entropy_in_nats(args, student_logits.shape[1]),
                args.confidence_threshold,
            )
            # Of classes side by side in memory, which argmax is faster on.
            pseudo_labels = student_probabilities.contiguous().argmax(dim=1)
        scores = student_logits if args.unlabeled_matrix == "logits" else student_probabilities
        relation = meter.add(scores, pseudo_labels, reliable)  # eq. 5

        size = args.batch_size if args.consistency_norm == "flag" else len(student_logits)
        squared = softmax_mse_loss(student_logits, teacher_logits, size)  # eq. 1
        consistency_loss = args.consistency_scale * squared
        if target is None:
            return consistency_loss, squared.new_zeros(()), reliable
        distance = relation_loss(relation, target, args.relation_distance)  # eq. 6
        return consistency_loss, args.relation_scale * distance, reliable

    def teacher_network(self, net: Network) -> Network:
        """The twin of `net` as this client's teacher: in train mode, with its own BatchNorm.

        Its weights are those remembered, or the student's before there are any. The two draw their
        dropout masks in turn from one generator.
        """
        teacher = net.twin().train()
        teacher.dropout.generator = net.dropout.generator
        remembered = self.teacher if self.args.ema_consistency else None
        student = dict(net.named_parameters())
        set_tensors(dict(teacher.named_parameters()), remembered or student)
        return teacher

    def remember(self, optimizer: torch.optim.Optimizer, teacher: Network, step: int) -> None:
        """What the next round goes on from."""
        self.optimizer_state, self.step = optimizer.state_dict(), step
        self.teacher = copy_tensors(dict(teacher.named_parameters()))

    @property
    def ema_decay(self) -> float:
        """The teacher's decay; without ema_consistency it follows the student at once."""
        return self.args.ema_decay if self.args.ema_consistency else 0.0

    def consistency_weight(self, round: int, epoch: int) -> float:
        """lambda(omega) of eq. 7, by federated round or by local epoch."""
        args = self.args
        clock = round if args.rampup_clock == "round" else round * args.local_ep + epoch
        return get_current_consistency_weight(
            clock, args.consistency, args.consistency_rampup, args.rampup_power
        )

    def batchnorm_momentum(self) -> float:
        """Momentum of one update that equals one update per stochastic pass, where asked for."""
        if self.args.bn_updates == "once":
            return BATCHNORM_MOMENTUM
        return 1 - (1 - BATCHNORM_MOMENTUM) ** (1 + self.args.mc_passes)


class ConsistencyLocalUpdate(UnsupervisedLocalUpdate):
    """Fed-Consistency: FedIRM without L_IRM, which is measured all the same."""

    matches_relation = False
