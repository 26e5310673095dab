"""How the cost grows: with clients, with images, with their size, with the size of a batch.

python -m benchmarks.scale clients            # 10, 100, 1,000 clients, the same images in total
python -m benchmarks.scale densenet           # the same with DenseNet121, few images
python -m benchmarks.scale average            # FedAvg against a bare read of the same bytes
python -m benchmarks.scale sizes              # image sizes x batch sizes
python -m benchmarks.scale start              # seconds to the first client at 25,000 images
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.data import make_files
from benchmarks.measure import Clock, conditions, in_turn, ratios, spread
from benchmarks.ours import Floor, Ours, product_args
from FedAvg import FedAvg
from networks.densenet import NUM_FEATURES
from networks.devices import evaluation_batch_size, place_network
from networks.models import DenseNet121
from predict.inference import predict
from utils.errors import run_command
from utils.table_files import to_markdown
from utils.tensors import copy_weights

ROOT = Path(__file__).resolve().parents[1]
FEW_STEPS, MORE_STEPS = 1, 4
PAPER_LABELED, PAPER_UNLABELED, PAPER_TEST = 3_501, 14_002, 5_007  # images
FIRST_CLIENT = "Client: "  # of the log line that a client's training begins with


def main() -> None:
    """Measure what the command line names; Markdown."""
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu" if options.gpu == "cpu" else f"cuda:{options.gpu}")
    print(conditions(device, options.repeats), end="\n\n")
    MEASURES[options.what](options)


def parse() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    add = parser.add_argument
    add("what", choices=MEASURES)
    add("--gpu", default="cpu", help="cpu or the number of one GPU")
    add("--threads", type=int, default=1, help="of PyTorch on the CPU")
    add("--repeats", type=int, default=3)
    add("--clients", type=int, nargs="+", help="numbers of clients")
    add("--images", type=int, help="training images in total")
    add("--image_sizes", type=int, nargs="+", default=[64, 128, 224])
    add("--batch_sizes", type=int, nargs="+", default=[8, 16])
    add("--client_state", nargs="+", default=["disk"], help="as of train_main.py")
    add("--precision", default="auto", help="as of train_main.py")
    add("--compile", default="off", help="as of train_main.py")
    return parser.parse_args()


# ---- clients


def stand_in() -> nn.Module:
    """One convolution in DenseNet121's place: 28,000 weights instead of 7 million."""
    return nn.Sequential(nn.Conv2d(3, NUM_FEATURES, 3, stride=8), nn.BatchNorm2d(NUM_FEATURES))


def clients_of_a_stand_in(options: Namespace) -> None:
    """What a client costs beside its steps where the network itself is next to nothing."""
    print("A stand-in of one convolution for DenseNet121; 32 pixels, batches of 4.\n")
    numbers = options.clients or [10, 100, 1000]
    _growth(options, numbers, options.images or 4000, stand_in(), image_size=32, batch_size=4)


def clients_of_densenet(options: Namespace) -> None:
    """The same with the real network, on as many images as a processor gets through."""
    print("DenseNet121; 64 pixels, batches of 8.\n")
    numbers = options.clients or [2, 4, 8]
    _growth(options, numbers, options.images or 64, None, image_size=64, batch_size=8)


def _growth(
    options: Namespace,
    numbers: list[int],
    images: int,
    backbone: nn.Module | None,
    image_size: int,
    batch_size: int,
) -> None:
    rows = []
    for client_state in options.client_state:
        for number in numbers:
            flags = {
                "gpu": options.gpu,
                "image_size": image_size,
                "batch_size": batch_size,
                "num_users": number,
                "num_labeled": 1,
                "client_state": client_state,
                "precision": options.precision,
                "compile": options.compile,
                "eval_every": 1000,
                "save_every": 1000,
            }
            rows.append([client_state, *_rounds_of(options, images, backbone, flags)])
    header = [
        "client state",
        "clients",
        "steps",
        "round, s",
        "bare steps, s",
        "ms per client beside",
    ]
    header += ["of it FedAvg and matrices", "main memory, MB", "GPU memory at most, MB"]
    print(to_markdown(header, rows))


