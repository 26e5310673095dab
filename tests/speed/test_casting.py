"""Weights of a bf16 pass are cast together: the numbers of casts one by one, a launch each way."""

import copy

import pytest
import torch

from benchmarks.launches import Operations
from networks.models import ResNet18
from networks.unet3d import UNet3d

CASES = {
    "images": (lambda: ResNet18(5), (2, 3, 32, 32), 20),
    "volumes": (lambda: UNet3d(in_channels=1, num_classes=3), (1, 1, 32, 32, 32), 14),
}


@pytest.fixture(params=CASES)
def case(request):
    """A network in bf16, inputs, and how many layers below its head have weights to cast."""
    build, shape, layers = CASES[request.param]
    torch.manual_seed(7)
    net = build()
    net.autocast_dtype = torch.bfloat16
    return net, torch.randn(shape), layers


def step(net, inputs):
    """Features of a pass, its gradients by name, and the launches of both."""
    with Operations() as operations:
        features = net.plain_features(inputs)
        features.square().sum().backward()
    return features, {name: each.grad for name, each in net.named_parameters()}, operations.launches


def test_the_numbers_of_autocast_in_two_launches(case):
    net, inputs, layers = case
    one_by_one = copy.deepcopy(net)
    one_by_one.cast_layers = list
    features, gradients, launches = step(net, inputs)
    expected, theirs, before = step(one_by_one, inputs)
    assert torch.equal(features, expected)
    reached = {name for name, gradient in gradients.items() if gradient is not None}
    assert reached == {name for name, gradient in theirs.items() if gradient is not None}
    assert len(reached) >= layers
    for name in reached:
        assert gradients[name].dtype == torch.float32
        assert torch.equal(gradients[name], theirs[name]), name
    assert launches["_foreach_copy_"] - before["_foreach_copy_"] == 2
    # Autocast casts each weight, and its gradient back.
    assert before["copy"] - launches["copy"] >= 2 * layers


def test_only_the_pass_sees_cast_weights(case):
    net, inputs, layers = case
    mine = dict(net.named_parameters())
    seen = []
    watched = net.cast_layers()[-1]
    watched.register_forward_hook(lambda layer, *_: seen.append(layer.weight.dtype))
    net.plain_features(inputs)
    with pytest.raises(RuntimeError, match="channels"):
        net.plain_features(torch.cat([inputs, inputs], dim=1))
    assert seen == [torch.bfloat16]
    assert len(net.cast_layers()) == layers and net.head_layer not in net.cast_layers()
    assert {name: id(each) for name, each in net.named_parameters()} == {
        name: id(each) for name, each in mine.items()
    }


def test_a_compiler_casts_the_weights_itself(case):
    net, inputs, _ = case
    expected = net.plain_features(inputs)
    compiled = torch.compile(net.plain_features, fullgraph=True, dynamic=False, backend="eager")
    assert torch.equal(compiled(inputs), expected)
