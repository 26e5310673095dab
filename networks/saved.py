"""Networks in files: what a checkpoint holds, and the network that it describes."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from networks.densenet import current_names
from networks.kinds import NETWORKS, OLD_DESCRIPTION, OLDEST, check_architecture
from networks.models import Network
from utils.checkpoint import load_checkpoint
from utils.commands import command_line
from utils.errors import UserError
from utils.schema import (
    Mismatch,
    choice,
    mapping,
    number,
    record,
    sequence,
    tensor,
    text,
    whole,
)
from utils.tensors import copy_tensors, find_non_finite, to_host


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
        # Each in memory of its own, wherever they were: what is kept of them keeps no more.
        "state_dict": copy_tensors(to_host(weights)),
        "class_names": list(class_names),
        "architecture": dict(architecture),
        "preprocessing": dict(preprocessing),
        "preset": preset,
        "round": round,
    }


FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
STATE_DICT = mapping(text(200), tensor((*FLOATING, torch.int64)), largest=10_000)
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
    described = content.get("architecture", {}) if "class_names" in content else {}
    kind = NETWORKS[described.get("network", OLDEST)]
    if not any(name.removeprefix("module.") == kind.head for name in weights):
        raise Mismatch(f"no weights of this {kind.title} in it (no {kind.head})")
    value = next(value for name, value in weights.items() if name.endswith(kind.head))
    tensor(FLOATING, (None,) * kind.head_dims)(value, kind.head)


def find_checkpoint(path: Path) -> Path:
    """`path`, or where it is a run's folder the last of its checkpoints.

    Raises `UserError` where there is none.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a run's folder or a checkpoint")
    if not path.is_dir():
        return path
    numbered = weights_by_round(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if not numbered:
        finish = command_line("train_main.py", {"resume": path, "finish": True})
        raise UserError(
            f"{path}: has no checkpoints/epoch_N.pth yet; name a finished run, or write one with "
            f"{finish}"
        )
    return numbered[max(numbered)]


def weights_by_round(folder: Path) -> dict[int, Path]:
    """The epoch_N.pth files in `folder` by N."""
    return {
        int(found[1]): file
        for file in folder.iterdir()
        if (found := re.fullmatch(r"epoch_(\d+)\.pth", file.name))
    }


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
    content["architecture"] = {"network": OLDEST} | content["architecture"]
    num_outputs = weights[NETWORKS[content["architecture"]["network"]].head].shape[0]
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


def model_bytes(net: Network) -> int:
    """Bytes of a network's parameters and statistics."""
    return sum(value.nbytes for value in net.state_dict().values())
