"""Networks in files: what a checkpoint holds, and the network that it describes."""

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from networks.densenet import current_names
from networks.models import ATTENTIONS, MODES, DenseNet121, Network
from networks.unet3d import UNet3d
from utils.checkpoint import load_checkpoint
from utils.commands import command_line
from utils.errors import UserError
from utils.schema import (
    Mismatch,
    anything,
    choice,
    mapping,
    number,
    record,
    sequence,
    tensor,
    text,
    whole,
)
from utils.tensors import find_non_finite

HEAD = "densenet121.classifier.0.weight"
# The weights of each network's last layer, (C, ...): a file of it has them.
HEADS = {"densenet121": HEAD, "unet3d": "head.weight"}
TITLES = {"densenet121": "DenseNet121", "unet3d": "3D U-Net"}
OLD_DESCRIPTION = {
    "mode": "U-Ones",
    "drop_rate": 0.2,
    "attention": "none",
}  # as released


def _densenet121(architecture: Mapping, class_names: Sequence[str]) -> Network:
    mode, attention = architecture["mode"], architecture["attention"]
    out_size = len(class_names) - (mode == "U-MultiClass")
    return DenseNet121(out_size, mode, architecture["drop_rate"], attention)


def _unet3d(architecture: Mapping, class_names: Sequence[str]) -> Network:
    return UNet3d(
        architecture["in_channels"],
        len(class_names),
        architecture["channels"],
        architecture["residual_units"],
        architecture["drop_rate"],
    )


# What builds each network from a checkpoint's description and its class names, weights at random.
NETWORKS: dict[str, Callable[[Mapping, Sequence[str]], Network]] = {
    "densenet121": _densenet121,
    "unet3d": _unet3d,
}


def model_content(
    weights: Mapping[str, torch.Tensor],
    class_names: tuple[str, ...],
    architecture: Mapping,
    preprocessing: Mapping,
    preset: str,
    round: int,
) -> dict:
    """What an epoch_N.pth holds: all that test.py needs to use the weights on new images.

    architecture: as `architecture` returns it. preprocessing: image_size, and how
    DICOM files became images where that is known. round: the round that made the weights.
    """
    return {
        "state_dict": {name: value.detach().cpu() for name, value in weights.items()},
        "class_names": list(class_names),
        "architecture": dict(architecture),
        "preprocessing": dict(preprocessing),
        "preset": preset,
        "round": round,
    }


FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
STATE_DICT = mapping(text(200), tensor((*FLOATING, torch.int64)), largest=10_000)
# What each network's description holds; the first version knew DenseNet121 and did not name it.
DESCRIPTIONS = {
    "densenet121": record(
        {
            "mode": choice(*MODES),
            "drop_rate": number(0, 1 - 1e-6),
            "attention": choice(*ATTENTIONS),
        },
        {"network": choice("densenet121")},
    ),
    "unet3d": record(
        {
            "network": choice("unet3d"),
            "in_channels": whole(1, 64),
            "channels": sequence(whole(1, 4096), 2, 8),
            "residual_units": whole(0, 16),
            "drop_rate": number(0, 1 - 1e-6),
        }
    ),
}


def check_architecture(value: object, place: str) -> None:
    """`Mismatch` unless a file describes a network that this version knows."""
    mapping(text(100), anything, largest=100)(value, place)
    name = value.get("network", "densenet121")
    choice(*NETWORKS)(name, f"{place}/network")
    DESCRIPTIONS[name](value, place)


DICOM = record({"window": text(100), "size": whole(16, 1024)})
VOLUMES = record(
    {
        "modality": choice("mr", "ct"),
        "ct_window": sequence(number(-1e6, 1e6), 2, 2),
        "spacing": sequence(number(1e-3, 1e3), 3, 3),
        "channels": whole(1, 64),
        "patch_size": sequence(whole(1, 4096), 3, 3),
    },
    {"values": sequence(whole(0, 255), 2, 256)},
)
# The range of the training images, see `dataloaders.likeness`.
PICTURES = mapping(text(20), sequence(number(0, 255), 2, 2), largest=20)
PREPROCESSING = record(
    {},
    {"image_size": whole(8, 8192), "dicom": DICOM, "volumes": VOLUMES, "pictures": PICTURES},
)
MODEL_FILE = record(
    {
        "state_dict": STATE_DICT,
        "class_names": sequence(text(200), 1, 10_000),
    },
    {
        "architecture": check_architecture,
        "preprocessing": PREPROCESSING,
        "preset": text(100),
        "round": whole(0, 10**9),
    },
)


