"""A hospital's own side: its data, as its node's configuration names them, and its memory."""

import json
import re
import threading
from argparse import Namespace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from flwr.app import ConfigRecord, Context

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.federated_volumes import refuse_other_preparation, refuse_unlabeled
from dataloaders.patches import VolumeDataset
from dataloaders.table import read_table, read_unlabeled_table
from dataloaders.volumes import TABLE_FILE, open_volumes, read_volumes
from deploy.messages import unpack_flags
from options import RELATION_MIN_AT_SITES
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

NODE_KEYS = ("partition-id", "labeled", "memory")
DATA_KEYS = {"classification": ("csv", "images"), "segmentation": ("volumes",)}


class Stop(Protocol):
    """An event, of this process or of another."""

    def is_set(self) -> bool:
        """Whether it has happened."""


class Site(NamedTuple):
    """One client at its own place: flags, number, data (rows `indices` of `dataset`), a folder
    for what it remembers between rounds, the device it trains on, as `--gpu` takes it, and what
    ends its training at the next step once it `is_set`."""

    args: Namespace
    client: int
    labeled: bool
    dataset: ImageDataset | VolumeDataset
    indices: torch.Tensor
    memory: Path
    gpu: str
    stop: Stop


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
    table and its folder of images; volumes: its folder of `dataloaders.prepare decathlon`, of
    which csv, optional then, lists some. memory: a folder of its own to write to. gpu: optional, as
    `--gpu`. relation-min-samples: optional, what the site insists on whatever the server's flag
    of that name asks for. Raises `UserError` for a key that is missing and for classes other than
    the server's.
    """
    config, args = context.node_config, unpack_flags(task["flags"])
    wanted = NODE_KEYS + DATA_KEYS[args.task]
    if missing := [key for key in wanted if key not in config]:
        raise UserError(f"--node-config: {missing[0]} is missing; give {' '.join(wanted)}")
    insisted = int(config.get("relation-min-samples", RELATION_MIN_AT_SITES))
    args.relation_min_samples = max(insisted, args.relation_min_samples)
    labeled, memory = bool(config["labeled"]), Path(str(config["memory"]))
    class_names = tuple(task["class_names"])
    csv = Path(str(config["csv"])) if "csv" in config else None
    if args.task == "segmentation":
        dataset = site_volumes(
            Path(str(config["volumes"])),
            csv,
            class_names,
            labeled,
            tuple(args.patch_size),
            args.foreground,
            str(task["volumes"]),
        )
    else:
        dataset = site_images(
            csv,
            Path(str(config["images"])),
            class_names,
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
        threading.Event(),
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
    _refuse_other_classes(csv, table.class_names, class_names)
    return load_dataset(table, images, image_size, "auto", cache, print)


@lru_cache(maxsize=1)
def site_volumes(
    folder: Path,
    csv: Path | None,
    class_names: tuple[str, ...],
    labeled: bool,
    patch_size: tuple[int, int, int],
    foreground: float,
    servers: str,
) -> VolumeDataset:
    """A site's volumes, mapped from their files: those that `csv` lists, by default all; prepared
    as the server's are, of which `servers` (JSON) tells."""
    source = csv or folder / TABLE_FILE
    table = read_volumes(source)
    _refuse_other_classes(source, table.class_names, class_names)
    if labeled:
        refuse_unlabeled(table, "at a site with labels")
    dataset = VolumeDataset(open_volumes(folder, table), table, patch_size, foreground)
    channels = dataset.input_shape[0]
    refuse_other_preparation(folder, channels, json.loads(servers), "the server's volumes")
    return dataset


def _refuse_other_classes(source: Path, found: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    if found != wanted:
        raise UserError(
            f"{source} line 1: the classes are {', '.join(found)}, "
            f"the server's are {', '.join(wanted)}"
        )
