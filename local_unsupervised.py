"""An unlabelled client: mean-teacher consistency and inter-client relation matching."""

from collections.abc import Iterable

import torch
from torch.nn.functional import cross_entropy, softmax

from confuse_matrix import RelationMatrix, RelationMeter, relation_loss
from dataloaders.dataset import Batch
from local_update import BATCHNORM_MOMENTUM, ClientUpdate, LocalUpdate, StepLog
from networks.models import DenseNet121
from utils.losses import mean_prediction, predictive_entropy, reliable_mask, softmax_mse_loss
from utils.ramps import get_current_consistency_weight
from utils.tensors import copy_tensors, copy_weights, net_device, set_tensors

IGNORED = -100  # the label of a sample that takes no part in the cross entropy


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


class UnsupervisedLocalUpdate(LocalUpdate):
    """Trains without labels: lambda (L_c + L_IRM), eq. 7 right.

    The teacher is made from the first weights the client receives and lives on from round to
    round, beside Adam's moments and the count of steps.
    """

    remembered_copies = 3  # the teacher, too

    def __init__(self, args, dataset, indices, client):
        super().__init__(args, dataset, indices, client)
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
        net: DenseNet121,
        weights: dict[str, torch.Tensor],
        round: int,
        target_matrix: RelationMatrix | None,
    ) -> ClientUpdate:
        """One round of local training from `weights` on the device of `net`.

        `target_matrix` is the labelled clients' mean relation matrix of the round before; None
        (nobody has measured one yet) leaves the relation loss at 0.
        """
        args = self.args
        log = StepLog("loss", "consistency_loss", "relation_loss", "reliable_share")
        device = net_device(net)
        self.receive(net, weights, round, self.batchnorm_momentum())
        optimizer = self.build_optimizer(net, round)
        teacher = self.teacher_network(net)
        parameters, teacher_parameters = list(net.parameters()), list(teacher.parameters())
        if target_matrix is not None:
            target_matrix = target_matrix.to(device)
        meter = RelationMeter(args.temperature, args.absent_class, "batches")
        step = self.step

        for epoch, batches in self.epochs(2, round, device):
            weight = args.unsupervised_weight * self.consistency_weight(round, epoch)
            for batch in batches:
                consistency, relation, reliable = self.losses(
                    net, teacher, batch, target_matrix, meter
                )
                loss = weight * (consistency + self.matches_relation * relation)  # eq. 7
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                update_ema_variables(parameters, teacher_parameters, self.ema_decay, step)
                step += 1
                log.add(batch, loss, consistency, relation, reliable.float().mean())

        self.optimizer_state, self.step = optimizer.state_dict(), step
        self.teacher = copy_tensors(dict(teacher.named_parameters()))
        stats = log.means() | {
            "learning_rate": self.learning_rate(round),
            "consistency_weight": self.consistency_weight(round, epoch),
        }
        return ClientUpdate(
            copy_weights(net),
            len(self.indices),
            stats.pop("loss"),
            None,
            stats,
            pseudo_matrix=meter.matrix().to("cpu"),
            suspects=log.suspects(),
        )

    def losses(
        self,
        net: DenseNet121,
        teacher: DenseNet121,
        batch: Batch,
        target_matrix: RelationMatrix | None,
        meter: RelationMeter,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L_c and L_IRM of one batch, scalars, and which of its samples are reliable, bool (B,)."""
        args = self.args
        student_view, teacher_view = batch.views  # (B, 3, S, S) each
        activations, student_logits = net(student_view)  # (B, 1024), (B, C)
        student_probabilities = softmax(student_logits, dim=1)
        with torch.no_grad():
            _, teacher_logits = teacher(teacher_view)
            # In train mode the backbone gives the same features at every pass, so T stochastic
            # passes are T draws of the dropout behind it.
            stochastic = net.classify(activations.expand(args.mc_passes, *activations.shape))
            prediction = mean_prediction(stochastic, args.mc_average)
            entropy = predictive_entropy(prediction)  # eq. 4
            reliable = reliable_mask(
                entropy, student_probabilities, args.entropy_threshold, args.confidence_threshold
            )
            pseudo_labels = student_probabilities.argmax(dim=1)
        scores = student_logits if args.unlabeled_matrix == "logits" else student_probabilities
        relation = meter.add(scores, pseudo_labels, reliable)  # eq. 5

        size = args.batch_size if args.consistency_norm == "flag" else len(student_view)
        squared = softmax_mse_loss(student_logits, teacher_logits, size)  # eq. 1
        consistency_loss = args.consistency_scale * squared
        if target_matrix is None:
            return consistency_loss, squared.new_zeros(()), reliable
        distance = relation_loss(relation, target_matrix, args.relation_distance)  # eq. 6
        return consistency_loss, args.relation_scale * distance, reliable

    def teacher_network(self, net: DenseNet121) -> DenseNet121:
        """The twin of `net` as this client's teacher: in train mode, with its own BatchNorm.

        Its weights are those remembered, or the student's before there are any.
        """
        teacher = net.twin().train()
        remembered = self.teacher if self.args.ema_consistency else None
        student = dict(net.named_parameters())
        set_tensors(dict(teacher.named_parameters()), remembered or student)
        return teacher

    @property
    def ema_decay(self) -> float:
        """The teacher's decay; without ema_consistency it follows the student at once."""
        return self.args.ema_decay if self.args.ema_consistency else 0.0

    @property
    def matches_relation(self) -> bool:
        """Whether L_IRM is part of the loss; Fed-Consistency only measures it."""
        return self.args.method == "fedirm"

    def consistency_weight(self, round: int, epoch: int) -> float:
        """lambda(omega) of eq. 7, by federated round or by local epoch."""
        args = self.args
        clock = round if args.rampup_clock == "round" else round * args.local_ep + epoch
        return get_current_consistency_weight(
            clock, args.consistency, args.consistency_rampup, args.rampup_power
        )

    def batchnorm_momentum(self) -> float:
        """Momentum of one update that equals one update per stochastic pass, where asked for."""
        updates = 1 + self.args.mc_passes if self.args.bn_updates == "every_pass" else 1
        return 1 - (1 - BATCHNORM_MOMENTUM) ** updates


class SelfTrainingLocalUpdate(LocalUpdate):
    """Fed-SelfTraining: pseudo labels from the received model, then cross entropy on them.

    Expectation: the received model, in eval mode, labels the client's images once a round.
    Maximisation: local epochs on those labels, leaving out images below the confidence threshold.
    """

    def train(
        self,
        net: DenseNet121,
        weights: dict[str, torch.Tensor],
        round: int,
        target_matrix: RelationMatrix | None,
    ) -> ClientUpdate:
        """One round of local training from `weights`; `target_matrix` is not used."""
        device = net_device(net)
        log = StepLog("loss", "reliable_share")
        self.receive(net, weights, round, BATCHNORM_MOMENTUM)
        pseudo_labels = self.pseudo_label(net, device)
        optimizer = self.build_optimizer(net, round)

        for _, batches in self.epochs(1, round, device, pseudo_labels):
            for batch in batches:
                _, logits = net(batch.views[0])
                confident = batch.labels != IGNORED
                summed = cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="sum")
                loss = summed / confident.sum().clamp(min=1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                log.add(batch, loss, confident.float().mean())

        self.optimizer_state = optimizer.state_dict()
        stats = log.means() | {"learning_rate": self.learning_rate(round)}
        return ClientUpdate(
            copy_weights(net),
            len(self.indices),
            stats.pop("loss"),
            None,
            stats,
            suspects=log.suspects(),
        )

    def pseudo_label(self, net: DenseNet121, device: torch.device) -> torch.Tensor:
        """Labels (int64, one per image of the data set) by `net`; IGNORED where not confident."""
        net.eval()
        with torch.no_grad():
            batches = self.dataset.evaluation_batches(self.indices, self.args.batch_size, device)
            batches = self.until_stopped(batches)
            probabilities = torch.cat([softmax(net(images)[1], dim=1) for images in batches])
        net.train()
        confidence, classes = probabilities.max(dim=1)
        chosen = classes.masked_fill(confidence < self.args.confidence_threshold, IGNORED)
        labels = torch.full((len(self.dataset),), IGNORED)
        labels[self.indices] = chosen.cpu()
        return labels
