"""Training on a real GPU: close to the processor's numbers, and the same bits every time."""

import warnings

import pytest
import torch

from federation import METHODS, passes_by_momentum
from local_supervised import SupervisedLocalUpdate
from networks.compilation import compile_networks
from networks.devices import place_network, set_deterministic, set_precision
from tasks.classification import Classification
from tests.helpers.small_clients import (
    CPU,
    assert_identical,
    make_args,
    make_dataset,
    make_network,
    make_target,
    relative_error,
)
from utils.tensors import copy_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
GPU = torch.device("cuda", 0)
TRAINERS = [
    SupervisedLocalUpdate,
    METHODS["fedirm"].unlabeled,
    METHODS["fed_selftraining"].unlabeled,
]
RECORDED_ERROR = {"fp32": 1e-3, "bf16": 1e-6}  # cuDNN may choose other kernels while it is recorded


@pytest.fixture(autouse=True)
def exact():
    """Full precision and deterministic kernels, as a run with --precision fp32 sets them."""
    set_deterministic(True)
    set_precision([], "fp32")


def make_client(trainer, cache="device"):
    dataset = make_dataset()
    dataset.cache = cache
    args = make_args("official", "--base_lr", "1e-5", "--labeled_lr_late", "1e-5")
    return trainer(args, dataset, torch.arange(16), 1, Classification())


def train(trainer, device, cache="device"):
    net = place_network(make_network(), device)
    client = make_client(trainer, cache)
    update = client.train(net, copy_weights(net), 60, make_target().named())
    return update, client


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_round_is_close_to_the_processors(trainer):
    """The draws of order and views are the same, dropout's are the device's own: losses agree to a
    few percent, and so do the running statistics, which see no dropout."""
    ours, theirs = train(trainer, GPU)[0], train(trainer, CPU)[0]
    assert ours.stats["loss"] == pytest.approx(theirs.stats["loss"], rel=0.25)
    name = "densenet121.features.norm0.running_mean"
    assert relative_error(ours.weights[name].cpu(), theirs.weights[name]) < 0.05


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_same_bits_every_time_wherever_the_images_are(trainer):
    first, client = train(trainer, GPU)
    for cache in ("device", "ram", "disk"):
        again, other = train(trainer, GPU, cache)
        assert_identical(again.weights, first.weights)
        assert_identical(other.state_dict(), client.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_passes_give_the_gradients_of_plain_ones(precision):
    """Of two views, and a teacher's pass between, before the one backward pass."""
    nets = [place_network(make_network(), GPU) for _ in range(2)]
    set_precision(nets, precision)
    args, said = make_client(SupervisedLocalUpdate).args, []
    args.compile = "graphs"
    done = compile_networks(nets[:1], args, 16, (3, 32, 32), {0.1: 2}, said.append)
    assert done == "graphs", said
    draws = torch.Generator().manual_seed(0)
    views = [torch.randn(4, 3, 32, 32, generator=draws).to(GPU) for _ in range(3)]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    for net in nets:
        features = [net.train().pooled(view) for view in views[:2]]
        with torch.no_grad():
            net.twin().train().pooled(views[2])
        sum(each.square().mean() for each in features).backward()
    recorded, plain = (dict(net.named_parameters()) for net in nets)
    for name, ours in recorded.items():
        theirs = plain[name].grad
        assert (ours.grad is None) == (theirs is None), name
        if theirs is not None:
            assert relative_error(ours.grad, theirs) < RECORDED_ERROR[precision], name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_recorded_passes_give_the_plain_numbers(trainer, precision):
    """To the bit in bf16; in fp32 cuDNN may take other kernels while it is recorded. No gradient
    changes its stream."""
    warnings.filterwarnings("error", "The AccumulateGrad node's stream", UserWarning)
    updates = []
    for mode in ("off", "graphs"):
        client = make_client(trainer)
        net, said = place_network(make_network(), GPU), []
        set_precision([net], precision)
        client.args.compile = mode
        passes = passes_by_momentum([client])
        assert compile_networks([net], client.args, 16, (3, 32, 32), passes, said.append) == mode, (
            said
        )
        updates.append(client.train(net, copy_weights(net), 60, make_target().named()))
        updates[-1].stats.pop("seconds")
    plain, recorded = updates
    if precision == "bf16":
        assert_identical(plain.weights, recorded.weights)
        assert plain.stats == recorded.stats
    assert recorded.stats == pytest.approx(plain.stats, rel=1e-3)
    for name, value in plain.weights.items():
        torch.testing.assert_close(recorded.weights[name], value, rtol=1e-2, atol=1e-3, msg=name)
