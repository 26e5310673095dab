"""FedIRM in one process: ten hospitals, one DenseNet121, no image leaves its client.

python train_main.py --preset demo
python train_main.py --preset paper --root_path DIR --csv_file_train A.csv --csv_file_test C.csv
python train_main.py --resume runs/NAME
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

from confuse_matrix import RelationMatrix
from dataloaders.federated import dry_run
from federation import (
    average_weights,
    build_clients,
    build_networks,
    clients_of_round,
    mean_relation,
    prepare,
    start,
)
from networks.models import DenseNet121
from options import args_parser
from utils.client import ClientUpdate, LocalUpdate
from utils.errors import UserError, run_command
from utils.run import Progress, Run, open_run


def main() -> int:
    """Train as the command line says; the exit status."""
    args = args_parser()
    signal.signal(signal.SIGTERM, _stop_by_signal)
    run = open_run(args)
    try:
        if args.dry_run:
            print("\n".join(dry_run(run.args)))
        else:
            train(run)
    except (KeyboardInterrupt, SystemExit) as stop:
        run.say(f"stopped; {run.next_command()}")
        return stop.code if isinstance(stop, SystemExit) else 130
    except UserError:
        raise
    except Exception:
        print(f"{run.folder}: ended early. {run.next_command()}", file=sys.stderr)
        raise
    finally:
        run.close()
    return 0


def train(run: Run) -> None:
    """All rounds of a run that are still to do."""
    args = run.args
    devices, data = prepare(run)
    networks = build_networks(args, data.train.class_names, devices)
    clients = build_clients(args, data)
    progress = run.restore(data, clients) or start(args, networks[0], data.train.class_names)
    run.begin(data, devices)
    weights, target_matrix = progress.weights, progress.matrix

    for round in range(progress.next_round, args.rounds):
        # 1. Broadcast: the global weights and the mean relation matrix go to who takes part.
        active = clients_of_round(args, clients, round)
        started = run.start_round(round, active)
        # 2. Local training, one client per device at a time.
        updates = train_clients(active, networks, weights, round, target_matrix, run)
        # 3. FedAvg of the weights, client by client as they come in.
        weights, reports = average_weights(updates, args.fedavg_weights, devices[0], run)
        # 4. Average of the labelled clients' relation matrices, for the next round.
        target_matrix = mean_relation(reports, target_matrix)
        # 5. Evaluate, log, save.
        progress = Progress(weights, target_matrix, round + 1)
        run.finish_round(progress, networks[0], data, clients, reports, started)
    run.finish(weights, networks[0], data)


def train_clients(
    active: Sequence[LocalUpdate],
    networks: Sequence[DenseNet121],
    weights: dict[str, torch.Tensor],
    round: int,
    target_matrix: RelationMatrix | None,
    run: Run,
) -> Iterator[ClientUpdate]:
    """Train every client; yields their updates in the clients' order, whatever the devices."""
    free: SimpleQueue[DenseNet121] = SimpleQueue()
    for net in networks:
        free.put(net)

    def work(client: LocalUpdate) -> ClientUpdate:
        run.start_client(client)
        net = free.get()
        try:
            return client.train(net, weights, round, target_matrix)
        finally:
            free.put(net)

    if len(networks) == 1:
        yield from map(work, active)
        return
    with ThreadPoolExecutor(len(networks)) as pool:
        try:
            yield from pool.map(work, active)
        except BaseException:
            for client in active:
                client.stop.set()
            raise


def _stop_by_signal(number: int, _frame) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    run_command(main)
