"""Every preset's own flags train a step, on clients of either kind."""

import math

import pytest
import torch

from federation import METHODS, build_server
from local_supervised import SupervisedLocalUpdate
from tasks.classification import Classification
from tests.helpers.small_clients import make_args
from utils.flags.presets import PRESETS

OF_IMAGES = [name for name, flags in PRESETS.items() if flags.get("task") != "segmentation"]


@pytest.mark.parametrize("preset", OF_IMAGES)
def test_a_presets_clients_train(preset, dataset, net, weights):
    args = make_args(preset)
    labeled, unlabeled, _ = METHODS[args.method]
    first, round = torch.arange(8), args.rounds - 1
    clients = [
        kind(args, dataset, first + 8 * number, number, Classification())
        for number, kind in enumerate((labeled, unlabeled))
    ]
    server, shared = build_server(args), {}
    server.active(clients, round)
    for client in clients:
        update = client.train(net, weights, round, shared)
        assert math.isfinite(update.stats["loss"])
        assert any(not torch.equal(update.weights[name], weights[name]) for name in weights)
        shared = server.shared([update], shared)


def test_a_steps_gradient_is_no_longer_than_asked(dataset, net, weights):
    plain = ("--optimizer", "sgd", "--sgd_momentum", "0", "--weight_decay", "0", "--base_lr", "1")
    lengths = {}
    for clip in (0, 0.01):
        args = make_args("paper", *plain, "--clip_gradients", str(clip))
        client = SupervisedLocalUpdate(args, dataset, torch.arange(4), 0, Classification())
        update = client.train(net, weights, 0, {})
        changes = [update.weights[name] - weights[name] for name, _ in net.named_parameters()]
        lengths[clip] = math.sqrt(sum(float(change.square().sum()) for change in changes))
    assert lengths[0] > 0.1
    assert lengths[0.01] == pytest.approx(0.01, rel=1e-3)
