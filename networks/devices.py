"""Where clients train: the devices that exist, their precision, and what fits into them."""

import math
import re
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch

from networks.models import Network
from utils.errors import UserError

DEFAULT_GPU = "0,1"
# How PyTorch, the driver, cuDNN and cuBLAS word that memory ran out, on either side.
HOST_FULL = re.compile(r"DefaultCPUAllocator|HOST_ALLOCATION_FAILED|[Pp]inned|cudaHostAlloc")
MAIN_MEMORY = "main memory"
GPU_FULL = re.compile(r"out of memory|_ALLOC_FAILED|ALLOCATION_FAILED")
# Of a training pass of DenseNet121 in bf16, per pixel and image: 3.2 GB for 48 of 224 pixels.
ACTIVATION_BYTES = 3.2e9 / (48 * 224**2)
# Of a training pass of DenseNet121 on one core: 180 ms for an image of 224 pixels.
CPU_SECONDS_PER_PIXEL = 0.18 / 224**2
PATIENT_HOURS = 48
TENSOR_CORES = (8, 0)  # the compute capability from which a GPU has TF32 and bf16


def choose_devices(
    gpu: str, say: Callable[[str], None], default: str = DEFAULT_GPU
) -> list[torch.device]:
    """The devices that `--gpu` asks for and this machine has; `say` hears of a fallback.

    "0,1" asks for CUDA devices by number, "cpu" for the processor; repeating "cpu" trains
    several clients side by side on it. Devices that are not there are passed over where `gpu` is
    the flag's `default`, which nobody typed. Raises `UserError` for anything else, and for a
    device that the installed PyTorch has no kernels for.
    """
    wanted = [part.strip() for part in gpu.split(",") if part.strip()]
    if wanted and all(part == "cpu" for part in wanted):
        return [torch.device("cpu")] * len(wanted)
    if not wanted or not all(part.isdecimal() for part in wanted):
        raise UserError(f"--gpu {gpu!r}: give device numbers like 0,1 or the word cpu")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = [part for part in wanted if int(part) >= available]
    if missing and gpu != default:
        raise UserError(
            f"--gpu {gpu}: there is no device {missing[0]}, this machine has {available}; name "
            "those that are there, or cpu"
        )
    devices = [torch.device("cuda", int(part)) for part in wanted if part not in missing]
    for device in devices:
        _refuse_without_kernels(device)
    if not devices:
        say(f"no CUDA device among --gpu {gpu}: using the CPU")
        return [torch.device("cpu")]
    return devices


def refuse_endless_run(
    args: Namespace, devices: Sequence[torch.device], images: int, shape: Sequence[int]
) -> None:
    """Raise `UserError` where a GPU was meant, there is none, and a processor would take days."""
    if devices[0].type == "cuda" or args.gpu != DEFAULT_GPU:
        return
    passes = args.rounds * args.local_ep * images
    hours = passes * math.prod(shape[1:]) * CPU_SECONDS_PER_PIXEL / 3600
    if hours > PATIENT_HOURS:
        size = "x".join(map(str, shape[1:]))
        raise UserError(
            f"no GPU here: {args.rounds} rounds of {images} inputs of {size} would "
            f"take about {hours / 24:.0f} days on a processor; give --gpu cpu to begin all the same"
        )


def _refuse_without_kernels(device: torch.device) -> None:
    """A wheel has machine code for some architectures and runs it on later ones of the same major
    version; portable code (PTX) is compiled for whatever is later than it."""
    built = torch.cuda.get_arch_list()  # sm_90 has machine code, compute_90 portable code
    capability = torch.cuda.get_device_capability(device)
    versions = [
        (found[1], *divmod(int(found[2]), 10))
        for name in built
        if (found := re.fullmatch(r"(sm|compute)_(\d+)\w?", name))  # AMD's are gfx90a and the like
    ]
    runs = [
        (major, minor) <= capability and (kind == "compute" or major == capability[0])
        for kind, major, minor in versions
    ]
    if versions and not any(runs):
        raise UserError(
            f"--gpu {device.index}: {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and this PyTorch was built for {' '.join(built)}; "
            "install a build of PyTorch for it, or use --gpu cpu"
        )


def set_deterministic(deterministic: bool) -> None:
    """Same bits at every run on the same device, or the fastest kernels that are found."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # A GPU's fused attention adds up its gradients in any order; what is left is the plain one.
    for enable in (
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
        torch.backends.cuda.enable_cudnn_sdp,
    ):
        enable(not deterministic)


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
    """`net` on `device`, its convolutions in its own order (channels last is twice as fast on a
    CPU, for images)."""
    return net.to(device=device, memory_format=net.memory_format(device))


def memory_shortage(error: Exception, args: Namespace) -> str | None:
    """What to change where `error` means that memory ran out; None for any other error.

    Nothing is changed behind the user's back: another batch size is another experiment.
    """
    if (where := full_memory(error)) is None:
        return None
    less = ["--cache disk", "--client_state disk"]
    sides = f"--image_size (now {args.image_size})"
    if args.task == "segmentation":
        sides = f"--patch_size (now {' '.join(map(str, args.patch_size))})"
    if where != MAIN_MEMORY:
        less += ["--precision bf16"] if args.precision != "bf16" else []
        less += ["--compile off"] if args.compile != "off" else []
    return (
        f"{where} is full: keep less in it with {', '.join(less)}; or, in a new run, lower "
        f"--batch_size (now {args.batch_size}) or {sides}"
    )


def full_memory(error: Exception) -> str | None:
    """Which memory ran out, where `error` means that one did; None for any other error."""
    if isinstance(error, MemoryError):
        return MAIN_MEMORY
    if not isinstance(error, RuntimeError):  # whose words may quote anything
        return None
    if HOST_FULL.search(str(error)) is not None:
        return MAIN_MEMORY
    on_gpu = isinstance(error, torch.OutOfMemoryError) or GPU_FULL.search(str(error)) is not None
    return "the GPU's memory" if on_gpu else None


CPU_BATCH_PIXELS = 2**17  # larger batches leave the processor's cache: measured 64 to 224 pixels


def evaluation_batch_size(batch_size: int, shape: Sequence[int], device: torch.device) -> int:
    """Inputs of `shape` (K, sides ...) per batch where no gradients are kept, for a run that trains
    with `batch_size`."""
    if device.type == "cpu":
        return max(4, CPU_BATCH_PIXELS // math.prod(shape[1:]))
    return 4 * batch_size


def activation_bytes(args: Namespace, shape: Sequence[int], devices: Sequence[torch.device]) -> int:
    """About what a training step needs on a GPU beside weights, images and clients' states."""
    size = 1 if choose_precision(args.precision, devices) == "bf16" else 2
    views = max(2, args.labeled_views)  # an unlabelled step holds the student's and the teacher's
    return int(ACTIVATION_BYTES * args.batch_size * math.prod(shape[1:]) * size * views)
