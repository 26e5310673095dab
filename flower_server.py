"""The server of a federation on Flower: the rounds of the plain loop, its clients at sites.

`server_app` is what a SuperLink runs; `python train_main.py --engine flower` runs the same
rounds over simulated sites (flower_simulation.py).
"""

from collections.abc import Iterable, Sequence

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from dataloaders.federated import FederatedData
from federation import average_weights, build_networks, mean_relation, start
from flower_messages import pack_matrix, pack_weights, unpack_update
from flower_sites import RemoteSite, SiteRegister
from networks.models import DenseNet121
from utils.client import ClientUpdate
from utils.errors import UserError
from utils.run import Progress, Run


class FedIRM(FlowerFedAvg):
    """Flower's FedAvg with this project's rounds: who takes part, the relation matrix on its way
    down and up, this project's average in the clients' order, evaluation, log and files."""

    def __init__(
        self,
        run: Run,
        data: FederatedData,
        net: DenseNet121,
        device: torch.device,
        sites: SiteRegister,
        progress: Progress,
    ):
        super().__init__(fraction_evaluate=0.0)
        self.run, self.data, self.net, self.device = run, data, net, device
        self.sites, self.progress = sites, progress
        self.sent: dict[RemoteSite, Message] = {}
        self.started = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1 and 2 of a round: the weights and the mean matrix for each site that trains."""
        round = self.progress.next_round
        active = self.sites.ready_for(round)
        self.started = self.run.start_round(round, active)
        target = pack_matrix("target", self.progress.matrix)
        self.sent = {}
        for site in active:
            self.run.start_client(site)
            task = {"round": round, "memory_round": site.memory_round, **target}
            self.sent[site] = self.sites.message(site.node_id, MessageType.TRAIN, task, arrays)
        return list(self.sent.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 3 to 5: the averages of what came back; evaluate, log, save."""
        run, (_, matrix, round) = self.run, self.progress
        answered = self.sites.answers(self.sent, replies, round)
        updates = (self.update(site, reply) for site, reply in answered)
        weights, reports = average_weights(updates, run.args.fedavg_weights, self.device, run)
        for site, _ in answered:
            site.memory_round = round
        self.progress = Progress(weights, mean_relation(reports, matrix), round + 1)
        run.finish_round(
            self.progress, self.net, self.data, self.sites.all(), reports, self.started
        )
        return pack_weights(weights), None

    def update(self, site: RemoteSite, reply: Message) -> ClientUpdate:
        """What a site's answer holds; `UserError` where it is not an update of this network."""
        try:
            return unpack_update(
                reply.content, self.net.state_dict(), len(self.data.test.class_names)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"client {site.client}: not an update of this network: {error}"
            ) from error

    def configure_evaluate(self, server_round, arrays, config, grid) -> Iterable[Message]:
        """No evaluation at the sites: the server has test images."""
        return []


def serve(
    run: Run, grid: Grid, data: FederatedData, devices: Sequence[torch.device], sites: SiteRegister
) -> None:
    """All rounds of a run that are still to do, with the clients at the end of `grid`."""
    args, class_names = run.args, data.test.class_names
    net = build_networks(args, class_names, devices[:1])[0]
    progress = run.restore(data, sites.all()) or start(args, net, class_names)
    run.begin(data, devices[:1])
    strategy = FedIRM(run, data, net, devices[0], sites, progress)
    strategy.start(
        grid,
        pack_weights(progress.weights),
        num_rounds=args.rounds - progress.next_round,
        timeout=args.client_timeout,
    )
    run.finish(strategy.progress.weights, net, data)