def check_model(content: Mapping, place: str) -> None:
    """`Mismatch` unless a file is one of this project's, or weights of the released program's.

    The latter name no classes, and what else they hold (an optimizer, an epoch) is not read.
    """
    if "class_names" in content:
        MODEL_FILE(content, place)
        if len(set(content["class_names"])) < len(content["class_names"]):
            raise Mismatch("class_names names a class twice")
        weights = content["state_dict"]
    else:
        weights = content.get("state_dict", content)
        STATE_DICT(weights, "state_dict" if weights is not content else "")
    network = content.get("architecture", {}).get("network", "densenet121")
    head = HEADS[network if "class_names" in content else "densenet121"]
    if not any(name.removeprefix("module.") == head for name in weights):
        raise Mismatch(f"no weights of this {TITLES[network]} in it (no {head})")
    value = next(value for name, value in weights.items() if name.endswith(head))
    tensor(FLOATING, (None,) * (2 if head == HEAD else 5))(value, head)


def find_checkpoint(path: Path) -> Path:
    """`path`, or where it is a run's folder the last of its checkpoints.

    Raises `UserError` where there is none.
    """
    if not path.is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    numbered = {
        int(found[1]): file
        for file in folder.iterdir()
        if (found := re.fullmatch(r"epoch_(\d+)\.pth", file.name))
    }
    if not numbered:
        finish = command_line("train_main.py", {"resume": path, "finish": True})
        raise UserError(
            f"{path}: has no checkpoints/epoch_N.pth yet; name a finished run, or write one with "
            f"{finish}"
        )
    return numbered[max(numbered)]


def load_model(
    path: Path, class_names: tuple[str, ...] | None = None
) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict, everything else) of a checkpoint of this project or of the released program.

    The released program's files hold no class names: `class_names` gives them. Where the file has
    its own, they win, and `UserError` says when `class_names` contradicts them.
    """
    content = load_checkpoint(path, check=check_model)
    if "class_names" not in content:
        content = {"state_dict": content.get("state_dict", content)}
    weights = current_names(content.pop("state_dict"))
    if (name := find_non_finite(weights)) is not None:
        raise UserError(f"{path}: {name} holds numbers that are not finite; use an earlier one")
    own = content.get("class_names")
    if own is None and class_names is None:
        raise UserError(f"{path}: holds no class names; give them with --class_names A B C ...")
    if own is not None and class_names is not None and list(own) != list(class_names):
        raise UserError(
            f"{path}: made for the classes {', '.join(own)}, not {', '.join(class_names)}"
        )
    content["class_names"] = list(own or class_names)
    content.setdefault("architecture", OLD_DESCRIPTION)
    # Checkpoints of version 0.1 knew one network and did not name it.
    content["architecture"] = {"network": "densenet121"} | content["architecture"]
    num_outputs = weights[HEADS[content["architecture"]["network"]]].shape[0]
    if num_outputs != len(content["class_names"]):
        raise UserError(
            f"{path}: {num_outputs} outputs, but {len(content['class_names'])} class names"
        )
    return weights, content


def starting_weights(
    path: Path, class_names: tuple[str, ...], architecture: Mapping
) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint to start a run of these classes and this network from.

    Raises `UserError`, before any network is built, where the file was made for others.
    """
    weights, content = load_model(path, class_names)
    theirs, ours = content["architecture"], architecture
    # Dropout has no weights, a label's meaning none either; without attention others fit, too.
    free = {"drop_rate", "mode"} | ({"attention"} if theirs.get("attention") == "none" else set())
    for name in ("network", *sorted(ours.keys() | theirs.keys())):
        if name not in free and theirs.get(name) != ours.get(name):
            flag = FLAGS.get(name, name)
            raise UserError(
                f"{path}: made with --{flag} {theirs.get(name)}, this run has --{flag} "
                f"{ours.get(name)}; use the same"
            )
    return weights


def build_network(architecture: Mapping, class_names: Sequence[str]) -> Network:
    """The network that `architecture` describes (see there), with random weights.

    `class_names` are those of the data set, "uncertain" of U-MultiClass among them.
    """
    return NETWORKS[architecture["network"]](architecture, class_names)


def load_weights(net: Network, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load `weights` into `net`; a network with attention also takes weights without it."""
    try:
        missing, unexpected = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{source}: weights of another network: {reason}") from error
    # PyTorch before 0.4.1 had no step counters; here they are not read.
    free = [name for name in missing if name.endswith("num_batches_tracked")]
    free += [name for name in missing if name.startswith("attention.")]
    odd = [name for name in missing if name not in free] + unexpected
    if odd:
        raise UserError(f"{source}: weights of another network (entry {odd[0]})")


# What a description calls by another name than the flag that decides it.
FLAGS = {"channels": "unet_channels", "in_channels": "channels"}


def architecture(args: Namespace) -> dict:
    """What `build_network` needs to know of the flags: the network and what it is made of."""
    if args.network == "unet3d":
        return {
            "network": args.network,
            "in_channels": args.channels,
            "channels": list(args.unet_channels),
            "residual_units": args.residual_units,
            "drop_rate": args.drop_rate,
        }
    return {
        "network": args.network,
        "mode": args.label_uncertainty,
        "drop_rate": args.drop_rate,
        "attention": args.attention,
    }


def model_bytes(net: Network) -> int:
    """Bytes of a network's parameters and statistics."""
    return sum(value.nbytes for value in net.state_dict().values())
