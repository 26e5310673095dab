"""Kernels that a step launches and bytes that its passes move, counted without a GPU.

python -m benchmarks.launches

Launches: the operations of one step of either kind of client that compute something, by name; a
fused one, and one over a list of tensors, counts once. They depend on neither pixels nor batch.
Bytes: what the backbone's operations read and write of their inputs and outputs at the size asked
for, on tensors without content; what a cache keeps, or a kernel reads twice, is not known.
The rows "torchvision" have its dense blocks, torch's BatchNorm and autocast's casts in place of
this project's.
"""

import argparse
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import densenet121

from benchmarks.data import make_files
from benchmarks.ours import Ours, product_args, shortened
from local_update import LocalUpdate
from networks.models import DenseNet121
from utils.errors import run_command
from utils.table_files import to_markdown
from utils.tensors import named_tensors

# Make a tensor, or another view of one, and compute nothing; views say so themselves.
WITHOUT_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WITHOUT_KERNEL |= {"_unsafe_view", "detach", "lift_fresh", "_local_scalar_dense"}
WITHOUT_KERNEL |= {"profiler::_record_function_enter_new", "profiler::_record_function_exit"}
BATCH_SIZE = 4
SHOWN = ("batch norm", "convolution", "cat", "add", "copy")
NAMES = {"native_batch_norm": "batch norm", "native_batch_norm_backward": "batch norm"}
NAMES |= {"convolution_backward": "convolution", "add_": "add", "_to_copy": "copy"}
NAMES |= {"copy_": "copy", "clone": "copy"}


class Operations(TorchDispatchMode):
    """Counts launches and bytes of what runs inside of it, by the operation's name."""

    def __init__(self):
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if name not in WITHOUT_KERNEL and not function.is_view:
            shown = NAMES.get(name, name)
            self.launches[shown] += 1
            self.bytes[shown] += moved(name, args, result)
        return result


def nbytes(value) -> int:
    """Of all tensors in `value`."""
    return sum(tensor.nbytes for _, tensor in named_tensors(value))


def moved(name: str, args: tuple, result) -> int:
    """Bytes that an operation reads and writes, each tensor as often as its passes over it."""
    if name == "native_batch_norm":  # the mean and the variance; then again, to write the result
        return 2 * nbytes(args[0]) + nbytes(result)
    if name == "native_batch_norm_backward":  # two sums over both; then again, to write the result
        return 2 * nbytes(args[:2]) + nbytes(result)
    if name == "convolution_backward":  # once for the inputs' gradient, once for the weights'
        gradient, inputs, weights = args[:3]
        return 2 * nbytes(gradient) + nbytes(inputs) + nbytes(weights) + nbytes(result)
    return nbytes(args) + nbytes(result)


def as_torchvision(net: DenseNet121) -> None:
    """Give `net` torchvision's own layers, which have the same names and weights, and leave it to
    autocast to cast them one by one."""
    plain = densenet121(weights=None)
    plain.classifier = net.densenet121.classifier
    plain.load_state_dict(net.densenet121.state_dict())
    net.densenet121 = plain.to(memory_format=torch.channels_last)
    net.cast_layers = list


def launches_of_steps(folder: Path, preset: str, plain: bool) -> Iterator[tuple[str, Counter]]:
    """("labelled" or "unlabelled", launches of one step more) of a client of either kind."""
    csvs = make_files(folder, {"train": 4 * BATCH_SIZE, "test": 8}, 32)
    flags = {"preset": preset, "image_size": 32, "batch_size": BATCH_SIZE, "gpu": "cpu"}
    flags |= {"precision": "bf16"}
    ours = Ours(product_args(folder, csvs, num_users=2, num_labeled=1, **flags))
    try:
        net = ours.networks[0]
        if plain:
            as_torchvision(net)
        ours.train()  # the labelled client's matrix is there, and every client has its moments
        for client in ours.clients:
            kind = "labelled" if client.labeled else "unlabelled"
            # After a first time it remembers something, and no time after that differs in it.
            _, one, two = (_launches(ours, net, client, steps) for steps in (1, 1, 2))
            yield kind, two - one
    finally:
        ours.run.close()


def _launches(ours: Ours, net: DenseNet121, client: LocalUpdate, steps: int) -> Counter:
    with shortened(client, steps), Operations() as operations:
        client.train(net, ours.weights, 1, ours.shared)
    return operations.launches


def bytes_of_passes(image_size: int, batch_size: int, plain: bool) -> dict[str, Operations]:
    """What the backbone's passes move in bfloat16: forward alone, and forward with backward."""
    net = DenseNet121(5)
    if plain:
        as_torchvision(net)
    net.to("meta", torch.bfloat16, memory_format=torch.channels_last)
    images = torch.empty(
        batch_size, 3, image_size, image_size, device="meta", dtype=torch.bfloat16
    ).contiguous(memory_format=torch.channels_last)
    net.train()
    with torch.no_grad(), Operations() as forward:
        net.backbone_map(images)
    with Operations() as both:
        net.backbone_map(images).sum().backward()
    return {"teacher's pass": forward, "student's passes": both}


def main() -> None:
    """Count what the command line asks for; Markdown."""
    options = parse()
    torch.manual_seed(0)
    rows = []
    for plain in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            for kind, found in launches_of_steps(Path(folder), options.preset, plain):
                rest = found.total() - sum(found[name] for name in SHOWN)
                counts = [found.total(), *(found[name] for name in SHOWN), rest]
                rows.append([_whose(plain), f"{kind} step", *(f"{count:,}" for count in counts)])
    header = ["layers", "launches", "all", *SHOWN, "other"]
    print(f"Preset {options.preset}.\n\n{to_markdown(header, rows)}")
    rows = [
        [_whose(plain), name, *(f"{found.bytes[kind] / 1e9:.2f}" for kind in SHOWN)]
        + [f"{found.bytes.total() / 1e9:.2f}"]
        for plain in (True, False)
        for name, found in bytes_of_passes(options.image_size, options.batch_size, plain).items()
    ]
    sizes = f"{options.batch_size} images of {options.image_size} pixels in bfloat16"
    print(f"{sizes}, GB.\n\n{to_markdown(['layers', 'passes', *SHOWN, 'all'], rows)}")


def _whose(plain: bool) -> str:
    return "torchvision" if plain else "ours"


def parse() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default="paper", help="as of train_main.py")
    add("--image_size", type=int, default=224, help="pixels, of the bytes")
    add("--batch_size", type=int, default=48, help="images, of the bytes")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