def _rounds_of(
    options: Namespace, images: int, backbone: nn.Module | None, flags: dict
) -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csvs = make_files(folder, {"train": images, "test": 8}, flags["image_size"])
        ours = Ours(product_args(folder, csvs, **flags), backbone)
        on_gpu = ours.devices[0].type == "cuda"
        try:
            ours.train(), ours.finish()
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(ours.devices[0])

            def one_round() -> tuple[float, float]:
                timing = ours.train()
                ours.finish()
                return timing.whole, timing.server

            floor = Floor(ours, with_optimizer=True)
            results = in_turn(
                {"ours": one_round, "floor": lambda: (floor().whole, 0.0)}, options.repeats
            )
            steps = len(floor.batches) * len(ours.clients)
        finally:
            ours.run.close()
        peak = torch.cuda.max_memory_allocated(ours.devices[0]) / 1e6 if on_gpu else None
    whole, server = zip(*results["ours"], strict=True)
    bare = [timing for timing, _ in results["floor"]]
    number = len(ours.clients)
    beside = [1e3 * (one - other) / number for one, other in zip(whole, bare, strict=True)]
    served = [1e3 * seconds / number for seconds in server]
    return [
        str(number),
        str(steps),
        spread(whole),
        spread(bare),
        spread(beside, 1),
        spread(served, 1),
        f"{resident_megabytes():.0f}",
        "" if peak is None else f"{peak:.0f}",
    ]


def resident_megabytes() -> float:
    """Main memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---- FedAvg


def average_of_models(options: Namespace) -> None:
    """FedAvg of K models as they come, and a bare read of as many bytes."""
    device = torch.device("cpu" if options.gpu == "cpu" else f"cuda:{options.gpu}")
    clock = Clock(device)
    models = [copy_weights(place_network(DenseNet121(5), device)) for _ in range(10)]
    size = sum(value.nbytes for value in models[0].values())
    flat = [torch.cat([value.flatten().float() for value in model.values()]) for model in models]
    rows = []
    for number in options.clients or [10, 100]:

        def stream(number: int = number) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
            return ((models[i % len(models)], 1.0 + i) for i in range(number))

        def read(number: int = number) -> None:
            for i in range(number):
                flat[i % len(flat)].sum()

        pieces: dict[str, Callable[[], float]] = {
            "average": lambda stream=stream: clock.time(lambda: FedAvg(stream())),
            "read": lambda read=read: clock.time(read),
        }
        seconds = in_turn(pieces, options.repeats)
        gigabytes = number * size / 1e9
        rows.append(
            [
                str(number),
                f"{gigabytes:.2f}",
                spread([gigabytes / value for value in seconds["average"]]),
                spread([gigabytes / value for value in seconds["read"]]),
                spread(ratios(seconds["average"], seconds["read"])),
            ]
        )
    header = ["models", "GB in", "FedAvg, GB/s of models", "bare sum, GB/s", "FedAvg / bare sum"]
    print(to_markdown(header, rows))
    print("A running mean reads every model once, and reads and writes the mean once per model.")


# ---- sizes


def sizes(options: Namespace) -> None:
    """An unlabelled client's steps against the bare passes, by image size and batch size."""
    rows = []
    for image_size in options.image_sizes:
        for batch_size in options.batch_sizes:
            rows.append([str(image_size), str(batch_size), *_step(options, image_size, batch_size)])
    header = ["pixels", "batch", "ours, ms per image", "floor, ms per image", "floor / ours"]
    header += ["evaluation, ms per image", "evaluation of 5,007, share of a round of 17,503"]
    print(to_markdown(header, rows))
    print(f"{FEW_STEPS + MORE_STEPS} steps less {FEW_STEPS}: what a client costs once is left out.")


