"""The product's round and the bare passes under it, as pieces to be timed."""

import copy
import io
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, softmax

from benchmarks.measure import Clock
from dataloaders.dataset import batch_bounds
from federation import build_clients, build_networks, build_server, passes_by_momentum, prepare
from local_update import LocalUpdate
from networks.compilation import choose_compile, compile_networks, training_steps
from networks.devices import choose_devices
from networks.models import DenseNet121
from options import args_parser
from record.run import open_run
from record.state import Progress
from tasks import TASKS
from train_main import train_clients
from utils.tensors import copy_weights, net_device


def product_args(folder: Path, csvs: dict[str, Path], **flags) -> Namespace:
    """Flags of train_main.py for the files that `make_files` made, all clients from the start."""
    flags = {
        "preset": "official",
        "root_path": folder / "images",
        "csv_file_train": csvs["train"],
        "csv_file_test": csvs["test"],
        "cache_dir": folder / "cache",
        "run_dir": folder / "run",
        "figure_every": 1000,
        "state_every": 1,
        "join_epoch": -1,
        "pretrained": 0,
        "progress": 0,
    } | flags
    return args_parser(
        [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    )


def as_a_real_run(args: Namespace, images: int) -> str:
    """What `--compile` comes to in a run of the preset's own length over `images` images.

    A measurement is shorter, and "auto" would leave it uncompiled where a real run is compiled.
    """
    whole = args_parser(["--preset", args.preset, "--medmnist", "none.npz"])
    steps = training_steps(Namespace(**vars(whole) | {"batch_size": args.batch_size}), images)
    return choose_compile(args.compile, choose_devices(args.gpu, print), steps)


@contextmanager
def shortened(client: LocalUpdate, steps: int) -> Iterator[None]:
    """The client has images for that many steps of a local epoch alone."""
    everything = client.indices
    client.indices = everything[: steps * client.args.batch_size]
    try:
        yield
    finally:
        client.indices = everything


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
        labeled, unlabeled = (mean(kinds[kind]) for kind in (True, False))
        return Timing(labeled, unlabeled, whole - sum(self.seconds), whole)


class Ours:
    """The product's own round, on a run folder of its own.

    backbone: what stands in for DenseNet121's layers, in a measurement of what is around them.
    """

    def __init__(self, args: Namespace, backbone: nn.Module | None = None):
        with redirect_stdout(io.StringIO()):
            self._prepare(args, backbone)

    def _prepare(self, args: Namespace, backbone: nn.Module | None) -> None:
        self.run = open_run(args)
        self.args = self.run.args
        self.devices, self.data = prepare(self.args, self.run.say)
        self.clock = Clock(self.devices[0])
        self.networks = build_networks(self.args, self.data.train.class_names, self.devices)
        if backbone is not None:
            for net in self.networks:
                net.densenet121.features = copy.deepcopy(backbone).to(net_device(net))
        self.clients = build_clients(self.args, self.data)
        self.server = build_server(self.args)
        self.run.restore(self.data, self.server)
        task = TASKS[self.args.task]
        self.exchange = self.run.begin(self.data, self.clients, self.networks, self.devices, task)
        shape, images = self.data.train.input_shape, len(self.data.train)
        passes = passes_by_momentum(self.clients)
        with redirect_stdout(sys.stderr):
            compile_networks(self.networks, self.args, images, shape, passes, print)
        self.weights, self.shared, self.round = copy_weights(self.networks[0]), {}, 0

    def train(self) -> Timing:
        """Steps 1 to 4 of a round."""
        with redirect_stdout(io.StringIO()):
            return self._train()

    def _train(self) -> Timing:
        self.run.start_round(self.round, self.clients)
        watch = Stopwatch(self.clock, [client.labeled for client in self.clients])
        trained = train_clients(
            self.clients, self.networks, self.weights, self.round, self.shared, self.exchange
        )

        def timed() -> Iterator:
            while (update := watch.client(lambda: next(trained, None))) is not None:
                yield update
            watch.seconds.pop()  # of the call that found no client left

        self.weights, self.reports = self.server.average(
            timed(), self.weights, self.round, self.devices[0], self.exchange.done
        )
        self.shared = self.server.shared(self.reports, self.shared)
        return watch.timing()

    def finish(self) -> float:
        """Step 5, evaluation, log and checkpoint; its seconds."""
        self.round += 1
        progress = Progress(self.weights, self.shared, self.round)
        with redirect_stdout(io.StringIO()):
            return self.clock.time(
                lambda: self.run.finish_round(progress, self.networks, self.data, self.reports, 0)
            )


class Floor:
    """Bare passes on random views of ours' shapes, with ours' network."""

    def __init__(self, ours: Ours, with_optimizer: bool):
        self.clock, self.net = ours.clock, ours.networks[0]
        self.labels = [client.labeled for client in ours.clients]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-6, fused=True)
        self.with_optimizer = with_optimizer
        size, batch = ours.args.image_size, ours.args.batch_size
        bounds = batch_bounds(len(ours.clients[0].indices), batch)
        sizes = [stop - start for start, stop in bounds]
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
            watch.client(lambda labeled=labeled: self.client(labeled, teacher))
        return watch.timing()

    def client(self, labeled: bool, teacher: DenseNet121) -> None:
        """One client's passes."""
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
