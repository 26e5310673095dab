"""A labelled client, an unlabelled client and a whole round: reference, floor and ours.

reference: benchmarks/reference.py. floor: the forward and backward passes that the method cannot
do without and the optimizer's steps, on views already on the device, same precision, memory format
and compiler as ours, no federation; also without the optimizer. ours: steps 1 to 4 of
train_main.py's round on images on disk, the checks of what clients return and the handing over of
their memory to the store included; step 5, evaluation and checkpoint, stands by itself.

    python -m benchmarks.round                       # a CPU, in minutes
    python -m benchmarks.round --gpu 0 --image_size 224 --file_size 512 --images 480 --batch_size 48
"""

import argparse
import copy
import io
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, softmax

from benchmarks import reference, same_losses
from benchmarks.data import make_files
from benchmarks.measure import Clock, conditions, in_turn, ratios, spread
from federation import average_weights, build_clients, build_networks, mean_relation, prepare
from networks.models import DenseNet121
from options import args_parser
from train_main import train_clients
from utils.client import copy_weights
from utils.compilation import compile_networks
from utils.errors import run_command
from utils.run import open_run
from utils.run_state import Progress
from utils.table_files import to_markdown

ROUND = 25
PARTS = ("labelled client", "unlabelled client", "FedAvg and matrices", "whole round")


class Timing(NamedTuple):
    """Seconds of one round: means over its clients of either kind, the server, everything."""

    labeled: float
    unlabeled: float
    server: float
    whole: float


class Stopwatch:
    """Sorts a round's seconds into labelled clients, unlabelled clients and the rest."""

    def __init__(self, clock: Clock, labels: list[bool]):
        self.clock, self.labels = clock, labels
        self.seconds: list[float] = []
        self.started = clock.now()

    def client(self, work: Callable[[], object]) -> object:
        """Do one client's work and count it."""
        started = self.clock.now()
        result = work()
        self.seconds.append(self.clock.now() - started)
        return result

    def timing(self) -> Timing:
        """The round ends now."""
        whole = self.clock.now() - self.started
        kinds = {kind: [] for kind in (True, False)}
        for labeled, seconds in zip(self.labels, self.seconds, strict=True):
            kinds[labeled].append(seconds)
        labeled, unlabeled = (sum(kinds[kind]) / len(kinds[kind]) for kind in (True, False))
        return Timing(labeled, unlabeled, whole - sum(self.seconds), whole)


class Ours:
    """The product's own round, on a run folder of its own."""

    def __init__(self, args: Namespace, clock: Clock):
        self.clock = clock
        with redirect_stdout(io.StringIO()):
            self._prepare(args)

    def _prepare(self, args: Namespace) -> None:
        self.run = open_run(args)
        self.args = self.run.args
        self.devices, self.data = prepare(self.run)
        self.networks = build_networks(self.args, self.data.train.class_names, self.devices)
        self.clients = build_clients(self.args, self.data)
        self.run.begin(self.data, self.clients, self.networks, self.devices)
        with redirect_stdout(sys.stderr):
            compile_networks(
                self.networks, self.args, len(self.data.train), self.args.image_size, print
            )
        self.weights, self.target, self.round = copy_weights(self.networks[0]), None, 0

    def train(self) -> Timing:
        """Steps 1 to 4 of a round."""
        with redirect_stdout(io.StringIO()):
            return self._train()

    def _train(self) -> Timing:
        run, args = self.run, self.args
        run.start_round(self.round, self.clients)
        watch = Stopwatch(self.clock, [client.labeled for client in self.clients])
        trained = train_clients(
            self.clients, self.networks, self.weights, self.round, self.target, run
        )

        def timed() -> Iterator:
            while (update := watch.client(lambda: next(trained, None))) is not None:
                yield update
            watch.seconds.pop()  # of the call that found no client left

        self.weights, self.reports = average_weights(
            timed(), args.fedavg_weights, self.devices[0], run
        )
        self.target = mean_relation(self.reports, self.target)
        return watch.timing()

    def finish(self) -> float:
        """Step 5, evaluation, log and checkpoint; its seconds."""
        self.round += 1
        progress = Progress(self.weights, self.target, self.round)
        with redirect_stdout(io.StringIO()):
            return self.clock.time(
                lambda: self.run.finish_round(progress, self.networks, self.data, self.reports, 0)
            )


