"""What every engine does alike: the methods, networks, clients, and where a run starts."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dataloaders.dataset import ImageDataset
from dataloaders.federated import FederatedData
from dataloaders.split import Split
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import ConsistencyLocalUpdate, UnsupervisedLocalUpdate
from local_update import LocalUpdate
from methods.cbafed import CBAFedLocalUpdate, CBAFedServer, CBAFedSupervisedLocalUpdate
from methods.fixmatch import FixMatchLocalUpdate
from methods.rscfed import RSCFedLocalUpdate, RSCFedServer
from methods.self_training import SelfTrainingLocalUpdate
from networks.devices import (
    choose_devices,
    choose_precision,
    place_network,
    refuse_endless_run,
    set_deterministic,
    set_precision,
)
from networks.kinds import NETWORKS, architecture, build_network
from networks.models import Network
from networks.saved import load_weights, starting_weights
from options import needs_embedded_data
from record.opening import is_run
from record.state import Progress
from server import RelationServer, Server
from tasks import TASKS
from utils.tensors import copy_weights, derive_seed


class Method(NamedTuple):
    """A row of the paper's table: the trainers of either kind of client, None where such clients
    take no part, and the server."""

    labeled: type[LocalUpdate]
    unlabeled: type[LocalUpdate] | None
    server: type[Server]


METHODS = {
    "fedirm": Method(SupervisedLocalUpdate, UnsupervisedLocalUpdate, RelationServer),
    "fed_consistency": Method(SupervisedLocalUpdate, ConsistencyLocalUpdate, RelationServer),
    "fed_selftraining": Method(SupervisedLocalUpdate, SelfTrainingLocalUpdate, RelationServer),
    "fedavg": Method(SupervisedLocalUpdate, None, RelationServer),
    "fixmatch": Method(SupervisedLocalUpdate, FixMatchLocalUpdate, RelationServer),
    "rscfed": Method(SupervisedLocalUpdate, RSCFedLocalUpdate, RSCFedServer),
    "cbafed": Method(CBAFedSupervisedLocalUpdate, CBAFedLocalUpdate, CBAFedServer),
}


def prepare(
    args: Namespace, say: Callable[[str], None]
) -> tuple[list[torch.device], FederatedData]:
    """The devices and the data that a run's flags name; generates the embedded data."""
    foresee(args)
    set_deterministic(bool(args.deterministic))
    devices = choose_devices(args.gpu, say)
    task = TASKS[args.task]
    if needs_embedded_data(args):
        task.place_embedded_data(args, say)
    data = task.load(args, say)
    refuse_endless_run(args, devices, data.num_training, data.test.input_shape)
    return devices, data


def foresee(args: Namespace) -> None:
    """`UserError` for what a new run will miss that no data tell, before any is read."""
    is_new = args.resume is None and not (args.run_dir and is_run(args.run_dir))
    if is_new and args.pretrained:
        NETWORKS[args.network].network.find_published()


def build_server(args: Namespace) -> Server:
    """The server of `--method`, as it is before the first round."""
    return METHODS[args.method].server(args)


def build_networks(
    args: Namespace, class_names: Sequence[str], devices: Sequence[torch.device]
) -> list[Network]:
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
    return Progress(weights, {}, args.start_epoch)


def first_weights(args: Namespace, progress: Progress, net: Network) -> dict[str, torch.Tensor]:
    """The global weights to go on from: those of `progress`, ImageNet's, or `net`'s random ones."""
    if progress.weights:
        load_weights(net, progress.weights, args.resume or args.run_dir)
    else:
        if args.pretrained:
            net.load_imagenet()
        if args.head_bias == "zero":
            torch.nn.init.zeros_(net.head_layer.bias)
    return copy_weights(net)


def build_client(
    args: Namespace, dataset: ImageDataset, indices: torch.Tensor, client: int, labeled: bool
) -> LocalUpdate:
    """The trainer that `--method` gives a client whose images are the rows `indices`."""
    method = METHODS[args.method]
    trainer = method.labeled if labeled else method.unlabeled
    return trainer(args, dataset, indices, client, TASKS[args.task])


def clients_taking_part(args: Namespace, split: Split) -> list[int]:
    """The clients that ever train, by number; surplus unlabelled ones stay away."""
    labeled = set(split.labelled)
    unlabeled = [client for client in range(len(split.clients)) if client not in labeled]
    wanted = unlabeled[: args.num_unlabeled] if METHODS[args.method].unlabeled else []
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


def passes_by_momentum(clients: Sequence[LocalUpdate]) -> dict[float, int]:
    """For each momentum that BatchNorm has at a client: how many passes a step makes with it."""
    passes: dict[float, int] = {}
    for client in clients:
        momentum = client.batchnorm_momentum()
        passes[momentum] = max(client.student_passes, passes.get(momentum, 0))
    return passes
