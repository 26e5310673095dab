"""What every engine does alike: networks, clients, who takes part in a round, the average."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from confuse_matrix import RelationMatrix, average_matrices
from dataloaders.dataset import ImageDataset
from dataloaders.federated import FederatedData, load_federated_data
from dataloaders.phantom.embedded import place_embedded_data
from dataloaders.split import Split
from FedAvg import FedAvg
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import SelfTrainingLocalUpdate, UnsupervisedLocalUpdate
from local_update import ClientUpdate, LocalUpdate
from networks.devices import (
    choose_devices,
    choose_precision,
    place_network,
    set_deterministic,
    set_precision,
)
from networks.models import DenseNet121
from networks.saved import architecture, build_network, load_weights, starting_weights
from options import needs_embedded_data
from record.run import Run
from record.state import Progress
from utils.tensors import copy_weights, derive_seed

UNLABELED_TRAINERS = {
    "fedirm": UnsupervisedLocalUpdate,
    "fed_consistency": UnsupervisedLocalUpdate,
    "fed_selftraining": SelfTrainingLocalUpdate,
}


class Participant(Protocol):
    """Whoever trains in a round: a trainer in this process, or a site at the end of a wire."""

    client: int
    labeled: bool


def prepare(run: Run) -> tuple[list[torch.device], FederatedData]:
    """The devices and the data that a run's flags name; generates the embedded data."""
    args = run.args
    set_deterministic(bool(args.deterministic))
    devices = choose_devices(args.gpu, run.say)
    if needs_embedded_data(args):
        place_embedded_data(args, run.say)
    return devices, load_federated_data(args, run.say)


def build_networks(
    args: Namespace, class_names: Sequence[str], devices: Sequence[torch.device]
) -> list[DenseNet121]:
    """One network per device, in the precision that `--precision` asks for; random weights drawn
    from the seed."""
    torch.manual_seed(derive_seed(args.seed, "network"))
    networks = [build_network(architecture(args), class_names) for _ in devices]
    set_precision(networks, choose_precision(args.precision, devices))
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


def build_client(
    args: Namespace, dataset: ImageDataset, indices: torch.Tensor, client: int, labeled: bool
) -> LocalUpdate:
    """The trainer that `--method` gives a client whose images are the rows `indices`."""
    trainer = SupervisedLocalUpdate if labeled else UNLABELED_TRAINERS[args.method]
    return trainer(args, dataset, indices, client)


def clients_taking_part(args: Namespace, split: Split) -> list[int]:
    """The clients that ever train, by number; surplus unlabelled ones stay away."""
    labeled = set(split.labelled)
    unlabeled = [client for client in range(len(split.clients)) if client not in labeled]
    wanted = unlabeled[: args.num_unlabeled] if args.method in UNLABELED_TRAINERS else []
    return sorted(labeled.union(wanted))


def build_clients(args: Namespace, data: FederatedData) -> list[LocalUpdate]:
    """The trainers of all clients that take part, by number."""
    return [
        build_client(
            args,
            data.train,
            torch.from_numpy(data.split.clients[client]),
            client,
            client in data.split.labelled,
        )
        for client in clients_taking_part(args, data.split)
    ]


def clients_of_round(args: Namespace, clients: Sequence[Participant], round: int) -> list:
    """Who trains in this round: the unlabelled join late, the labelled may stop, as flags say.

    The labelled stop only where unlabelled ones carry on, so that somebody always trains.
    """
    epochs_done = round * args.local_ep
    joined = epochs_done > args.join_epoch and not all(client.labeled for client in clients)
    stopped = joined and 0 < args.labeled_stop <= epochs_done
    return [client for client in clients if (not stopped if client.labeled else joined)]


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


def mean_relation(
    reports: Sequence[ClientUpdate], before: RelationMatrix | None
) -> RelationMatrix | None:
    """The mean of the relation matrices that were reported; `before` where nobody measured one."""
    matrices = [report.matrix for report in reports if report.matrix is not None]
    return average_matrices(matrices) if matrices else before
