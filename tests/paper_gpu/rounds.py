"""Two rounds of clients of three kinds on some devices, through the run's own store and server."""

import tempfile
from contextlib import closing
from pathlib import Path

import torch

import dataloaders.augment
import federation
import local_supervised
import local_unsupervised
import methods.self_training
import predict.inference
import server
import utils.workers
from networks.devices import place_network
from record.state import ClientStore
from tasks.classification import Classification
from tests.helpers.small_clients import make_args, make_dataset, make_network, make_target
from utils.tensors import copy_weights

CPU = torch.device("cpu")
KEEPS_ALL = ("--cbafed_base", "0.1", "--cbafed_highest", "0.1", "--fixmatch_threshold", "0.1")


def train_rounds(
    devices: list[torch.device],
    cache: str,
    placement: str,
    images: int = 16,
    method: str | None = None,
) -> dict:
    """What two rounds leave, on the CPU: weights, losses, matrices, predictions, memories.

    cache: where the images are. placement: where memories wait; from "disk" they are read again.
    images: of each client, in batches of four. method: whose clients, two of either kind; None:
    those of the paper's methods, mixed.
    """
    forget = getattr(dataloaders.augment._imagenet_scaling, "cache_clear", None)
    if forget is not None:  # constants of a device that is not there any more
        forget()
    args = make_args("official", "--batch_size", "4")
    if method is not None:
        args = make_args("official", "--method", method, "--clip_gradients", "1", *KEEPS_ALL)
    dataset = make_dataset()
    dataset.cache = cache
    kinds = (
        local_supervised.SupervisedLocalUpdate,
        local_supervised.SupervisedLocalUpdate,
        local_unsupervised.UnsupervisedLocalUpdate,
        local_unsupervised.UnsupervisedLocalUpdate,
        methods.self_training.SelfTrainingLocalUpdate,
    )
    averaging, shared = server.RelationServer(args), make_target().named()
    if method is not None:
        labeled, unlabeled, kind_of_server = federation.METHODS[method]
        kinds = (labeled, labeled, unlabeled, unlabeled)
        averaging, shared = kind_of_server(args), {}
    indices = torch.arange(images)
    clients = [
        kind(args, dataset, indices, number, Classification()) for number, kind in enumerate(kinds)
    ]
    networks = [place_network(make_network(), device) for device in devices]
    weights = copy_weights(networks[0])
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(ClientStore(Path(folder), placement)) as store,
    ):
        for round in (60, 61):

            def work(net, client, round=round, weights=weights, shared=shared):
                client.load_state_dict(store.recall(client.client) or client.state_dict())
                update = client.train(net, weights, round, shared)
                store.remember(client.client, round, client.state_dict())
                return update

            averaging.active(clients, round)
            updates = utils.workers.shared_out(work, networks, clients)
            weights, reports = averaging.average(
                updates, weights, round, devices[0], lambda update: None
            )
            shared = averaging.shared(reports, shared)
            store.flush()
        memories = [store.recall(client.client) for client in clients]
    for net in networks:
        net.load_state_dict(weights)
    return to_cpu(
        {
            "weights": weights,
            "shared": shared,
            "losses": [report.stats["loss"] for report in reports],
            "predicted": torch.from_numpy(predict.inference.predict(networks[0], dataset, 8)),
            "by all": torch.from_numpy(predict.inference.predict_on_all(networks, dataset, 8)),
            "memories": memories,
        }
    )


def to_cpu(value):
    """Nested values with every tensor on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    return [to_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value
