"""`python train_main.py --engine flower`: every client in a process of Ray's, on Flower.

RAY_ADDRESS in the environment names a Ray cluster to run on; without it this machine is used.
"""

import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from dataloaders.federated import FederatedData
from deploy.offline import offline
from federation import clients_taking_part, prepare
from record.run import Run
from tasks import TASKS
from utils.errors import UserError
from utils.signals import held

SETTINGS = {
    "RAY_worker_niceness": "0",  # else the clients wait for every other process of the machine
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late call after the end starts Ray again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning of many lines
}
STOP_FILE = "stop_clients"
SECONDS_TO_END = 60.0
TRIES = 3  # of starting Ray
# Ray takes 127.0.0.1 for "find out the address that others see"; all of 127 is loopback.
LOOPBACK = "127.0.0.2"


def simulate(run: Run) -> None:
    """All rounds of a run that are still to do, each client's round a task of a Ray worker."""
    devices, data = prepare(run.args, run.say)
    clients = tuple(clients_taking_part(run.args, data.split))
    resources = client_resources(run.args, devices)
    flags = HashableFlags(**absolute_paths(run.args))
    gpu = "0" if resources["num_gpus"] else "cpu"
    open_site = partial(simulated_site, flags, clients, run.folder.resolve(), gpu)
    with offline(SETTINGS):
        try:
            import flwr.simulation  # noqa: F401 - only to see whether it is there
        except ImportError as error:
            raise UserError(f"--engine flower: {error}; install it with: make flower") from error
        from deploy.client import build_client_app
        from deploy.server import serve
        from deploy.sites import SiteRegister

        client_app, stop = build_client_app(open_site), run.folder / STOP_FILE
        with simulated_grid(client_app, len(clients), resources, stop) as grid:
            sites = SiteRegister(grid, run.args, data.class_names, "clients", run.say)
            sites.wait_for(len(clients))
            serve(run, grid, data, devices, sites)


@contextmanager
def simulated_grid(client_app, num_nodes: int, resources: dict[str, float], stop: Path) -> Iterator:
    """Flower's simulation, lent to the block as the Grid that a ServerApp would get.

    The rounds then run in the main thread, where Ctrl-C and errors end them as they end the loop.
    Clients that still train at the block's end see the file `stop` and end at their next step:
    Ray waits for them.
    """
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    lent, finished = SimpleQueue(), threading.Event()
    server_app = ServerApp()

    @server_app.main()
    def lend(grid: Grid, context) -> None:
        lent.put(grid)
        finished.wait()

    def runtime() -> None:
        try:
            run_simulation(
                server_app, client_app, num_nodes, backend_config={"client_resources": resources}
            )
        except Exception as error:
            lent.put(error)

    with ray_started():
        stop.unlink(missing_ok=True)
        thread = threading.Thread(target=runtime, daemon=True)
        with held():
            thread.start()
        try:
            grid = lent.get()
            if isinstance(grid, Exception):
                raise grid
            yield grid
        finally:
            stop.touch()
            finished.set()
            thread.join(SECONDS_TO_END)
            stop.unlink(missing_ok=True)


@contextmanager
def ray_started() -> Iterator[None]:
    """On the cluster that RAY_ADDRESS names, or on Ray started on this machine's loopback.

    Ray gives itself 30 seconds to start, which a busy machine exceeds: it is started again.
    Raises `UserError` where it does not come at the last try either.
    """
    import ray

    there = bool(os.environ.get("RAY_ADDRESS"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for left in reversed(range(1 if there else TRIES)):
            try:
                ray.init(
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    # The workers do not know where this program lies.
                    runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
                    **({} if there else {"_node_ip_address": LOOPBACK}),
                )
                break
            except Exception as error:
                ray.shutdown()
                if not left:
                    said = " ".join(str(error).split())
                    raise UserError(f"--engine flower: Ray does not start: {said}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


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


def simulated_site(
    flags: HashableFlags, clients: tuple[int, ...], memory: Path, gpu: str, context, task
):
    """The client that a simulated node stands for, with its share of the run's own data."""
    from deploy.hospital import Site

    data = data_of(flags)
    client = clients[context.node_config["partition-id"]]
    return Site(
        flags,
        client,
        client in data.split.labelled,
        data.train,
        torch.from_numpy(data.split.clients[client]),
        memory,
        gpu,
        StopFile(memory / STOP_FILE),
    )


class StopFile(NamedTuple):
    """In the place of a trainer's `stop`: an event that another process sets by making a file."""

    path: Path

    def is_set(self) -> bool:
        """Whether the file has appeared."""
        return self.path.exists()


@lru_cache(maxsize=1)
def data_of(flags: HashableFlags) -> FederatedData:
    """The data of a run, loaded once in each worker."""
    return TASKS[flags.task].load(flags, lambda text: None)
