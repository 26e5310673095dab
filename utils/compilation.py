"""The backbone as compiled programs, prepared before the first round."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch

from networks.models import DenseNet121
from utils.client import copy_weights, net_device, set_tensors
from utils.errors import UserError
from utils.inference import evaluation_batch_size

COMPILES = ("auto", "off", "on", "graphs")
PAYS_FROM_STEPS = 10_000  # compiling takes minutes and saves milliseconds a step
VARIANTS = 64  # programs kept: device x batch size x mode x BatchNorm momentum
WARM_UP_STEPS = 3  # CUDA graphs are captured at the second


def compile_networks(
    networks: Sequence[DenseNet121],
    args: Namespace,
    images: int,
    image_size: int,
    say: Callable[[str], None],
) -> None:
    """Compile the backbones as `--compile` asks, for a run over `images` training images.

    What does not compile trains as it is, and `say` is told why. Raises `UserError` for CUDA graphs
    on several devices: they belong to the thread that captured them.
    """
    steps = args.rounds * args.local_ep * images // args.batch_size
    chosen = choose_compile(args.compile, [net_device(net) for net in networks], steps)
    if chosen == "off":
        return
    started = time.perf_counter()
    options = {"deterministic": bool(args.deterministic), "triton.cudagraphs": chosen == "graphs"}
    torch._dynamo.config.recompile_limit = VARIANTS
    device = net_device(networks[0])
    sizes = (args.batch_size, evaluation_batch_size(args.batch_size, image_size, device))
    try:
        for net in networks:
            net.compile_backbone(sizes, options=options)
            _warm_up(net, sizes, image_size)
    except Exception as error:  # a compiler fails in many ways, and none is a reason to stop
        for net in networks:
            net.compile_backbone(())
        say(f"--compile {chosen}: training uncompiled ({_reason(error)})")
    else:
        say(f"compiled the backbone in {time.perf_counter() - started:.0f} s")


def choose_compile(compile: str, devices: Sequence[torch.device], steps: int) -> str:
    """ "off", "on" or "graphs": what `--compile` means for a run of `steps` on these devices."""
    on_gpu = all(device.type == "cuda" for device in devices)
    if compile == "graphs" and (not on_gpu or len(devices) > 1):
        raise UserError("--compile graphs: works on one GPU; use --compile on, or --gpu 0")
    if compile == "auto":
        return "on" if on_gpu and steps >= PAYS_FROM_STEPS else "off"
    return compile


def _warm_up(net: DenseNet121, sizes: tuple[int, int], image_size: int) -> None:
    """Steps of student, teacher and evaluation that leave `net` as it was."""
    weights = copy_weights(net)
    training, evaluation = (
        torch.zeros(size, 3, image_size, image_size, device=net_device(net)).contiguous(
            memory_format=torch.channels_last
        )
        for size in sizes
    )
    teacher = net.twin().train()
    for _ in range(WARM_UP_STEPS):
        activations = net.train().pooled(training)
        with torch.no_grad():
            teacher.pooled(training)
        activations.sum().backward()
        net.zero_grad()
    with torch.no_grad():
        net.eval().pooled(evaluation)
    set_tensors(net.state_dict(), weights)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
