"""Checkpoints: written whole or not at all, with a checksum, read without running any code.

A file is what `torch.save` writes, followed by a mark and the SHA-256 of all bytes before it.
Programs that know only torch read it as usual.
"""

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch

from networks.models import ATTENTIONS, MODES, DenseNet121
from utils.errors import UserError
from utils.files import atomic_write

MARK = b"FEDIRM-1"
DIGEST_BYTES = hashlib.sha256().digest_size
HEAD = "densenet121.classifier.0.weight"


class _HashingFile:
    """A file for `torch.save` to write to, which keeps the SHA-256 of what passed through."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: Path, content: Mapping) -> None:
    """Write tensors and plain types to `path`; a full disk is a `UserError` with the sizes."""
    try:
        with atomic_write(path) as file:
            hashing = _HashingFile(file)
            torch.save(dict(content), hashing)
            file.write(MARK + hashing.digest.digest())
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else errno.ENOSPC
        if number not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, needed = free_bytes(path.parent) / 1e6, tensor_bytes(content) / 1e6
        raise UserError(
            f"{path}: disk full, {free:.0f} MB free and about {needed:.0f} MB needed: "
            "free some space and go on with --resume"
        ) from error


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint; tensors and plain types only (`weights_only`), never code.

    Raises `UserError` when the file is missing, damaged, or holds anything else. A file without
    this project's mark (the released program's) is read without a checksum.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an existing checkpoint") from error
    tail = len(MARK) + DIGEST_BYTES
    if raw[-tail:-DIGEST_BYTES] == MARK:
        raw, digest = raw[:-tail], raw[-DIGEST_BYTES:]
        if hashlib.sha256(raw).digest() != digest:
            raise UserError(f"{path}: damaged (its checksum does not fit); use an earlier one")
    try:
        content = torch.load(io.BytesIO(raw), map_location=map_location, weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def tensor_bytes(content) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(tensor_bytes(value) for value in content.values())
    if isinstance(content, (list, tuple)):
        return sum(tensor_bytes(value) for value in content)
    return 0


def model_content(
    weights: Mapping[str, torch.Tensor],
    class_names: tuple[str, ...],
    architecture: Mapping,
    preprocessing: Mapping,
    preset: str,
    round: int,
) -> dict:
    """What an epoch_N.pth holds: all that test.py needs to use the weights on new images.

    architecture: mode, drop_rate, attention of `DenseNet121`. preprocessing: image_size, and how
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


def load_model(
    path: Path, class_names: tuple[str, ...] | None = None
) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict, everything else) of a checkpoint of this project or of the released program.

    The released program's files hold no class names: `class_names` gives them. Where the file has
    its own, they win, and `UserError` says when `class_names` contradicts them.
    """
    content = load_checkpoint(path)
    weights = content.pop("state_dict", None)
    if weights is None:
        weights, content = content, {}
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if HEAD not in weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise UserError(f"{path}: no weights of this DenseNet121 in it (no {HEAD})")
    own = content.get("class_names")
    if own is None and class_names is None:
        raise UserError(f"{path}: holds no class names; give them with --class_names A B C ...")
    if own is not None and class_names is not None and list(own) != list(class_names):
        raise UserError(
            f"{path}: made for the classes {', '.join(own)}, not {', '.join(class_names)}"
        )
    content["class_names"] = list(own or class_names)
    content.setdefault("architecture", {"mode": "U-Ones", "drop_rate": 0.2, "attention": "none"})
    num_outputs = weights[HEAD].shape[0]
    if num_outputs != len(content["class_names"]):
        raise UserError(
            f"{path}: {num_outputs} outputs, but {len(content['class_names'])} class names"
        )
    return weights, content


def build_network(architecture: Mapping, class_names: list[str] | tuple[str, ...]) -> DenseNet121:
    """The network that `architecture` (mode, drop_rate, attention) describes, random weights.

    `class_names` are those of the data set, "uncertain" of U-MultiClass among them.
    """
    mode, attention = architecture["mode"], architecture["attention"]
    if mode not in MODES or attention not in ATTENTIONS:
        raise UserError(f"checkpoint of an unknown architecture: {mode}, attention {attention}")
    out_size = len(class_names) - (mode == "U-MultiClass")
    return DenseNet121(out_size, mode, architecture["drop_rate"], attention)


def load_weights(net: DenseNet121, weights: Mapping[str, torch.Tensor], source: Path) -> None:
    """Load `weights` into `net`; a network with attention also takes weights without it."""
    try:
        missing, unexpected = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{source}: weights of another network: {reason}") from error
    odd = [name for name in missing if not name.startswith("attention.")] + unexpected
    if odd:
        raise UserError(f"{source}: weights of another network (entry {odd[0]})")


def free_bytes(folder: Path) -> int:
    """Free space of the file system that `folder` (or its nearest existing parent) lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.path.realpath(folder)).free
