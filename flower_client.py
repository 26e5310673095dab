"""The client of a federation on Flower: the trainers of the plain loop, called by messages.

`client_app` is what a SuperNode runs for one hospital. The hospital names its data in its node's
own configuration; what the server sends never contains a path.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.table import read_table
from dataloaders.unlabeled import read_unlabeled_table
from federation import build_client, build_networks
from flower_messages import pack_update, unpack_flags, unpack_matrix, unpack_weights
from networks.models import DenseNet121
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.client_checks import find_bad_number
from utils.devices import (
    choose_devices,
    set_deterministic,
)
from utils.errors import UserError

NODE_KEYS = ("partition-id", "labeled", "csv", "images", "memory")


class Site(NamedTuple):
    """One client at its own place: flags, number, images (rows `indices` of `dataset`), a folder
    for what it remembers between rounds, the device it trains on, as `--gpu` takes it, and a file
    whose appearance ends its training at the next step."""

    args: Namespace
    client: int
    labeled: bool
    dataset: ImageDataset
    indices: torch.Tensor
    memory: Path
    gpu: str
    stop: Path


class StopFile(NamedTuple):
    """In the place of a trainer's `stop`: an event that another process may set."""

    path: Path

    def is_set(self) -> bool:
        """Whether the file has appeared."""
        return self.path.exists()


OpenSite = Callable[[Context, ConfigRecord], Site]


def build_client_app(open_site: OpenSite) -> ClientApp:
    """The ClientApp of whoever `open_site` finds in a node's context and the server's task."""
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        site = open_site(context, message.content["task"])
        record = ConfigRecord(
            {"client": site.client, "labeled": site.labeled, "num_samples": len(site.indices)}
        )
        return Message(RecordDict({"site": record}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = open_site(context, message.content["task"])
        return Message(train_site(site, message.content), reply_to=message)

    return app


def train_site(site: Site, content: RecordDict) -> RecordDict:
    """One round of local training as `content` asks for it; the answer's content."""
    task, args = content["task"], site.args
    set_deterministic(bool(args.deterministic))
    device = choose_devices(site.gpu, print)[0]
    net = network_on(device, site.dataset.class_names, task["flags"])
    memory = Memory(site.memory, task["experiment"], site.client)
    trainer = build_client(args, site.dataset, site.indices, site.client, site.labeled)
    trainer.stop = StopFile(site.stop)
    recalled = memory.recall(task["memory_round"])
    if recalled is not None:
        trainer.load_state_dict(recalled)
    weights = unpack_weights(content["weights"], net.state_dict())
    target = unpack_matrix("target", task, len(site.dataset.class_names))
    update = trainer.train(net, weights, task["round"], target)
    if (fault := find_bad_number(update, trainer.state_dict())) is None:
        memory.remember(task["round"], trainer.state_dict(), task["memory_round"])
    else:
        # The server will turn the answer away; which images to look at is nobody's but the site's.
        names = ", ".join(site.dataset.names[index] for index in update.suspects)
        print(f"client {site.client}, round {task['round']}: {fault}; look at the images {names}")
    return pack_update(update, site.client, -1 if recalled is None else task["memory_round"])


@lru_cache(maxsize=1)
def network_on(device: torch.device, class_names: tuple[str, ...], flags: str) -> DenseNet121:
    """The network on which this process trains its clients, one after the other."""
    return build_networks(unpack_flags(flags), class_names, [device])[0]


class Memory:
    """What a client remembers between rounds: one checksummed file for each of the last two.

    Two, because the server may ask for a round again: its own stop, or an answer that came too
    late, leaves a memory that the server does not count.
    """

    def __init__(self, folder: Path, experiment: str, client: int):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", experiment):
            raise UserError(f"--run_dir: a folder named {experiment!r}; use letters, digits, . _ -")
        self.folder = folder / experiment
        self.client = client

    def recall(self, round: int) -> dict | None:
        """The memory of after `round`; None for -1 and where the file is gone or damaged."""
        path = self._path(round)
        if round < 0 or not path.exists():
            return None
        try:
            return load_checkpoint(path)["memory"]
        except UserError as error:
            print(error)
            return None

    def remember(self, round: int, memory: dict, before: int) -> None:
        """Keep the memory of after `round`, and of `before`; remove all others."""
        save_checkpoint(self._path(round), {"memory": memory})
        for path in self.folder.glob(f"client_{self.client}_*.pth"):
            if path not in (self._path(round), self._path(before)):
                path.unlink()

    def _path(self, round: int) -> Path:
        return self.folder / f"client_{self.client}_{round:06d}.pth"


def own_site(context: Context, task: ConfigRecord) -> Site:
    """The site that a SuperNode's own configuration describes (`--node-config`).

    partition-id: the client's number. labeled: whether it trains on labels. csv, images: its
    table and its folder of images. memory: a folder of its own to write to. gpu: optional, as
    `--gpu`. Raises `UserError` for a key that is missing and for classes other than the server's.
    """
    config = context.node_config
    if missing := [key for key in NODE_KEYS if key not in config]:
        raise UserError(f"--node-config: {missing[0]} is missing; give {' '.join(NODE_KEYS)}")
    args = unpack_flags(task["flags"])
    labeled, memory = bool(config["labeled"]), Path(str(config["memory"]))
    dataset = site_images(
        Path(str(config["csv"])),
        Path(str(config["images"])),
        tuple(task["class_names"]),
        labeled,
        (args.label_uncertainty, args.multi_label),
        args.image_size,
        memory / "images",
    )
    return Site(
        args,
        int(config["partition-id"]),
        labeled,
        dataset,
        torch.arange(len(dataset)),
        memory,
        str(config.get("gpu", "0")),
        memory / "stop",
    )


@lru_cache(maxsize=1)
def site_images(
    csv: Path,
    images: Path,
    class_names: tuple[str, ...],
    labeled: bool,
    label_rules: tuple[str, str],
    image_size: int,
    cache: Path,
) -> ImageDataset:
    """A site's images, decoded once into `cache`."""
    table = read_table(csv, *label_rules) if labeled else read_unlabeled_table(csv, class_names)
    if table.class_names != class_names:
        raise UserError(
            f"{csv} line 1: the classes are {', '.join(table.class_names)}, "
            f"the server's are {', '.join(class_names)}"
        )
    return load_dataset(table, images, image_size, "auto", cache, print)


client_app = build_client_app(own_site)