class Floor:
    """Bare passes on random views of ours' shapes, with ours' network."""

    def __init__(self, ours: Ours, images: int, with_optimizer: bool):
        self.clock, self.net = ours.clock, ours.networks[0]
        self.labels = [client.labeled for client in ours.clients]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-6, fused=True)
        self.with_optimizer = with_optimizer
        size, batch = ours.args.image_size, ours.args.batch_size
        sizes = [min(batch, images - start) for start in range(0, images, batch)]
        device = ours.devices[0]
        self.batches = [
            [
                torch.randn(count, 3, size, size, device=device).contiguous(
                    memory_format=torch.channels_last
                )
                for _ in range(2)
            ]
            for count in sizes
        ]
        self.targets = [torch.zeros(count, dtype=torch.int64, device=device) for count in sizes]

    def __call__(self) -> Timing:
        """A round's passes."""
        watch = Stopwatch(self.clock, self.labels)
        teacher = self.net.twin().train()
        self.net.train()
        for labeled in self.labels:
            watch.client(lambda labeled=labeled: self._client(labeled, teacher))
        return watch.timing()

    def _client(self, labeled: bool, teacher: DenseNet121) -> None:
        for (first, second), labels in zip(self.batches, self.targets, strict=True):
            logits = self.net(first)[1]
            if labeled:
                loss = cross_entropy(logits, labels) + cross_entropy(self.net(second)[1], labels)
            else:
                with torch.no_grad():
                    target = softmax(teacher(second)[1], dim=1)
                loss = (softmax(logits, dim=1) - target).square().sum()
            self.net.zero_grad()
            loss.backward()
            if self.with_optimizer:
                self.optimizer.step()


class Reference:
    """The plain loop on the same files, dealt to as many clients."""

    def __init__(self, ours: Ours, folder: Path):
        args, data = ours.args, ours.data.train
        self.clock, self.labels = ours.clock, [client.labeled for client in ours.clients]
        self.net = reference.ReferenceNet(len(data.class_names), args.drop_rate)
        self.net.to(ours.devices[0])
        classes = data.labels.tolist()
        self.clients = [
            reference.ReferenceClient(
                args,
                [folder / data.names[i] for i in client.indices],
                [classes[i] for i in client.indices],
                args.image_size,
            )
            for client in ours.clients
        ]

    def __call__(self) -> Timing:
        """One round."""
        watch = Stopwatch(self.clock, self.labels)
        states, matrices = [], []
        for client, labeled in zip(self.clients, self.labels, strict=True):
            states.append(
                watch.client(
                    lambda c=client, is_labeled=labeled: self._train(c, is_labeled, matrices)
                )
            )
        self.net.load_state_dict(reference.average(states))
        return watch.timing()

    def _train(self, client, labeled: bool, matrices: list) -> dict:
        net = copy.deepcopy(self.net)
        if labeled:
            weights, _, matrix = client.train_labeled(net, client.loader())
            matrices.append(matrix)
            return weights
        return client.train_unlabeled(net, client.loader(), ROUND, sum(matrices) / len(matrices))[0]


def main() -> None:
    """Check the losses, measure, print Markdown."""
    options = parse()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = (options.labeled + options.unlabeled) * options.images
        csvs = make_files(folder, {"train": count, "test": options.images}, options.file_size)
        ours = Ours(product_args(options, folder, csvs), Clock(torch.device("cpu")))
        ours.clock = Clock(ours.devices[0])
        try:
            print(conditions(ours.devices[0], options.repeats))
            print(setting(options), end="\n\n")
            if not options.unchecked:
                check(ours, folder)
            measure(ours, folder, options)
        finally:
            ours.run.close()


