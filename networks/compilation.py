"""Compiled or recorded backbones: everything is made before the first round, or nothing is.

A compiler's settings, and the CUDA graphs that it records, belong to a thread. So each of several
networks is compiled, trained and evaluated in the one lasting thread that is its own
(`utils.workers.shared_out`), and a single network in the thread that runs everything.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from networks.devices import evaluation_batch_size
from networks.models import BATCHNORM_MOMENTUM, Network
from utils.errors import UserError
from utils.tensors import copy_weights, net_device, set_tensors
from utils.workers import on_each

PAYS_FROM_STEPS = 10_000  # compiling takes minutes and saves milliseconds a step
VARIANTS = 64  # programs kept per network: batch size x mode x BatchNorm momentum


def compile_networks(
    networks: Sequence[Network],
    args: Namespace,
    images: int,
    shape: Sequence[int],
    passes: Mapping[float, int],
    say: Callable[[str], None],
) -> str:
    """Compile or record the backbones as `--compile` asks, for a run over `images` images.

    shape: of one input, (K, sides ...). passes: for each momentum of BatchNorm that the run's
    clients train with, how many forward passes a step makes. What does not compile trains as it
    is, and `say` is told why. Returns "off", "on" or "graphs": what was done. Raises `UserError`
    for CUDA graphs on several devices.
    """
    devices = [net_device(net) for net in networks]
    chosen = choose_compile(args.compile, devices, training_steps(args, images))
    if chosen == "off":
        return chosen
    started = time.perf_counter()
    options = {"deterministic": bool(args.deterministic)}
    sizes = (evaluation_batch_size(args.batch_size, shape, devices[0]), args.batch_size)

    def compile_one(net: Network) -> None:
        samples = [_sample(net, size, shape) for size in sizes]
        weights, momentum = copy_weights(net), net.batchnorm_momentum
        try:
            if chosen == "graphs":
                evaluation, training = samples
                net.record_backbone(training, evaluation, passes)
            else:
                torch._dynamo.config.recompile_limit = VARIANTS
                net.compile_backbone(*sizes, options=options)
                _warm_up(net, *samples, passes)
        finally:
            net.batchnorm_momentum = momentum
            set_tensors(net.state_dict(), weights)

    try:
        on_each(compile_one, networks)
    except Exception as error:  # a compiler fails in many ways, and none is a reason to stop
        for net in networks:
            net.compile_backbone()
            net.forget_recorded()
        say(f"--compile {chosen}: training uncompiled ({_reason(error)})")
        return "off"
    done = "recorded" if chosen == "graphs" else "compiled"
    say(f"{done} the backbone in {time.perf_counter() - started:.0f} s")
    return chosen


def training_steps(args: Namespace, images: int) -> int:
    """Steps of a whole run over `images` training images, all clients together."""
    return args.rounds * args.local_ep * images // args.batch_size


def choose_compile(compile: str, devices: Sequence[torch.device], steps: int) -> str:
    """ "off", "on" or "graphs": what `--compile` means for a run of `steps` on these devices."""
    on_gpu = all(device.type == "cuda" for device in devices)
    if compile == "graphs" and (not on_gpu or len(devices) > 1):
        raise UserError("--compile graphs: works on one GPU; use --compile on, or --gpu 0")
    if compile == "auto" and on_gpu and len(devices) == 1:
        return "graphs"
    if compile == "auto":
        return "on" if on_gpu and steps >= PAYS_FROM_STEPS else "off"
    return compile


def _sample(net: Network, size: int, shape: Sequence[int]) -> torch.Tensor:
    """A batch of inputs as the data sets make them, in the network's order."""
    device = net_device(net)
    inputs = torch.zeros(size, *shape, device=device)
    return inputs.contiguous(memory_format=net.memory_format(device))


def _warm_up(
    net: Network, evaluation: torch.Tensor, training: torch.Tensor, momentums: Iterable[float]
) -> None:
    """Steps of student, teacher and evaluation, each compiled at its first.

    The compiler takes BatchNorm's momentum for a constant: the student has a program for each.
    """
    teacher = net.twin().train()
    for momentum in sorted(momentums):
        net.batchnorm_momentum = momentum
        activations = net.train().pooled(training)
        with torch.no_grad():
            teacher.pooled(training)
        activations.sum().backward()
        net.zero_grad()
    net.batchnorm_momentum = BATCHNORM_MOMENTUM
    with torch.no_grad():
        net.eval().pooled(evaluation)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
