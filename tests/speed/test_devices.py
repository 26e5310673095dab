"""Precision, twin, compilation, evaluation on several devices: what must not change numbers."""

import inspect
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from federation import passes_by_momentum
from local_supervised import SupervisedLocalUpdate
from local_unsupervised import UnsupervisedLocalUpdate
from methods.self_training import SelfTrainingLocalUpdate
from networks import compilation
from networks.compilation import choose_compile, compile_networks
from networks.densenet import NUM_FEATURES
from networks.devices import choose_precision, evaluation_batch_size, set_precision
from networks.models import DenseNet121
from networks.recorded import RecordedPasses
from predict.inference import predict, predict_on_all, predict_set
from record.opening import describe_environment
from tasks.classification import Classification
from tests.helpers.small_clients import CPU, assert_identical, make_args, make_dataset, make_network
from utils.errors import UserError
from utils.tensors import copy_weights
from utils.workers import shared_out

CUDA = [torch.device("cuda", 0), torch.device("cuda", 1)]


def tiny_network() -> DenseNet121:
    """The network with a backbone of one layer, quick to compile."""
    torch.manual_seed(0)
    net = DenseNet121(5)
    net.densenet121.features = nn.Sequential(
        nn.Conv2d(3, NUM_FEATURES, 3, stride=8), nn.BatchNorm2d(NUM_FEATURES)
    )
    return net


# ---- precision


@pytest.fixture
def capability(monkeypatch):
    """Sets the compute capability that all GPUs claim to have."""

    def claim(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return claim


def test_auto_is_bf16_on_modern_gpus_alone(capability):
    capability(9, 0)
    assert choose_precision("auto", CUDA) == "bf16"
    assert choose_precision("auto", [CPU]) == "fp32"
    assert choose_precision("auto", [CPU, CPU]) == "fp32"
    capability(7, 5)
    assert choose_precision("auto", CUDA[:1]) == "fp32"


def test_what_is_asked_for_is_given_or_refused(capability):
    capability(8, 0)
    for precision in ("fp32", "tf32", "bf16"):
        assert choose_precision(precision, CUDA) == precision
    assert choose_precision("bf16", [CPU]) == "bf16"
    with pytest.raises(UserError, match="--precision tf32: not to be had on cpu"):
        choose_precision("tf32", [CPU])
    capability(7, 0)
    for precision in ("tf32", "bf16"):
        with pytest.raises(UserError, match=f"--precision {precision}"):
            choose_precision(precision, CUDA)


def test_env_json_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    gpus = [torch.device("cuda", number) for number in (0, 1)]
    environment = describe_environment(gpus)
    assert environment["devices"] == ["GPU 0", "GPU 1"] and "driver" in environment


def test_bf16_backbone_float32_everywhere_else():
    net, images = tiny_network().eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact = net(images)[1]
        set_precision([net], "bf16")
        assert net.feature_map(images).dtype == torch.bfloat16
        activations, logits = net(images)
        set_precision([net], "fp32")
        assert torch.equal(net(images)[1], exact)
    assert activations.dtype == logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, rtol=0, atol=0.02)


def test_only_fp32_forbids_tf32():
    for precision, allowed in (("tf32", True), ("bf16", True), ("fp32", False)):
        set_precision([], precision)
        assert torch.backends.cudnn.allow_tf32 is allowed


# ---- the twin


def test_the_twin_is_apart_and_has_a_dropout_of_its_own():
    net = make_network()
    net.dropout.generator = torch.Generator()
    names = list(net.state_dict())
    twin = net.twin()
    assert twin is net.twin() and twin is not net
    assert list(net.state_dict()) == names == list(twin.state_dict())
    assert_identical(dict(twin.state_dict()), dict(net.state_dict()))
    ours = {value.data_ptr() for value in net.state_dict().values()}
    assert not ours & {value.data_ptr() for value in twin.state_dict().values()}
    assert twin.dropout is not net.dropout and twin.dropout.generator is None
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    conv = twin.densenet121.features.conv0.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)


# ---- compilation


def test_when_compiling_pays():
    assert choose_compile("auto", [CPU], 10**6) == "off"
    assert choose_compile("auto", CUDA, 100) == "off"
    assert choose_compile("auto", CUDA[:1], 100) == "graphs"
    assert choose_compile("auto", CUDA, 10**6) == "on"
    assert choose_compile("on", [CPU], 1) == "on"
    assert choose_compile("graphs", CUDA[:1], 1) == "graphs"
    for devices in ([CPU], CUDA):
        with pytest.raises(UserError, match="--compile graphs: works on one GPU"):
            choose_compile("graphs", devices, 1)


def compile_flags(**changes) -> Namespace:
    flags = {"compile": "on", "rounds": 1, "local_ep": 1, "batch_size": 4, "deterministic": 1}
    return Namespace(**flags | changes)


class Programs(list):
    """Batch sizes of the programs that were made; `threads`: where each was made."""

    def __init__(self):
        super().__init__()
        self.threads: list[threading.Thread] = []


