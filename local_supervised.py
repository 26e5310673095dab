"""A labelled client: cross entropy, and the disease relation matrix it measures on the way."""

import torch

from confuse_matrix import RelationMeter
from local_update import ClientUpdate, LocalUpdate, StepLog, take_step
from networks.models import Network
from utils.losses import rows
from utils.tensors import net_device


class SupervisedLocalUpdate(LocalUpdate):
    """Trains on labels (eq. 7, left) and shares the relation matrix M^l (eq. 2 and 3)."""

    labeled = True

    @property
    def student_passes(self) -> int:
        """One for each augmented view."""
        return self.args.labeled_views

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights` on the device of `net`.

        `shared` is what unlabelled clients match; a labelled client ignores it.
        """
        args = self.args
        log = StepLog("loss", "supervised_loss")
        self.receive(net, weights, round)
        optimizer = self.build_optimizer(net, round)
        meter = RelationMeter(
            args.temperature,
            args.absent_class,
            args.labeled_matrix,
            args.relation_min_samples,
            args.relation_min_rows,
        )

        for _, batches in self.epochs(args.labeled_views, round, net_device(net)):
            meter.restart()
            for batch in batches:
                outputs = [net(view)[1] for view in batch.views]  # (B, C, ...) each
                loss = sum(
                    self.task.supervised_loss(output, batch.labels, args) for output in outputs
                )
                take_step(optimizer, loss)
                meter.add(rows(outputs[0].detach()), batch.labels.flatten())
                log.add(batch, loss, loss)

        self.optimizer_state = optimizer.state_dict()
        return self.report(
            net,
            log,
            shared=meter.matrix().named(),
            learning_rate=self.learning_rate(round),
        )

    def learning_rate(self, round: int) -> float:
        """`base_lr`, or `labeled_lr_late` (where not 0) once the unlabelled clients have joined."""
        args = self.args
        joined = round * args.local_ep > args.join_epoch
        return args.labeled_lr_late if joined and args.labeled_lr_late else args.base_lr
