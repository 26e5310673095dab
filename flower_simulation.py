"""`python train_main.py --engine flower`: every client in a process of Ray's, on Flower.

RAY_ADDRESS in the environment names a Ray cluster to run on; without it this machine is used.
"""

import logging
import threading
import time
from argparse import Namespace
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path

import torch

from dataloaders.federated import FederatedData, load_federated_data
from federation import clients_taking_part, prepare
from utils.errors import UserError
from utils.offline import offline
from utils.run import Run

POLL_SECONDS = 0.05


def simulate(run: Run) -> None:
    """All rounds of a run that are still to do, each client's round a task of a Ray worker."""
    devices, data = prepare(run)
    clients = tuple(clients_taking_part(run.args, data.split))
    stop = threading.Event()
    with offline():
        try:
            from flwr.serverapp import Grid, ServerApp
            from flwr.simulation import run_simulation
        except ImportError as error:
            raise UserError(f"--engine flower: {error}; install it with: make flower") from error
        from flower_client import build_client_app
        from flower_server import serve
        from flower_sites import SiteRegister

        logging.getLogger("flwr").setLevel(logging.WARNING)
        server = ServerApp()

        @server.main()
        def rounds(grid: Grid, context) -> None:
            grid = StoppableGrid(grid, stop)
            names = data.class_names
            sites = SiteRegister(grid, run.args, names, "clients", run.say)
            sites.wait_for(len(clients))
            serve(run, grid, data, devices, sites)

        flags = HashableFlags(**absolute_paths(run.args))
        try:
            run_simulation(
                server,
                build_client_app(partial(simulated_site, flags, clients, run.folder.resolve())),
                num_supernodes=len(clients),
                backend_config={"client_resources": client_resources(run.args, devices)},
            )
        finally:
            stop.set()


class StoppableGrid:
    """A Grid whose waiting ends when `stop` is set: Ctrl-C reaches the main thread only."""

    def __init__(self, grid, stop: threading.Event):
        self.grid, self.stop = grid, stop

    def get_node_ids(self) -> Iterable[int]:
        """The simulated nodes."""
        return self.grid.get_node_ids()

    def send_and_receive(self, messages: Iterable, *, timeout: float) -> list:
        """The answers that came within `timeout` seconds."""
        waiting, answers = set(self.grid.push_messages(messages)), []
        deadline = time.monotonic() + timeout
        while waiting and time.monotonic() < deadline:
            if self.stop.wait(POLL_SECONDS):
                raise RuntimeError("the simulation has been stopped")
            arrived = self.grid.pull_messages(waiting)
            waiting -= {answer.metadata.reply_to_message_id for answer in arrived}
            answers += arrived
        return answers


class HashableFlags(Namespace):
    """Flags as the key of a cache."""

    def __hash__(self) -> int:
        return hash(str(self))


def absolute_paths(args: Namespace) -> dict:
    """The flags with every path made absolute: a worker's current folder is another one."""
    return {
        name: value.resolve() if isinstance(value, Path) else value
        for name, value in vars(args).items()
    }


def client_resources(args: Namespace, devices: list[torch.device]) -> dict[str, float]:
    """Ray's share of processors and GPUs for one client, by the flags or one device each."""
    gpus = float(devices[0].type == "cuda") if args.client_gpus is None else args.client_gpus
    return {"num_cpus": args.client_cpus, "num_gpus": gpus}


def simulated_site(flags: HashableFlags, clients: tuple[int, ...], memory: Path, context, task):
    """The client that a simulated node stands for, with its share of the run's own data."""
    from flower_client import Site

    data = data_of(flags)
    client = clients[context.node_config["partition-id"]]
    return Site(
        flags,
        client,
        client in data.split.labelled,
        data.train,
        torch.from_numpy(data.split.clients[client]),
        memory,
        "0" if torch.cuda.is_available() else "cpu",
    )


@lru_cache(maxsize=1)
def data_of(flags: HashableFlags) -> FederatedData:
    """The data of a run, loaded once in each worker."""
    return load_federated_data(flags, say=lambda text: None)
