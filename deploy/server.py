"""The server of a federation on Flower: the rounds of the plain loop, its clients at sites.

`server_app` is what a SuperLink runs; `python train_main.py --engine flower` runs the same
rounds over simulated sites (deploy/simulation.py).
"""

import os
import shlex
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from dataloaders.federated import FederatedData
from deploy.messages import pack_tensors, pack_weights, unpack_update
from deploy.privacy import add_noise, clip_update, guarantee, noise_deviation, secret_generator
from deploy.roles import read_roles
from deploy.sites import RemoteSite, SiteRegister
from federation import build_networks, build_server, first_weights, foresee, start
from local_update import ClientUpdate
from networks.devices import choose_devices, set_deterministic
from networks.models import Network
from options import args_parser
from record.exchange import Exchange
from record.run import Run, open_run
from record.state import Progress
from server import Server
from tasks import TASKS
from utils.files import disk_errors_as_user_error


class FedIRM(FlowerFedAvg):
    """Flower's FedAvg with this project's rounds: who takes part, what is shared on its way
    down and up, this project's average in the clients' order, evaluation, log and files."""

    def __init__(
        self,
        run: Run,
        exchange: Exchange,
        data: FederatedData,
        net: Network,
        device: torch.device,
        sites: SiteRegister,
        progress: Progress,
        server: Server,
    ):
        super().__init__(fraction_evaluate=0.0)
        self.run, self.exchange, self.data = run, exchange, data
        self.net, self.device = net, device
        self.sites, self.progress, self.server = sites, progress, server
        self.sent: dict[RemoteSite, Message] = {}  # this round's tasks
        self.asked: dict[RemoteSite, int] = {}  # and of which round's memory they are to go on
        self.started = 0.0
        self.parameters = [name for name, _ in net.named_parameters()]
        if run.args.dp_noise:
            run.say(guarantee(run.args.dp_noise, run.args.rounds - run.args.start_epoch))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1 and 2 of a round: the weights and what is shared for each site that trains."""
        round = self.progress.next_round
        active = self.sites.ready_for(self.server, round)
        self.started = self.run.start_round(round, active)
        records = {"weights": arrays, "shared": pack_tensors(self.progress.shared)}
        self.sent, self.asked = {}, {}
        for site in active:
            self.exchange.start_client(site)
            with self.exchange.memory_of(site):
                self.asked[site] = site.memory_round
            task = {"round": round, "memory_round": self.asked[site]}
            self.sent[site] = self.sites.message(site.node_id, MessageType.TRAIN, task, records)
        return list(self.sent.values())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps 3 to 5: the averages of what came back; evaluate, log, save."""
        run, (weights, shared, round) = self.run, self.progress
        answered = self.sites.answers(self.sent, replies, round)
        updates = self.accepted(answered, round, weights)
        weights, reports = self.server.average(
            updates, weights, round, self.device, self.exchange.done
        )
        if multiplier := run.args.dp_noise:
            shares = [self.server.weight(report) for report in reports]
            deviation = noise_deviation(multiplier, run.args.dp_clip, shares)
            weights = add_noise(weights, self.parameters, deviation, secret_generator())
        self.progress = Progress(weights, self.server.shared(reports, shared), round + 1)
        run.finish_round(self.progress, [self.net], self.data, reports, self.started)
        return pack_weights(weights), None

    def accepted(
        self,
        answered: Sequence[tuple[RemoteSite, Message]],
        round: int,
        received: dict[str, torch.Tensor],
    ) -> Iterator[ClientUpdate]:
        """The updates that may be averaged, in the clients' order; the same checks as the loop's.

        Raises `UserError` where they are fewer than `--min_clients`.
        """
        count = 0
        for site, reply in answered:
            try:
                update, recalled = unpack_update(reply.content, received, site.client, site.labeled)
            except ValueError as error:
                self.exchange.guard.turn_away(site, round, f"its answer is no update: {error}")
                continue
            if recalled != self.asked[site]:
                self.run.say(f"client {site.client} has lost its memory and began anew")
            before, site.memory_round = site.memory_round, round
            if not self.exchange.accept(site, round, update, received):
                site.memory_round = before
            else:
                count += 1
                if norm := self.run.args.dp_clip:
                    clipped = clip_update(update.weights, received, self.parameters, norm)
                    update = update._replace(weights=clipped)
                yield update
        self.sites.refuse_too_few(count, list(self.sent), round)

    def configure_evaluate(self, server_round, arrays, config, grid) -> Iterable[Message]:
        """No evaluation at the sites: the server has test images."""
        return []


def serve(
    run: Run, grid: Grid, data: FederatedData, devices: Sequence[torch.device], sites: SiteRegister
) -> None:
    """All rounds of a run that are still to do, with the clients at the end of `grid`."""
    args, server = run.args, build_server(run.args)
    progress = run.restore(data, server) or start(args, data.class_names)
    networks = build_networks(args, data.class_names, devices[:1])
    exchange = run.begin(data, sites.all(), networks, devices[:1], TASKS[args.task])
    run.compiled("off")
    progress = progress._replace(weights=first_weights(args, progress, networks[0]))
    strategy = FedIRM(run, exchange, data, networks[0], devices[0], sites, progress, server)
    arrays = pack_weights(progress.weights)
    for _ in run.rounds_to_do(progress):  # one at a time: the run may end before its last
        arrays = strategy.start(grid, arrays, num_rounds=1, timeout=args.client_timeout).arrays
    run.finish(strategy.progress.weights, networks[0], data)


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """What a SuperLink runs: the flags of train_main.py stand in the run's `flags`."""
    end_with_parent()
    argv = ["--engine", "sites", *shlex.split(str(context.run_config["flags"]))]
    args = args_parser(argv)
    foresee(args)  # before a folder is made and sites are waited for
    run = open_run(args, argv)
    try:
        with disk_errors_as_user_error(run.folder):
            serve_sites(run, grid)
    except (KeyboardInterrupt, SystemExit):  # by `flwr stop`, or because the SuperLink ended
        run.say(f"stopped; {run.next_command()}")
        raise
    except Exception as error:
        run.say(f"stopped: {error}; {run.next_command()}")
        raise
    finally:
        run.close()


def serve_sites(run: Run, grid: Grid) -> None:
    """All rounds of a run that are still to do; the server holds no training images."""
    args = run.args
    set_deterministic(bool(args.deterministic))
    devices = choose_devices(args.gpu, run.say)
    data = TASKS[args.task].load(args, run.say)
    roles = None if args.sites is None else read_roles(args.sites)
    if roles is None:
        run.say("no --sites: every node is believed which client it is and whether it has labels")
    volumes = data.preprocessing.get("volumes")
    sites = SiteRegister(grid, args, data.class_names, run.folder.name, run.say, roles, volumes)
    sites.wait_for(args.num_users)
    data = data._replace(num_training=sum(site.num_samples for site in sites.all()))
    serve(run, grid, data, devices, sites)


GRACE_SECONDS = 10.0  # Flower's own way takes five


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """End this process `grace` seconds after its parent, however the parent ends.

    Flower raises a signal then. A main thread that waits for weights to be sent never sees it:
    it would wait, and hold the run's folder, until there is a SuperLink again.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
