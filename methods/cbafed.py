"""CBAFed: class-balanced adaptive pseudo labels, and averages with weights of some rounds before.

Li, Li, Wang, Class Balanced Adaptive Pseudo Labeling for Federated Semi-Supervised Learning, CVPR
2023. Written from the paper's mathematics. Where it leaves a detail open, ours is said beside it
here and in docs/METHOD.md.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from FedAvg import FedAvg
from local_supervised import SupervisedLocalUpdate
from local_update import IGNORED, ClientUpdate, LocalUpdate, StepLog, take_step
from networks.models import Network
from server import Averaged, Participant, Server
from utils.tensors import copy_weights, net_device, placed, set_tensors, to_host

COUNTS = "class_counts"  # int64 (C,): how many images a client trained on as each class
THRESHOLDS, TAIL = "class_thresholds", "tail_classes"  # float32 and bool (C,): what follows of them
FEWEST = 2  # images that a client trains on: BatchNorm cannot normalise one


def class_thresholds(counts: torch.Tensor, base: float, highest: float) -> torch.Tensor:
    """tau_c = min(q_c C / 10 + base - std(q), highest): counts (C,) of all clients -> (C,).

    q are the classes' shares of the counts; std is that of the C shares themselves (divided by C).
    """
    shares = counts.double() / counts.sum()
    thresholds = shares * len(counts) / 10 + base - shares.std(correction=0)
    return thresholds.clamp(max=highest).float()


def pseudo_labels(
    probabilities: torch.Tensor, thresholds: torch.Tensor, tail: torch.Tensor
) -> torch.Tensor:
    """int64 (N,): the most probable class where it reaches its threshold; else the second where
    that is a tail class; else IGNORED. probabilities (N, C), thresholds (C,), tail bool (C,)."""
    (largest, _), (first, second) = (part.unbind(1) for part in probabilities.topk(2, dim=1))
    rescued = torch.where(tail[second], second, IGNORED)
    return torch.where(largest > thresholds[first], first, rescued)


class CBAFedServer(Server):
    """Weights by the images that a client trained on; every R-th round with unlabelled clients
    theta <- (theta + theta of R rounds before) / 2; and thresholds from all clients' counts.
    """

    def __init__(self, args):
        super().__init__(args)
        self._recorded: dict[str, torch.Tensor] | None = None
        self._rounds = 0  # with unlabelled clients

    def state_dict(self) -> dict:
        """Beside the base's: the recorded weights and how many rounds there were."""
        memory = super().state_dict()
        if self._recorded is not None:
            memory |= {"recorded": self._recorded, "rounds": self._rounds}
        return memory

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._recorded, self._rounds = state.get("recorded"), state.get("rounds", 0)

    def models_remembered(self, clients: Sequence[Participant]) -> int:
        """One more than the base, where there are clients without labels."""
        records = not all(client.labeled for client in clients)
        return super().models_remembered(clients) + records

    def weight(self, update: ClientUpdate) -> float:
        """The base's, by the images that it trained on; 0 where it kept none."""
        kept = int(update.shared[COUNTS].sum())
        return super().weight(update._replace(num_samples=kept)) if kept else 0

    def average(self, updates, received, round, device, done) -> Averaged:
        """As `Server.average`, and the mean with the recorded weights where it is time."""
        average, reports = super().average(updates, received, round, device, done)
        if all(report.labeled for report in reports):
            return average, reports
        if self._recorded is None:
            self._recorded = to_host(received)
        self._rounds += 1
        if self._rounds % self.args.cbafed_record_rounds == 0:
            recorded = placed(self._recorded, device)
            average = FedAvg([(average, 1.0), (recorded, 1.0)])
            self._recorded = to_host(average)
        return average, reports

    def shared(
        self, reports: Sequence[ClientUpdate], before: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Each class's threshold, and which classes are tail classes: fewer of all than a share."""
        counts = sum(report.shared[COUNTS] for report in reports)
        if not counts.sum():
            return before
        args = self.args
        return {
            THRESHOLDS: class_thresholds(counts, args.cbafed_base, args.cbafed_highest),
            TAIL: counts < args.cbafed_tail * counts.sum(),
        }

    def find_fault(self, update: ClientUpdate) -> str | None:
        """Counts of no more images than the client has; of just those, where they have labels."""
        counts = update.shared.get(COUNTS)
        if set(update.shared) != {COUNTS} or update.shown:
            return "it shares what this method does not know"
        if counts.ndim != 1 or counts.dtype != torch.int64 or (counts < 0).any():
            return "its class counts are none"
        total = int(counts.sum())
        if total > update.num_samples or (update.labeled and total < update.num_samples):
            return f"its class counts are of {total} images, and it has {update.num_samples}"
        return None


class CBAFedSupervisedLocalUpdate(SupervisedLocalUpdate):
    """Trains on labels with cross entropy, and counts them.

    After every --cbafed_mix_epochs-th of its local epochs theta <- (4 theta_old + theta) / 5, where
    theta_old are the weights of so many epochs before; BatchNorm's statistics are among them.
    """

    def local_epochs(self, round: int) -> int:
        """--cbafed_labeled_epochs, once the unlabelled clients may join; until then --local_ep."""
        args = self.args
        joined = round * args.local_ep > args.join_epoch
        return (joined and args.cbafed_labeled_epochs) or args.local_ep

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights`; `shared` is not used."""
        args = self.args
        log = StepLog("loss", "supervised_loss")
        self.receive(net, weights, round)
        optimizer = self.build_optimizer(net, round)
        old = copy_weights(net)

        for epoch, batches in self.epochs(args.labeled_views, round, net_device(net)):
            for batch in batches:
                loss = sum(
                    self.task.supervised_loss(net(view)[1], batch.labels, args)
                    for view in batch.views
                )
                take_step(optimizer, loss)
                log.add(batch, loss, loss)
            if (epoch + 1) % args.cbafed_mix_epochs == 0:
                old = FedAvg([(old, 4.0), (net.state_dict(), 1.0)])
                set_tensors(net.state_dict(), old)

        self.optimizer_state = optimizer.state_dict()
        labels = self.dataset.labels[self.indices]
        counts = torch.bincount(labels, minlength=net.head_layer.out_features)
        return self.report(
            net, log, shared={COUNTS: counts}, learning_rate=self.learning_rate(round)
        )


class CBAFedLocalUpdate(LocalUpdate):
    """Trains without labels, on those images that the received model labels by `pseudo_labels`.

    Where it labels fewer than two, or nobody has counted classes yet, the weights go back as they
    came, and count for nothing in the average.
    """

    def train(
        self,
        net: Network,
        weights: dict[str, torch.Tensor],
        round: int,
        shared: dict[str, torch.Tensor],
    ) -> ClientUpdate:
        """One round of local training from `weights`, with the thresholds that `shared` brings."""
        log = StepLog("loss", "kept_share")
        device = net_device(net)
        self.receive(net, weights, round)
        labels, kept = self.labeled_by(net, shared)
        counts = torch.bincount(labels[kept], minlength=net.head_layer.out_features)
        share = torch.tensor(len(kept) / self.num_samples, device=device)
        optimizer = self.build_optimizer(net, round)

        for _, batches in self.epochs(1, round, device, labels, kept) if len(kept) else ():
            for batch in batches:
                loss = cross_entropy(net(batch.views[0])[1], batch.labels)
                take_step(optimizer, loss)
                log.add(batch, loss, share)

        if len(kept):
            self.optimizer_state = optimizer.state_dict()
        return self.report(
            net, log, shared={COUNTS: counts}, learning_rate=self.learning_rate(round)
        )

    def labeled_by(
        self, net: Network, shared: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels of the data set's images (IGNORED of all others) and the indices of those
        kept, by `net`, which is in train mode before and after."""
        labels = torch.full((len(self.dataset),), IGNORED)
        if THRESHOLDS not in shared:
            return labels, self.indices[:0]
        net.eval()
        probabilities = self.task.probabilities(
            net, self.dataset, self.indices, self.args, self.until_stopped
        )
        net.train()
        labels[self.indices] = pseudo_labels(probabilities.cpu(), shared[THRESHOLDS], shared[TAIL])
        kept = self.indices[labels[self.indices] != IGNORED]
        return (labels, kept) if len(kept) >= FEWEST else (labels, kept[:0])
