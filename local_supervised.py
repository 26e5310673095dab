"""A labelled client: cross entropy, and the disease relation matrix it measures on the way."""

import torch
from torch.nn.functional import cross_entropy

from confuse_matrix import RelationMatrix, RelationMeter
from local_update import BATCHNORM_MOMENTUM, ClientUpdate, LocalUpdate, StepLog
from networks.models import DenseNet121
from utils.tensors import copy_weights, net_device


class SupervisedLocalUpdate(LocalUpdate):
    """Trains on labels (eq. 7, left) and returns the relation matrix M^l (eq. 2 and 3)."""

    labeled = True

    def train(
        self,
        net: DenseNet121,
        weights: dict[str, torch.Tensor],
        round: int,
        target_matrix: RelationMatrix | None = None,
    ) -> ClientUpdate:
        """One round of local training from `weights` on the device of `net`.

        `target_matrix` is what unlabelled clients match; a labelled client ignores it.
        """
        args = self.args
        log = StepLog("supervised_loss")
        self.receive(net, weights, round, BATCHNORM_MOMENTUM)
        optimizer = self.build_optimizer(net, round)
        meter = RelationMeter(args.temperature, args.absent_class, args.labeled_matrix)

        for _, batches in self.epochs(args.labeled_views, round, net_device(net)):
            meter.restart()
            for batch in batches:
                view_logits = [net(view)[1] for view in batch.views]
                loss = sum(
                    cross_entropy(logits, batch.labels, label_smoothing=args.label_smoothing)
                    for logits in view_logits
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meter.add(view_logits[0].detach(), batch.labels)
                log.add(batch, loss)

        self.optimizer_state = optimizer.state_dict()
        stats = log.means() | {"learning_rate": self.learning_rate(round)}
        return ClientUpdate(
            copy_weights(net),
            len(self.indices),
            stats["supervised_loss"],
            meter.matrix().to("cpu"),
            stats,
            suspects=log.suspects(),
        )

    def learning_rate(self, round: int) -> float:
        """`base_lr`, or `labeled_lr_late` (where not 0) once the unlabelled clients have joined."""
        args = self.args
        joined = round * args.local_ep > args.join_epoch
        return args.labeled_lr_late if joined and args.labeled_lr_late else args.base_lr