def _step(options: Namespace, image_size: int, batch_size: int) -> list[str]:
    images = (FEW_STEPS + MORE_STEPS) * batch_size
    flags = {
        "gpu": options.gpu,
        "image_size": image_size,
        "batch_size": batch_size,
        "num_users": 2,
        "num_labeled": 1,
        "precision": options.precision,
        "compile": options.compile,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        csvs = make_files(folder, {"train": 2 * images, "test": 8}, min(image_size, 128))
        ours = Ours(product_args(folder, csvs, **flags))
        try:
            ours.train()
            seconds = in_turn(_steps_of(ours, images, batch_size), options.repeats)
        except torch.OutOfMemoryError:
            return ["out of memory"] * 5
        finally:
            ours.run.close()
    per_image = 1e3 / (MORE_STEPS * batch_size)
    milliseconds = {name: [per_image * v for v in values] for name, values in seconds.items()}
    compared = ratios(seconds["floor"], seconds["ours"])
    # A labelled image costs three quarters of an unlabelled one: no teacher's pass.
    round_of_images = PAPER_UNLABELED + 0.75 * PAPER_LABELED
    share = [
        PAPER_TEST * value / round_of_images
        for value in ratios(seconds["evaluation"], seconds["ours"])
    ]
    shown = [spread(milliseconds[name]) for name in ("ours", "floor", "evaluation")]
    return [*shown[:2], spread(compared), shown[2], spread(share, 3)]


def _steps_of(ours: Ours, images: int, batch_size: int) -> dict[str, Callable[[], float]]:
    """Seconds of MORE_STEPS unlabelled steps, ours and bare with the optimizer's, and of the
    evaluation of as many images."""
    client, net = ours.clients[1], ours.networks[0]
    all_indices = client.indices
    floor = Floor(ours, with_optimizer=True)
    floor.batches, floor.targets = floor.batches[:MORE_STEPS], floor.targets[:MORE_STEPS]

    def train(count: int) -> float:
        client.indices = all_indices[:count]
        return ours.clock.time(lambda: client.train(net, ours.weights, 1, ours.shared))

    def passes() -> float:
        teacher = net.train().twin().train()
        return ours.clock.time(lambda: floor.client(False, teacher))

    def evaluate() -> float:
        data = ours.data.train
        size = evaluation_batch_size(batch_size, data.input_shape, ours.devices[0])
        chosen = torch.arange(MORE_STEPS * batch_size)
        return ours.clock.time(lambda: predict(net, data, size, chosen))

    return {
        "ours": lambda: train(images) - train(FEW_STEPS * batch_size),
        "floor": passes,
        "evaluation": evaluate,
    }


# ---- start-up


def start_up(options: Namespace) -> None:
    """Seconds from the command to its first client, with a cold and a warm cache."""
    images = options.images or 25_000
    rows = []
    for image_size in options.image_sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            csvs = make_files(folder, {"train": images, "test": 100}, 32)
            cold, _ = _to_first_client(options, folder, csvs, image_size, 0)
            warm = [
                _to_first_client(options, folder, csvs, image_size, 1 + repeat)
                for repeat in range(options.repeats)
            ]
            cache = sum(path.stat().st_size for path in (folder / "cache").glob("*.npy")) / 1e9
        clock, processor = (spread(values, 1) for values in zip(*warm, strict=True))
        rows.append([image_size, images, f"{cache:.2f}", f"{cold:.1f}", clock, processor])
    header = ["pixels", "images", "cache, GB", "first start, s", "warm cache, s"]
    header.append("of the processor, s")
    print(to_markdown(header, [list(map(str, row)) for row in rows]))
    print("From the command to the first client's line in the log; no compilation.")


def _to_first_client(
    options: Namespace, folder: Path, csvs: dict[str, Path], image_size: int, number: int
) -> tuple[float, float]:
    """(wall clock, processor time of all threads) until the first client begins."""
    flags = {
        "image_size": image_size,
        "gpu": options.gpu,
        "run_dir": folder / f"run{number}",
        "compile": "off",
    }
    args = product_args(folder, csvs, **flags)
    words = [f"--{name}={getattr(args, name)}" for name in PASSED_ON]
    command = [sys.executable, "train_main.py", "--preset", "official", *words]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if FIRST_CLIENT in line:
                seconds = time.perf_counter() - started
                process.kill()
                break
        else:
            raise RuntimeError("training ended before its first client")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor


PASSED_ON = (
    *("root_path", "csv_file_train", "csv_file_test", "cache_dir", "run_dir", "image_size"),
    *("join_epoch", "pretrained", "progress", "gpu", "compile"),
)
MEASURES = {
    "clients": clients_of_a_stand_in,
    "densenet": clients_of_densenet,
    "average": average_of_models,
    "sizes": sizes,
    "start": start_up,
}

if __name__ == "__main__":
    run_command(main)
