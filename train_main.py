"""FedIRM in one process: ten hospitals, one DenseNet121, no image leaves its client.

python train_main.py --preset demo
python train_main.py --preset paper --root_path DIR --csv_file_train A.csv --csv_file_test C.csv
python train_main.py --resume runs/NAME
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue

import torch

from confuse_matrix import RelationMatrix, average_matrices
from dataloaders.embedded import place_embedded_data
from dataloaders.federated import FederatedData, dry_run, load_federated_data
from FedAvg import FedAvg
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import SelfTrainingLocalUpdate, UnsupervisedLocalUpdate
from networks.models import DenseNet121
from options import args_parser, needs_embedded_data
from utils.checkpoint import build_network, load_weights, starting_weights
from utils.client import ClientUpdate, LocalUpdate, copy_weights
from utils.devices import choose_devices, memory_shortage, place_network, set_deterministic
from utils.errors import UserError, run_command
from utils.files import disk_full_as_user_error
from utils.run import Run, architecture, is_labeled, open_run
from utils.run_state import Progress
from utils.seeding import derive_seed


def main() -> int:
    """Train as the command line says; the exit status."""
    args = args_parser()
    signal.signal(signal.SIGTERM, _stop_by_signal)
    run = open_run(args)
    try:
        if args.dry_run:
            print("\n".join(dry_run(run.args)))
        else:
            with disk_full_as_user_error(run.folder):
                train(run)
    except (KeyboardInterrupt, SystemExit) as stop:
        run.say(f"stopped; {run.next_command()}")
        return stop.code if isinstance(stop, SystemExit) else 130
    except UserError:
        raise
    except Exception as error:
        if (shortage := memory_shortage(error, args)) is not None:
            raise UserError(f"{shortage}; {run.next_command()}") from error
        print(f"{run.folder}: ended early. {run.next_command()}", file=sys.stderr)
        raise
    finally:
        run.close()
    return 0


def train(run: Run) -> None:
    """All rounds of a run that are still to do."""
    args = run.args
    set_deterministic(bool(args.deterministic))
    devices = choose_devices(args.gpu, run.say)
    if needs_embedded_data(args):
        place_embedded_data(args, run.say)
    data = load_federated_data(args, run.say)
    progress = run.restore(data) or start(args, data.train.class_names)
    networks = build_networks(args, data.train.class_names, devices)
    clients = build_clients(args, data)
    run.begin(data, clients, networks, devices)
    weights, target_matrix = first_weights(args, progress, networks[0]), progress.matrix

    for round in range(progress.next_round, args.rounds):
        # 1. Broadcast: the global weights and the mean relation matrix go to who takes part.
        active = clients_of_round(args, clients, round)
        started = run.start_round(round, active)
        # 2. Local training, one client per device at a time.
        with closing(
            train_clients(active, networks, weights, round, target_matrix, run)
        ) as updates:
            # 3. FedAvg of the weights, client by client as they come in.
            weights, reports = average_weights(updates, args.fedavg_weights, devices[0], run)
        # 4. Average of the labelled clients' relation matrices, for the next round.
        matrices = [report.matrix for report in reports if report.matrix is not None]
        target_matrix = average_matrices(matrices) if matrices else target_matrix
        # 5. Evaluate, log, save.
        progress = Progress(weights, target_matrix, round + 1)
        run.finish_round(progress, networks[0], data, reports, started)
    run.finish(weights, networks[0], data)


def build_networks(
    args: Namespace, class_names: Sequence[str], devices: Sequence[torch.device]
) -> list[DenseNet121]:
    """One network per device, random weights drawn from the seed."""
    torch.manual_seed(derive_seed(args.seed, "network"))
    networks = [build_network(architecture(args), class_names) for _ in devices]
    return [place_network(net, device) for net, device in zip(networks, devices, strict=True)]


def start(args: Namespace, class_names: tuple[str, ...]) -> Progress:
    """Where a new run stands: at its first round, with a checkpoint's weights or none yet.

    Raises `UserError` for a checkpoint of other classes or another network.
    """
    weights = {}
    if args.resume is not None:
        weights = starting_weights(args.resume, class_names, architecture(args))
    return Progress(weights, None, args.start_epoch)


def first_weights(args: Namespace, progress: Progress, net: DenseNet121) -> dict[str, torch.Tensor]:
    """The global weights to go on from: those of `progress`, ImageNet's, or `net`'s random ones."""
    if progress.weights:
        load_weights(net, progress.weights, args.resume or args.run_dir)
    elif args.pretrained:
        net.load_imagenet()
    return copy_weights(net)


def build_clients(args: Namespace, data: FederatedData) -> list[LocalUpdate]:
    """The clients that may take part, by number; surplus unlabelled ones stay away."""
    unlabeled_trainer = {
        "fedirm": UnsupervisedLocalUpdate,
        "fed_consistency": UnsupervisedLocalUpdate,
        "fed_selftraining": SelfTrainingLocalUpdate,
    }.get(args.method)
    labeled = set(data.split.labelled)
    unlabeled = [client for client in range(len(data.split.clients)) if client not in labeled]
    taking_part = unlabeled[: args.num_unlabeled] if unlabeled_trainer else []
    return [
        (SupervisedLocalUpdate if client in labeled else unlabeled_trainer)(
            args, data.train, torch.from_numpy(data.split.clients[client]), client
        )
        for client in sorted(labeled.union(taking_part))
    ]


def clients_of_round(
    args: Namespace, clients: Sequence[LocalUpdate], round: int
) -> list[LocalUpdate]:
    """Who trains in this round: the unlabelled join late, the labelled may stop, as flags say.

    The labelled stop only where unlabelled ones carry on, so that somebody always trains.
    """
    epochs_done = round * args.local_ep
    joined = epochs_done > args.join_epoch and not all(map(is_labeled, clients))
    stopped = joined and 0 < args.labeled_stop <= epochs_done
    return [client for client in clients if (not stopped if is_labeled(client) else joined)]


def train_clients(
    active: Sequence[LocalUpdate],
    networks: Sequence[DenseNet121],
    weights: dict[str, torch.Tensor],
    round: int,
    target_matrix: RelationMatrix | None,
    run: Run,
) -> Iterator[ClientUpdate]:
    """Train every client; yields their updates in the clients' order, whatever the devices.

    Who returns what cannot be averaged is left out. Closing the generator stops those who train
    at their next step.
    """
    free: SimpleQueue[DenseNet121] = SimpleQueue()
    for net in networks:
        free.put(net)

    def work(client: LocalUpdate) -> ClientUpdate | None:
        run.start_client(client)
        net = free.get()
        try:
            with run.memory_of(client):
                update = client.train(net, weights, round, target_matrix)
                return update if run.accept(client, round, update, weights) else None
        finally:
            free.put(net)

    if len(networks) == 1:
        yield from filter(None, map(work, active))
        return
    pool = ThreadPoolExecutor(len(networks))
    try:
        yield from filter(None, pool.map(work, active))
    except BaseException:
        for client in active:
            client.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def average_weights(
    updates: Iterator[ClientUpdate], fedavg_weights: str, device: torch.device, run: Run
) -> tuple[dict[str, torch.Tensor], list[ClientUpdate]]:
    """FedAvg over the updates as they come in, and the updates without their weights."""
    reports: list[ClientUpdate] = []

    def weighted() -> Iterator[tuple[dict[str, torch.Tensor], float]]:
        for update in updates:
            reports.append(update._replace(weights={}))
            run.client_done(update)
            share = update.num_samples if fedavg_weights == "size" else 1
            yield {name: value.to(device) for name, value in update.weights.items()}, share
            del update  # not to hold its weights while the next client trains

    return FedAvg(weighted()), reports


def _stop_by_signal(number: int, _frame) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    run_command(main)
