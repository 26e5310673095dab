"""What a run would take, from single steps of its own trainers: `train_main.py --dry_run`."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from dataloaders.federated import Rehearsal
from federation import build_client, build_networks, build_server, clients_taking_part, foresee
from local_update import ClientUpdate, LocalUpdate
from networks.compilation import choose_compile
from networks.devices import choose_devices, set_deterministic
from networks.models import Network
from record.checks import never_join
from record.duration import duration
from record.opening import device_name, peak_memory
from record.rounds import is_scored
from tasks import TASKS
from utils.tensors import copy_weights

CPU_BATCH = 4  # on a processor an image costs the same in any batch
UNCOMPILED = "kernel by kernel: the recorded passes of --compile are faster"


class Site(NamedTuple):
    """A client as its server sees it."""

    client: int
    labeled: bool
    num_samples: int


class Cost(NamedTuple):
    """Seconds of one client's round: once, and for each image and local epoch."""

    once: float
    image: float

    def of(self, images: int) -> float:
        """Seconds for that many images."""
        return self.once + self.image * images


def rehearse(args: Namespace, say: Callable[[str], None]) -> Iterator[str]:
    """Lines to print: what would be trained on, and the time and memory that it would take, from
    steps on this machine. `UserError` as in training; for weights that are missing at the end,
    since nothing else depends on them."""
    found = TASKS[args.task].dry_run(args)
    set_deterministic(bool(args.deterministic))
    devices = choose_devices(args.gpu, say)
    taking_part = clients_taking_part(args, found.split)
    warning = never_join(args, len(set(taking_part) - set(found.split.labelled)))
    yield from found.lines
    if warning is not None:
        yield warning
    yield from _measured(args, found, devices)
    foresee(args)


def _measured(args: Namespace, found: Rehearsal, devices: list[torch.device]) -> list[str]:
    device = devices[0]
    on_gpu = device.type == "cuda"
    batch = args.batch_size if on_gpu else min(args.batch_size, CPU_BATCH)
    small = Namespace(**{**vars(args), "batch_size": batch, "local_ep": 1})
    labeled = set(found.split.labelled)
    sites = [
        Site(client, client in labeled, len(found.split.clients[client]))
        for client in clients_taking_part(args, found.split)
    ]
    net = build_networks(small, found.sample.class_names, [device])[0]
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    costs, evaluation = _measure_kinds(small, net, found, {site.labeled for site in sites})
    return [
        *_time_lines(args, sites, costs, evaluation * found.evaluated, devices),
        _memory_line(args, devices, batch),
    ]


def _measure_kinds(
    args: Namespace, net: Network, found: Rehearsal, kinds: set[bool]
) -> tuple[dict[bool, Cost], float]:
    """The cost of a labelled client (True) and of an unlabelled one (False), where there are such,
    and the seconds that an image takes in an evaluation."""
    server, weights, shared, costs = build_server(args), copy_weights(net), {}, {}
    round = args.rounds - 1  # all have joined
    for labeled in sorted(kinds, reverse=True):  # the labelled measure what the others match

        def client_of(batches: int, labeled: bool = labeled) -> LocalUpdate:
            rows = torch.arange(batches * args.batch_size) % len(found.sample)
            return build_client(args, found.sample, rows, int(not labeled), labeled)

        def train(batches: int, shared: dict) -> tuple[ClientUpdate, float]:
            client = client_of(batches)
            started = time.perf_counter()
            update = client.train(net, weights, round, shared)
            return update, time.perf_counter() - started

        train(1, shared)  # what is only done at a device's first step
        _, one = train(1, shared)
        update, three = train(3, shared)
        image = max(three - one, 0.0) / 2 / args.batch_size or three / 3 / args.batch_size
        costs[labeled] = Cost(max(one - image * args.batch_size, 0.0), image)
        if labeled:
            shared = server.shared([update], shared)
    net.load_state_dict(weights)
    few = found.sample.head(2 * args.batch_size)
    started = time.perf_counter()
    TASKS[args.task].evaluate([net], few, args)
    return costs, (time.perf_counter() - started) / len(few)


def _time_lines(
    args: Namespace,
    sites: list[Site],
    costs: dict[bool, Cost],
    evaluation: float,
    devices: list[torch.device],
) -> list[str]:
    server, total, longest = build_server(args), 0.0, 0.0
    for round in range(args.start_epoch, args.rounds):
        active = server.active(sites, round)
        seconds = sum(costs[site.labeled].of(site.num_samples * args.local_ep) for site in active)
        seconds = seconds / len(devices) + evaluation * is_scored(round, args)
        total, longest = total + seconds, max(longest, seconds)
    kinds = ", ".join(
        f"an image at {'a labelled' if labeled else 'an unlabelled'} client "
        f"{1000 * cost.image:.1f} ms"
        for labeled, cost in costs.items()
    )
    where = f"{len(devices)} x {device_name(devices[0])}"
    return [
        f"measured on {where}: {kinds}, an evaluation {duration(evaluation)}"
        + (f" ({UNCOMPILED})" if devices[0].type == "cuda" else ""),
        f"time: about {duration(total)} for {args.rounds - args.start_epoch} rounds, "
        f"{duration(longest)} for the longest; reading the images the first time comes on top",
    ]


def _memory_line(args: Namespace, devices: list[torch.device], batch: int) -> str:
    device = devices[0]
    if device.type == "cuda":
        recorded = ""
        if choose_compile(args.compile, devices, steps=0) == "graphs":  # which no steps decide
            recorded = ", the recorded passes as much again"
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        whole = torch.cuda.get_device_properties(device).total_memory / 1e9
        return (
            f"memory: {peak:.1f} of the GPU's {whole:.1f} GB in steps of {batch}{recorded}; images "
            "and what clients remember go there, too, as far as they fit (--cache, --client_state)"
        )
    peak = peak_memory() / 1e3
    said = f"memory: {peak:.1f} GB of main memory in steps of {batch}"
    return said if batch == args.batch_size else f"{said}; steps of {args.batch_size} need more"
