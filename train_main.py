"""FedIRM in one process: ten hospitals, one DenseNet121, no image leaves its client.

python train_main.py --preset demo
python train_main.py --preset paper --root_path DIR --csv_file_train A.csv --csv_file_test C.csv
python train_main.py --resume runs/NAME
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing

from options import args_parser
from utils.errors import UserError, check_flags, run_command
from utils.packages import check_installed

if __name__ == "__main__":  # a mistyped flag is answered before PyTorch is loaded
    check_flags(args_parser)
    check_installed()

import torch

from deploy.simulation import simulate
from federation import (
    build_clients,
    build_networks,
    build_server,
    first_weights,
    passes_by_momentum,
    prepare,
    start,
)
from local_update import ClientUpdate, LocalUpdate
from networks.compilation import compile_networks
from networks.devices import memory_shortage
from networks.models import Network
from record.exchange import Exchange
from record.run import Run, open_run
from record.state import Progress
from rehearsal import rehearse
from tasks import TASKS
from utils.files import disk_errors_as_user_error
from utils.workers import shared_out


def main() -> int:
    """Train as the command line says; the exit status."""
    args = args_parser()
    run = open_run(args)
    try:
        if args.dry_run and run.args.engine != "sites":
            for line in rehearse(run.args, run.say):
                print(line)
        else:
            with disk_errors_as_user_error(run.folder):
                ENGINES[run.args.engine](run)
    except (KeyboardInterrupt, SystemExit) as stop:
        run.say(f"stopped; {run.next_command()}")
        return stop.code if isinstance(stop, SystemExit) else 130
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        if (shortage := memory_shortage(error, run.args)) is not None:
            raise UserError(f"{shortage}; {run.next_command()}") from error
        print(f"{run.folder}: ended early. {run.next_command()}", file=sys.stderr)
        raise
    finally:
        run.close()
    return 0


def train(run: Run) -> None:
    """All rounds of a run that are still to do."""
    args, task, server = run.args, TASKS[run.args.task], build_server(run.args)
    devices, data = prepare(args, run.say)
    progress = run.restore(data, server) or start(args, data.class_names)
    networks = build_networks(args, data.class_names, devices)
    clients = build_clients(args, data)
    weights, shared = first_weights(args, progress, networks[0]), progress.shared
    exchange = run.begin(data, clients, networks, devices, task)
    shape, passes = data.train.input_shape, passes_by_momentum(clients)
    run.compiled(compile_networks(networks, args, len(data.train), shape, passes, run.say))

    for round in run.rounds_to_do(progress):
        # 1. Broadcast: the global weights and what the server shares go to who takes part.
        active = server.active(clients, round)
        started = run.start_round(round, active)
        # 2. Local training, one client per device at a time.
        with closing(train_clients(active, networks, weights, round, shared, exchange)) as updates:
            # 3. FedAvg of the weights, client by client as they come in.
            weights, reports = server.average(updates, weights, round, devices[0], exchange.done)
        # 4. What the clients share, the relation matrices, is averaged for the next round.
        shared = server.shared(reports, shared)
        # 5. Evaluate, log, save.
        run.finish_round(Progress(weights, shared, round + 1), networks, data, reports, started)
    run.finish(weights, networks[0], data)


def train_clients(
    active: Sequence[LocalUpdate],
    networks: Sequence[Network],
    weights: dict[str, torch.Tensor],
    round: int,
    shared: dict[str, torch.Tensor],
    exchange: Exchange,
) -> Iterator[ClientUpdate]:
    """Train every client; yields their updates in the clients' order, whatever the devices.

    Who returns what cannot be averaged is left out. Closing the generator stops those who train
    at their next step.
    """

    def work(net: Network, client: LocalUpdate) -> ClientUpdate | None:
        exchange.start_client(client)
        with exchange.memory_of(client):
            update = client.train(net, weights, round, shared)
            return update if exchange.accept(client, round, update, weights) else None

    def stop() -> None:
        for client in active:
            client.stop.set()

    with closing(shared_out(work, networks, active, stop)) as updates:
        yield from filter(None, updates)


def refuse_sites(run: Run) -> None:
    """A run whose clients are at their own sites is started by Flower's own command."""
    raise UserError("--engine sites: started by `flwr run`, see docs/DEPLOY.md")


ENGINES = {"loop": train, "flower": simulate, "sites": refuse_sites}


if __name__ == "__main__":
    run_command(main)