@pytest.fixture
def traced(monkeypatch):
    """Networks are traced but not compiled; counts the programs by their batch size."""
    programs, real_compile = Programs(), torch.compile

    def compiler(function, dynamic, options):
        assert dynamic is False

        def backend(graph, inputs):
            programs.extend(len(value) for value in inputs if value.shape[1:] == (3, 32, 32))
            programs.threads.append(threading.current_thread())
            return graph.forward

        return real_compile(function, backend=backend, dynamic=dynamic)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compilation, "evaluation_batch_size", lambda *_: 6)
    yield programs
    torch._dynamo.reset()


def test_compiled_numbers_are_the_plain_ones(traced):
    net, said = tiny_network(), []
    plain = tiny_network()
    before = copy_weights(net)
    done = compile_networks([net], compile_flags(), 100, (3, 32, 32), {0.1: 1}, said.append)
    assert done == "on"
    assert sorted(traced) == [4, 4, 6] and "compiled the backbone" in said[0]
    assert_identical(copy_weights(net), before)
    assert all(parameter.grad is None for parameter in net.parameters())
    batches = [torch.randn(size, 3, 32, 32) for size in (4, 3, 4, 6)]
    for train, images in zip((True, True, False, False), batches, strict=True):
        net.train(train), plain.train(train)
        ours, theirs = net.pooled(images), plain.pooled(images)
        torch.testing.assert_close(ours, theirs)
    assert_identical(copy_weights(net), copy_weights(plain))
    net.train()
    with torch.no_grad():
        torch.testing.assert_close(net.twin().train().pooled(batches[0]), net.pooled(batches[0]))


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize(("preset", "momentums"), [("paper", 1), ("official", 2)])
def test_every_program_is_made_in_the_warm_up_by_the_thread_that_runs_it(
    traced, devices, preset, momentums
):
    """The student's for each momentum, the teacher's and the evaluation's; none later."""
    networks, dataset, said = [tiny_network() for _ in range(devices)], make_dataset(), []
    clients = [
        trainer(make_args(preset), dataset, torch.arange(8), number, Classification())
        for trainer in (SupervisedLocalUpdate, UnsupervisedLocalUpdate, SelfTrainingLocalUpdate)
        for number in range(devices)
    ]
    used = passes_by_momentum(clients)
    args = make_args(preset, "--compile", "on")
    assert compile_networks(networks, args, 16, (3, 32, 32), used, said.append) == "on"
    made = devices * (momentums + 2)
    assert len(traced) == made
    weights = copy_weights(networks[0])
    for round in (30, 31):
        work = shared_out(
            lambda net, client, round=round: client.train(net, weights, round, {}),
            networks,
            clients,
        )
        assert len(list(work)) == 3 * devices
    predict_on_all(networks, dataset, 6)
    predict_set(networks[0], dataset, 6)
    assert len(traced) == made
    assert len(set(traced.threads)) == devices
    assert (threading.main_thread() in traced.threads) == (devices == 1)