def parse() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description=__doc__)
    add = parser.add_argument
    add("--gpu", default="cpu", help="as of train_main.py")
    add("--image_size", type=int, default=128)
    add("--file_size", type=int, default=128, help="pixels a side of the PNG files")
    add("--batch_size", type=int, default=16)
    add("--images", type=int, default=48, help="per client, and test images")
    add("--labeled", type=int, default=1, help="clients with labels")
    add("--unlabeled", type=int, default=4, help="clients without")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="of PyTorch on the CPU")
    add("--precision", default="auto", help="of ours and the floor, as of train_main.py")
    add("--compile", default="auto", help="of ours and the floor, as of train_main.py")
    add("--deterministic", default="1", help="as of train_main.py")
    add("--unchecked", action="store_true", help="do not compare the losses first")
    return parser.parse_args()


def product_args(options: Namespace, folder: Path, csvs: dict[str, Path]) -> Namespace:
    """The released program's values, every client from the start, a folder for everything."""
    flags = {
        "root_path": folder / "images",
        "csv_file_train": csvs["train"],
        "csv_file_test": csvs["test"],
        "cache_dir": folder / "cache",
        "run_dir": folder / "run",
        "num_users": options.labeled + options.unlabeled,
        "num_labeled": options.labeled,
        "figure_every": 1000,
        "join_epoch": -1,
        "pretrained": 0,
        "progress": 0,
    }
    same = ("gpu", "image_size", "batch_size", "precision", "compile", "deterministic")
    flags |= {name: getattr(options, name) for name in same}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return args_parser(["--preset", "official", *words])


def setting(options: Namespace) -> str:
    """What was measured, in words."""
    return (
        f"preset official; {options.labeled} labelled (two views) and {options.unlabeled} "
        f"unlabelled clients of {options.images} images, batches of {options.batch_size}, "
        f"{options.image_size} pixels from PNG files of {options.file_size}; ours and floor: "
        f"precision {options.precision}, compile {options.compile}"
    )


def check(ours: Ours, folder: Path) -> None:
    """Print how far the reference's losses and ours are apart; `RuntimeError` where too far."""
    small = Namespace(**vars(ours.args) | {"batch_size": 8, "image_size": 64})
    with tempfile.TemporaryDirectory() as cache:
        small.cache_dir = Path(cache)
        dataset = same_losses.small_dataset(small)
        print("\n".join(same_losses.check(small, dataset, folder / "images")), end="\n\n")


def measure(ours: Ours, folder: Path, options: Namespace) -> None:
    """Print the table, and what evaluation and checkpoint cost."""
    ours.train(), ours.finish()
    pieces = {
        "reference": Reference(ours, folder / "images"),
        "floor": Floor(ours, options.images, with_optimizer=True),
        "floor without optimizer": Floor(ours, options.images, with_optimizer=False),
        "ours": ours.train,
    }
    finishing: list[float] = []

    def one_round() -> Timing:
        timing = ours.train()
        finishing.append(ours.finish())
        return timing

    results = in_turn(pieces | {"ours": one_round}, options.repeats)
    columns = {name: list(zip(*timings, strict=True)) for name, timings in results.items()}
    rows = []
    for part, title in enumerate(PARTS):
        seconds = {name: column[part] for name, column in columns.items()}
        cells = [spread(values) for values in seconds.values()]
        compared = [
            spread(ratios(seconds[name], seconds["ours"]))
            for name in pieces
            if name != "ours" and title != "FedAvg and matrices"
        ]
        rows.append([title, *cells, *(compared or [""] * 3)])
    header = ["", *(f"{name}, s" for name in pieces)]
    header += ["reference / ours", "floor / ours", "floor without optimizer / ours"]
    print(to_markdown(header, rows))
    print(f"evaluation of {options.images} images, log and checkpoint: {spread(finishing)} s")
    whole = median(columns["ours"][-1])
    print(f"of a round of ours, {whole:.2f} s: {median(finishing) / whole:.1%}")


if __name__ == "__main__":
    run_command(main)
