"""Training on a real GPU: close to the processor's numbers, and the same bits every time."""

import pytest
import torch

from federation import METHODS
from local_supervised import SupervisedLocalUpdate
from networks.compilation import compile_networks
from networks.devices import place_network, set_deterministic, set_precision
from predict.inference import predict_on_all
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CPU,
    assert_identical,
    make_args,
    make_dataset,
    make_network,
    make_target,
)
from utils.tensors import copy_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
GPU = torch.device("cuda", 0)
TRAINERS = [
    SupervisedLocalUpdate,
    METHODS["fedirm"].unlabeled,
    METHODS["fed_selftraining"].unlabeled,
]


@pytest.fixture(autouse=True)
def exact():
    """Full precision and deterministic kernels, as a run with --precision fp32 sets them."""
    set_deterministic(True)
    set_precision([], "fp32")


def train(trainer, device, cache="device"):
    dataset = make_dataset()
    dataset.cache = cache
    net = place_network(make_network(), device)
    args = make_args("official", "--base_lr", "1e-5", "--labeled_lr_late", "1e-5")
    client = trainer(args, dataset, torch.arange(16), 1, Classification())
    update = client.train(net, copy_weights(net), 60, make_target().named())
    return update, client


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_round_is_close_to_the_processors(trainer):
    """The draws of order and views are the same, dropout's are the device's own: losses agree to a
    few percent, and so do the running statistics, which see no dropout."""
    ours, theirs = train(trainer, GPU)[0], train(trainer, CPU)[0]
    assert ours.stats["loss"] == pytest.approx(theirs.stats["loss"], rel=0.25)
    name = "densenet121.features.norm0.running_mean"
    torch.testing.assert_close(ours.weights[name].cpu(), theirs.weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_same_bits_every_time_wherever_the_images_are(trainer):
    first, client = train(trainer, GPU)
    for cache in ("device", "ram", "disk"):
        again, other = train(trainer, GPU, cache)
        assert_identical(again.weights, first.weights)
        assert_identical(other.state_dict(), client.state_dict())


def test_compiled_networks_agree_with_the_plain_one():
    net, dataset, said = place_network(make_network(), GPU), make_dataset(), []
    plain = predict_on_all([net], dataset, 16)
    args = make_args("official", "--compile", "on")
    assert compile_networks([net], args, 16, 32, {0.1}, said.append) == "on", said
    assert abs(predict_on_all([net], dataset, 16) - plain).max() < 1e-3