def test_the_twin_runs_its_own_weights(traced):
    net = tiny_network()
    net.compile_backbone(6, 4, options={})
    twin, images = net.twin().train(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        twin.densenet121.features[1].bias += 1
        assert (twin.pooled(images) - net.train().pooled(images)).abs().max() > 0.1


def test_what_does_not_compile_trains_as_it_is(monkeypatch):
    def broken(function, dynamic, options):
        def fail(images):
            raise RuntimeError("no compiler here\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    net, said = tiny_network(), []
    assert (
        compile_networks([net], compile_flags(), 100, (3, 32, 32), {0.1: 1}, said.append) == "off"
    )
    assert said == ["--compile on: training uncompiled (RuntimeError: no compiler here)"]
    assert net.pooled(torch.randn(4, 3, 32, 32)).shape == (4, NUM_FEATURES)
    compile_networks([net], compile_flags(compile="off"), 100, (3, 32, 32), {0.1: 1}, said.append)
    assert len(said) == 1


# ---- recorded passes


@pytest.fixture
def recorded(monkeypatch):
    """Recording without a GPU: the modules themselves are called, and every call is noted."""
    calls = []

    def record(function, sample, allow_unused_input):
        assert allow_unused_input
        inputs, *stand_ins = sample
        net = inspect.getclosurevars(function).nonlocals["backbone"].net
        training = net.training
        calls.append(("recorded", training, len(inputs)))
        for parameter, stand_in in zip(net.parameters(), stand_ins, strict=True):
            assert stand_in is not parameter and stand_in.data_ptr() == parameter.data_ptr()
            assert stand_in.requires_grad == parameter.requires_grad
            if parameter.requires_grad:
                get_gradient_edge(parameter).node.metadata["while recording"] = True

        def replay(given, *parameters):
            calls.append((training, len(given), net.batchnorm_momentum))
            with torch.no_grad():
                inputs.copy_(given)  # a recording reads from the memory it was made with
            return function(inputs, *parameters)

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(compilation, "choose_compile", lambda *_: "graphs")
    monkeypatch.setattr(compilation, "evaluation_batch_size", lambda *_: 6)
    return calls


def test_recorded_passes_are_used_where_they_fit_and_change_nothing(recorded):
    net, plain, said = tiny_network(), tiny_network(), []
    passes = {0.1: 2, 0.5: 1}
    assert (
        compile_networks([net], compile_flags(), 100, (3, 32, 32), passes, said.append) == "graphs"
    )
    assert recorded == [("recorded", True, 4)] * 3 + [("recorded", False, 6), ("recorded", True, 4)]
    assert_identical(copy_weights(net), copy_weights(plain))
    recorded.clear()
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def student(momentum, *batches):
        outputs = []
        for one in (net, plain):
            one.batchnorm_momentum = momentum
            outputs.append([one.train().pooled(batch) for batch in batches])
            sum(output.sum() for output in outputs[-1]).backward()
            one.zero_grad()
        assert_identical(*outputs)

    student(0.1, images, images + 1)  # two views, each on a pass of its own
    assert recorded == [(True, 4, 0.1)] * 2
    student(0.1, images, images + 1, images)  # a third finds no free pass
    assert len(recorded) == 4
    student(0.5, images)
    assert recorded[-1] == (True, 4, 0.5)
    count = len(recorded)
    student(0.3, images)  # a momentum that was not recorded
    student(0.1, images[:3])  # a short last batch
    net.eval().pooled(images)  # gradients in eval mode, as Grad-CAM wants them
    with torch.no_grad():
        net.pooled(images)
        assert len(recorded) == count
        net.pooled(torch.randn(6, 3, 32, 32))
        net.twin().train().pooled(images)
    assert [call[:2] for call in recorded[count:]] == [(False, 6), (True, 4)]
    assert_identical(copy_weights(net), copy_weights(plain))
    net.forget_recorded()
    with torch.no_grad():
        net.pooled(torch.randn(6, 3, 32, 32))
    assert len(recorded) == count + 2


def test_recorded_passes_give_the_gradients_of_plain_ones(recorded):
    """Of two views and a teacher's, all forward before the one backward pass; by way of nodes that
    the training makes: those made before recording, or by it, belong to another stream."""
    net, plain = tiny_network(), tiny_network()
    compile_networks([net], compile_flags(), 100, (3, 32, 32), {0.1: 2}, print)
    weights = next(net.densenet121.features.parameters())
    assert "while recording" not in get_gradient_edge(weights).node.metadata
    draws = torch.Generator().manual_seed(0)
    views = [torch.randn(4, 3, 32, 32, generator=draws) for _ in range(3)]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    for one in (net, plain):
        loss = sum(one.train().pooled(view).square().sum() for view in views[:2])
        with torch.no_grad():
            one.twin().train().pooled(views[2])
        loss.backward()
    for (name, ours), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name
    net.forget_recorded()


def test_without_batchnorm_the_longest_step_is_recorded(recorded):
    net = DenseNet121(5, norm="group")
    passes = RecordedPasses(net, torch.zeros(2, 3, 32, 32), None, {0.1: 2, 0.69: 1})
    assert [len(found) for found in passes.by_mode.values()] == [2]


def test_what_cannot_be_recorded_leaves_the_network_as_it_was(recorded, monkeypatch):
    def fail(function, sample, allow_unused_input):
        function(*sample)
        raise RuntimeError("no recording here")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    net, said = tiny_network(), []
    weights, momentum = copy_weights(net), net.batchnorm_momentum
    assert (
        compile_networks([net], compile_flags(), 100, (3, 32, 32), {0.5: 1}, said.append) == "off"
    )
    assert said == ["--compile graphs: training uncompiled (RuntimeError: no recording here)"]
    assert_identical(copy_weights(net), weights)
    assert net.batchnorm_momentum == momentum


def test_passes_are_counted_by_momentum():
    args, dataset = make_args("official"), make_dataset()
    clients = [
        trainer(args, dataset, torch.arange(8), 0, Classification())
        for trainer in (SupervisedLocalUpdate, UnsupervisedLocalUpdate, SelfTrainingLocalUpdate)
    ]
    assert passes_by_momentum(clients) == {0.1: 2, clients[1].batchnorm_momentum(): 1}


# ---- evaluation


@pytest.mark.parametrize("networks", [1, 2, 5])
def test_any_number_of_networks_gives_the_same_bits(networks):
    dataset = make_dataset()
    nets = [tiny_network() for _ in range(networks)]
    alone = predict(nets[0], dataset, 5)
    assert np.array_equal(predict_on_all(nets, dataset, 5), alone)
    assert alone.shape == (16, 5)


def test_evaluation_batches():
    assert evaluation_batch_size(48, (3, 224, 224), torch.device("cuda")) == 192
    assert [evaluation_batch_size(8, (3, size, size), CPU) for size in (64, 128, 512)] == [32, 8, 4]
