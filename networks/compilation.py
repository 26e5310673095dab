"""Compiled backbones: every program of a run is made before its first round, or none is.

A compiler's settings, and the CUDA graphs that it records, belong to a thread. So each of several
networks is compiled, trained and evaluated in the one lasting thread that is its own
(`utils.workers.shared_out`), and a single network in the thread that runs everything.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence

import torch

from networks.devices import evaluation_batch_size
from networks.models import BATCHNORM_MOMENTUM, Network
from utils.errors import UserError
from utils.tensors import copy_weights, net_device, set_tensors
from utils.workers import on_each

COMPILES = ("auto", "off", "on", "graphs")
PAYS_FROM_STEPS = 10_000  # compiling takes minutes and saves milliseconds a step
VARIANTS = 64  # programs kept per network: batch size x mode x BatchNorm momentum
WARM_UP_STEPS = 3  # CUDA graphs are captured at the second


def compile_networks(
    networks: Sequence[Network],
    args: Namespace,
    images: int,
    image_size: int,
    momentums: Collection[float],
    say: Callable[[str], None],
) -> str:
    """Compile the backbones as `--compile` asks, for a run over `images` training images.

    momentums: of BatchNorm, all that the run's clients train with. What does not compile trains as
    it is, and `say` is told why. Returns "off", "on" or "graphs": what was done. Raises `UserError`
    for CUDA graphs on several devices.
    """
    devices = [net_device(net) for net in networks]
    chosen = choose_compile(args.compile, devices, training_steps(args, images))
    if chosen == "off":
        return chosen
    started = time.perf_counter()
    options = {"deterministic": bool(args.deterministic), "triton.cudagraphs": chosen == "graphs"}
    sizes = (evaluation_batch_size(args.batch_size, image_size, devices[0]), args.batch_size)

    def compile_one(net: Network) -> None:
        torch._dynamo.config.recompile_limit = VARIANTS
        net.compile_backbone(*sizes, options=options)
        _warm_up(net, sizes, image_size, momentums)

    try:
        on_each(compile_one, networks)
    except Exception as error:  # a compiler fails in many ways, and none is a reason to stop
        for net in networks:
            net.compile_backbone()
        say(f"--compile {chosen}: training uncompiled ({_reason(error)})")
        return "off"
    say(f"compiled the backbone in {time.perf_counter() - started:.0f} s")
    return chosen


def training_steps(args: Namespace, images: int) -> int:
    """Steps of a whole run over `images` training images, all clients together."""
    return args.rounds * args.local_ep * images // args.batch_size


def choose_compile(compile: str, devices: Sequence[torch.device], steps: int) -> str:
    """ "off", "on" or "graphs": what `--compile` means for a run of `steps` on these devices."""
    on_gpu = all(device.type == "cuda" for device in devices)
    if compile == "graphs" and (not on_gpu or len(devices) > 1):
        raise UserError("--compile graphs: works on one GPU; use --compile on, or --gpu 0")
    if compile == "auto":
        return "on" if on_gpu and steps >= PAYS_FROM_STEPS else "off"
    return compile


def _warm_up(
    net: Network, sizes: tuple[int, int], image_size: int, momentums: Collection[float]
) -> None:
    """Steps of student, teacher and evaluation that leave `net` as it was.

    The compiler takes BatchNorm's momentum for a constant: the student has a program for each.
    """
    weights = copy_weights(net)
    evaluation, training = (
        torch.zeros(size, 3, image_size, image_size, device=net_device(net)).contiguous(
            memory_format=torch.channels_last
        )
        for size in sizes
    )
    teacher = net.twin().train()
    for momentum in sorted(momentums):
        net.batchnorm_momentum = momentum
        for _ in range(WARM_UP_STEPS):
            activations = net.train().pooled(training)
            with torch.no_grad():
                teacher.pooled(training)
            activations.sum().backward()
            net.zero_grad()
    net.batchnorm_momentum = BATCHNORM_MOMENTUM
    with torch.no_grad():
        for _ in range(WARM_UP_STEPS):
            net.eval().pooled(evaluation)
    set_tensors(net.state_dict(), weights)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
