"""FedIRM in one process: ten hospitals, one DenseNet121, no image leaves its client.

    python train_main.py --preset demo
    python train_main.py --preset paper --root_path DIR --csv_file_train A.csv --csv_file_test C.csv
    python train_main.py --resume runs/NAME
"""

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch
from tqdm import tqdm

from confuse_matrix import RelationMatrix, average_matrices
from dataloaders.federated import FederatedData, load_federated_data, place_embedded_data
from FedAvg import FedAvg
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import SelfTrainingLocalUpdate, UnsupervisedLocalUpdate
from networks.models import DenseNet121
from options import args_parser
from utils import log_lines
from utils.checkpoint import build_network, load_model, load_weights
from utils.client import ClientUpdate, LocalUpdate, copy_weights
from utils.devices import choose_devices, place_network, set_deterministic
from utils.errors import run_command
from utils.logger import log_beside_bars
from utils.run import Progress, Run, open_run
from utils.seeding import derive_seed


def main() -> int:
    """Train as the command line says; the exit status."""
    args = args_parser()
    signal.signal(signal.SIGTERM, _stop_by_signal)
    run = open_run(args)
    try:
        train(run)
    except (KeyboardInterrupt, SystemExit) as stop:
        run.say(f"stopped; finished rounds are kept. {run.next_command()}")
        return stop.code if isinstance(stop, SystemExit) else 130
    except BaseException:
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
    place_embedded_data(args, run.say)
    data = load_federated_data(args, run.say)
    run.begin(data, devices)
    networks = build_networks(args, data.train.class_names, devices)
    clients = build_clients(args, data)
    progress = run.restore(clients) or Progress(copy_weights(networks[0]), None, args.start_epoch)
    weights, target_matrix = progress.weights, progress.matrix

    for round in range(progress.next_round, args.rounds):
        # 1. Broadcast: the global weights and the mean relation matrix go to who takes part.
        active = clients_of_round(args, clients, round)
        started = run.start_round(round, active)
        # 2. Local training, one client per device at a time.
        updates = train_clients(active, networks, weights, round, target_matrix, run)
        # 3. FedAvg of the weights, client by client as they come in.
        weights, reports = average_weights(updates, args.fedavg_weights, devices[0])
        # 4. Average of the labelled clients' relation matrices, for the next round.
        matrices = [report.matrix for report in reports if report.matrix is not None]
        target_matrix = average_matrices(matrices) if matrices else target_matrix
        # 5. Evaluate, log, save.
        run.finish_round(
            Progress(weights, target_matrix, round + 1), networks[0], data, clients, reports, started
        )
    run.finish(weights, networks[0], data)


def build_networks(
    args: Namespace, class_names: Sequence[str], devices: Sequence[torch.device]
) -> list[DenseNet121]:
    """One network per device, the first one with the weights that training starts from."""
    architecture = {
        "mode": args.label_uncertainty,
        "drop_rate": args.drop_rate,
        "attention": args.attention,
    }
    torch.manual_seed(derive_seed(args.seed, "network"))
    networks = [build_network(architecture, class_names) for _ in devices]
    if args.resume is not None and args.resume.is_file():
        start_weights, _ = load_model(args.resume, tuple(class_names))
        load_weights(networks[0], start_weights, args.resume)
    elif args.pretrained:
        networks[0].load_imagenet()
    return [place_network(net, device) for net, device in zip(networks, devices, strict=True)]


def build_clients(args: Namespace, data: FederatedData) -> list[LocalUpdate]:
    """The clients that may take part: the labelled ones first, then the unlabelled ones."""
    unlabeled = {
        "fedirm": UnsupervisedLocalUpdate,
        "fed_consistency": UnsupervisedLocalUpdate,
        "fed_selftraining": SelfTrainingLocalUpdate,
    }
    clients: list[LocalUpdate] = []
    for client, indices in enumerate(data.clients[: args.num_labeled + args.num_unlabeled]):
        trainer = (
            SupervisedLocalUpdate if client < args.num_labeled else unlabeled[args.method]
        )
        clients.append(trainer(args, data.train, torch.from_numpy(indices), client))
    return clients


def clients_of_round(
    args: Namespace, clients: Sequence[LocalUpdate], round: int
) -> list[LocalUpdate]:
    """Who trains in this round: the unlabelled join late, the labelled may stop, as flags say."""
    epochs_done = round * args.local_ep
    labeled_train = not args.labeled_stop or epochs_done < args.labeled_stop
    unlabeled_train = epochs_done > args.join_epoch
    return [
        client
        for client in clients
        if (labeled_train if isinstance(client, SupervisedLocalUpdate) else unlabeled_train)
    ]


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
