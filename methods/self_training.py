"""Fed-SelfTraining: unlabelled clients train on what the received model says of their images."""

import torch
from torch.nn.functional import cross_entropy, softmax

from local_update import ClientUpdate, LocalUpdate, StepLog, take_step
from networks.devices import evaluation_batch_size
from networks.models import Network
from utils.losses import rows
from utils.tensors import net_device

IGNORED = -100  # the label of a sample that takes no part in the cross entropy


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
        pseudo_labels = self.pseudo_label(net, device)
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

    def pseudo_label(self, net: Network, device: torch.device) -> torch.Tensor:
        """Labels (int64, one per image of the data set) by `net`; IGNORED where not confident."""
        net.eval()
        with torch.no_grad():
            batches = self.dataset.evaluation_batches(
                self.indices,
                evaluation_batch_size(self.args.batch_size, self.dataset.image_size, device),
                device,
            )
            batches = self.until_stopped(batches)
            probabilities = torch.cat([softmax(net(images)[1], dim=1) for images in batches])
        net.train()
        confidence, classes = probabilities.max(dim=1)
        chosen = classes.masked_fill(confidence < self.args.confidence_threshold, IGNORED)
        labels = torch.full((len(self.dataset),), IGNORED)
        labels[self.indices] = chosen.cpu()
        return labels
