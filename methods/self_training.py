"""Fed-SelfTraining: unlabelled clients train on what the received model says of their images."""

import torch
from torch.nn.functional import cross_entropy

from local_update import IGNORED, ClientUpdate, LocalUpdate, StepLog, take_step
from networks.models import Network
from utils.losses import rows
from utils.tensors import net_device


class SelfTrainingLocalUpdate(LocalUpdate):
    """Pseudo labels from the received model, then cross entropy on them.

    Expectation: the received model, in eval mode, labels the client's images once a round.
    Maximisation: local epochs on those labels, leaving out images below the confidence threshold.
    """

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights`; `shared` is not used."""
        device = net_device(net)
        log = StepLog("loss", "reliable_share")
        self.receive(net, weights, round)
        pseudo_labels = self.pseudo_labels(net)
        optimizer = self.build_optimizer(net, round)

        for _, batches in self.epochs(1, round, device, pseudo_labels):
            for batch in batches:
                logits, labels = rows(net(batch.views[0])[1]), batch.labels.flatten()
                confident = labels != IGNORED
                summed = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
                loss = summed / confident.sum().clamp(min=1)
                take_step(optimizer, loss)
                log.add(batch, loss, confident.float().mean())

        self.optimizer_state = optimizer.state_dict()
        return self.report(net, log, learning_rate=self.learning_rate(round))

    def pseudo_labels(self, net: Network) -> object:
        """The task's labels by `net`, which is in train mode before and after."""
        net.eval()
        labels = self.task.confident_labels(
            net, self.dataset, self.indices, self.args, self.until_stopped
        )
        net.train()
        return labels
