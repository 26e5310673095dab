"""Where clients train: the devices that exist, and one network on each."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch

from networks.models import Network
from utils.errors import UserError
from utils.tensors import copy_weights, net_device, set_tensors

COMPILES = ("auto", "off", "on", "graphs")
PAYS_FROM_STEPS = 10_000  # compiling takes minutes and saves milliseconds a step
VARIANTS = 64  # programs kept: device x batch size x mode x BatchNorm momentum
WARM_UP_STEPS = 3  # CUDA graphs are captured at the second


def compile_networks(
    networks: Sequence[Network],
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


def _warm_up(net: Network, sizes: tuple[int, int], image_size: int) -> None:
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


PRECISIONS = ("auto", "fp32", "tf32", "bf16")
TENSOR_CORES = (8, 0)  # the compute capability from which a GPU has TF32 and bf16


def choose_devices(gpu: str, say: Callable[[str], None]) -> list[torch.device]:
    """The devices that `--gpu` asks for and this machine has; `say` hears of a fallback.

    "0,1" asks for CUDA devices by number, "cpu" for the processor; repeating "cpu" trains
    several clients side by side on it. Raises `UserError` for anything else.
    """
    wanted = [part.strip() for part in gpu.split(",") if part.strip()]
    if wanted and all(part == "cpu" for part in wanted):
        return [torch.device("cpu")] * len(wanted)
    if not wanted or not all(part.isdecimal() for part in wanted):
        raise UserError(f"--gpu {gpu!r}: give device numbers like 0,1 or the word cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.device("cuda", int(part)) for part in wanted if int(part) < available]
    if not devices:
        say(f"no CUDA device among --gpu {gpu}: using the CPU")
        return [torch.device("cpu")]
    return devices


def set_deterministic(deterministic: bool) -> None:
    """Same bits at every run on the same device, or the fastest convolutions cuDNN finds."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def choose_precision(precision: str, devices: Sequence[torch.device]) -> str:
    """ "fp32", "tf32" or "bf16": what `--precision` means on these devices.

    "auto" is bf16 where every device is a GPU that has it, else fp32: on a processor without bf16
    units it is ten times slower. Raises `UserError` for what the devices do not have.
    """
    on_gpu = all(device.type == "cuda" for device in devices)
    able = on_gpu and all(
        torch.cuda.get_device_capability(device) >= TENSOR_CORES for device in devices
    )
    if precision == "auto":
        return "bf16" if able else "fp32"
    if not able and (precision == "tf32" or (precision == "bf16" and on_gpu)):
        raise UserError(
            f"--precision {precision}: not to be had on {', '.join(map(str, devices))}; use auto"
        )
    return precision


def set_precision(networks: Sequence[Network], precision: str) -> None:
    """Let the backbones of `networks` compute in what `choose_precision` chose from now on.

    Weights, statistics, the pooled features, the head and the losses are float32 in any case.
    """
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    for net in networks:
        net.autocast_dtype = torch.bfloat16 if precision == "bf16" else None


def place_network(net: Network, device: torch.device) -> Network:
    """`net` on `device`, its convolutions in channels-last order (twice as fast on a CPU)."""
    return net.to(device=device, memory_format=torch.channels_last)


def memory_shortage(error: Exception, args: Namespace) -> str | None:
    """What to change where `error` means that memory ran out; None for any other error.

    Nothing is changed behind the user's back: another batch size is another experiment.
    """
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    if not on_host and not isinstance(error, torch.OutOfMemoryError):
        return None
    where, smaller = "main memory", ""
    if not on_host:
        where, smaller = "the GPU's memory", ", or halve the activations with --precision bf16"
    return (
        f"{where} is full: lower --batch_size (now {args.batch_size}) or --image_size (now "
        f"{args.image_size}), or keep less in it with --cache disk, --client_state disk{smaller}"
    )


CPU_BATCH_PIXELS = 2**17  # larger batches leave the processor's cache: measured 64 to 224 pixels


def evaluation_batch_size(batch_size: int, image_size: int, device: torch.device) -> int:
    """Images per batch where no gradients are kept, for a run that trains with `batch_size`."""
    if device.type == "cpu":
        return max(4, CPU_BATCH_PIXELS // image_size**2)
    return 4 * batch_size
