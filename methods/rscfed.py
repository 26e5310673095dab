"""RSCFed: consensus of random subsets of the clients, weighted by their distance to it.

Liang, Lin, Fu, Zhu, Li, RSCFed: Random Sampling Consensus Federated Semi-Supervised Learning, CVPR
2022, arXiv 2203.13993. Written from the paper's mathematics. Where it leaves a detail open, ours is
said beside it here and in docs/METHOD.md.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from FedAvg import FedAvg
from local_unsupervised import UnsupervisedLocalUpdate, update_ema_variables
from local_update import ClientUpdate, StepLog, take_step
from networks.models import Network
from server import Averaged, Participant, RelationServer
from utils.losses import rows
from utils.tensors import generator, net_device, placed

StateDict = dict[str, torch.Tensor]


def sharpened(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """p^(1/T) / sum p^(1/T) over the classes: (M, C) -> (M, C); T = 1 leaves p, T -> 0 its mode."""
    return (probabilities.log() / temperature).softmax(dim=1)


def distance_to(weights: StateDict, mean: StateDict) -> float:
    """d_k: the Euclidean distance of each tensor to the mean's, summed over the tensors.

    BatchNorm's statistics count as the parameters do; its integer step counters do not.
    """
    floating = [name for name, value in mean.items() if value.is_floating_point()]
    differences = torch._foreach_sub([weights[n] for n in floating], [mean[n] for n in floating])
    return float(torch.stack(torch._foreach_norm(differences)).double().sum())


def consensus_shares(
    sizes: Sequence[float], distances: Sequence[float], counts: Sequence[int], beta: float
) -> list[float]:
    """The clients' shares of a subset's average: w_k ~ size_k exp(-beta d_k / n_k), sum 1.

    sizes: n_k, times --labeled_weight where there are labels. counts: n_k. In the log domain, so
    that a large beta leaves the nearest client instead of nobody.
    """
    logs = [
        math.log(size) - beta * distance / count
        for size, distance, count in zip(sizes, distances, counts, strict=True)
    ]
    return torch.tensor(logs, dtype=torch.float64).softmax(dim=0).tolist()


class RSCFedServer(RelationServer):
    """Once the unlabelled clients have joined: M random subsets of K clients, each averaged by
    `consensus_shares`; the global weights are the mean of the M averages.

    A client trains once in a round, however many of its subsets it is in. A subset's clients that
    could not be used are missing from it. Until the join it is FedAvg.
    """

    def __init__(self, args):
        super().__init__(args)
        self._subsets: list[list[int]] = []  # from `active` on: this round's, by client number

    def active(self, clients: Sequence[Participant], round: int) -> list:
        """The clients of this round's subsets, drawn from the seed and the round alone."""
        present = super().active(clients, round)
        self._subsets = []
        if all(client.labeled for client in present):
            return present
        draws = generator(self.args.seed, "server", "subsets", "round", round)
        for _ in range(self.args.rscfed_subsets):
            order = torch.randperm(len(present), generator=draws)
            chosen = order[: self.args.rscfed_clients].tolist()
            self._subsets.append(sorted(present[place].client for place in chosen))
        drawn = {client for subset in self._subsets for client in subset}
        return [client for client in present if client.client in drawn]

    def average(self, updates, received, round, device, done) -> Averaged:
        """As `Server.average`; holds all models of the round at once."""
        if not self._subsets:
            return super().average(updates, received, round, device, done)
        models: dict[int, ClientUpdate] = {}
        for update in updates:
            done(update)
            models[update.client] = update._replace(weights=placed(update.weights, device))
        averages = [
            self.combine(self._weighted(members), received)
            for subset in self._subsets
            if (members := [models[client] for client in subset if client in models])
        ]
        reports = [update._replace(weights={}) for update in models.values()]
        return FedAvg((average, 1.0) for average in averages), reports

    def _weighted(self, members: Sequence[ClientUpdate]) -> Iterator[tuple[StateDict, float]]:
        """The subset's models, each with its share of the average."""
        counts = [update.num_samples for update in members]
        mean = FedAvg(
            (update.weights, count) for update, count in zip(members, counts, strict=True)
        )
        distances = [distance_to(update.weights, mean) for update in members]
        sizes = [self.weight(update) for update in members]
        labeled = any(update.labeled for update in members)
        beta = self.args.rscfed_beta_labeled if labeled else self.args.rscfed_beta
        shares = consensus_shares(sizes, distances, counts, beta)
        # A share that is nothing in float64 is left out: FedAvg takes positive weights alone.
        yield from (
            (update.weights, share)
            for update, share in zip(members, shares, strict=True)
            if share > 0
        )


class RSCFedLocalUpdate(UnsupervisedLocalUpdate):
    """Trains without labels: the student's prediction of one view is to be the sharpened one that
    a mean teacher makes of another.

    Squared difference, mean over images and classes, times --rscfed_consistency. The teacher's
    parameters live on from round to round; it predicts in eval mode, with the BatchNorm statistics
    of the weights that the client received (the paper does not say whose).
    """

    matches_relation = False

    def train(
        self,
        net: Network,
        weights: StateDict,
        round: int,
        shared: StateDict,
    ) -> ClientUpdate:
        """One round of local training from `weights`; `shared` is not used."""
        args = self.args
        log = StepLog("loss", "consistency_loss")
        self.receive(net, weights, round)
        optimizer = self.build_optimizer(net, round)
        teacher = self.teacher_network(net)
        parameters, teacher_parameters = list(net.parameters()), list(teacher.parameters())
        step = self.step

        for _, batches in self.epochs(2, round, net_device(net)):
            for batch in batches:
                teacher_view, student_view = batch.views
                student = rows(net(student_view)[1]).softmax(dim=1)
                with torch.no_grad():
                    target = rows(teacher(teacher_view)[1]).softmax(dim=1)
                consistency = (student - sharpened(target, args.rscfed_sharpen)).square().mean()
                loss = args.rscfed_consistency * consistency
                take_step(optimizer, loss)
                update_ema_variables(parameters, teacher_parameters, self.ema_decay, step)
                step += 1
                log.add(batch, loss, consistency)

        self.remember(optimizer, teacher, step)
        return self.report(net, log, learning_rate=self.learning_rate(round))

    def teacher_network(self, net: Network) -> Network:
        """The twin in eval mode: the remembered parameters, the received model's statistics."""
        teacher = super().teacher_network(net).eval()
        for mine, received in zip(teacher.buffers(), net.buffers(), strict=True):
            mine.copy_(received)
        return teacher
