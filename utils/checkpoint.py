"""Checkpoints: written whole or not at all, with a checksum, read without running any code.

A file is what `torch.save` writes, followed by a mark and the SHA-256 of all bytes before it.
Programs that know only torch read it as usual.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch

from networks.models import ATTENTIONS, MODES, DenseNet121
from utils.errors import UserError
from utils.files import atomic_write
from utils.nested import find_non_finite

MARK = b"FEDIRM-1"
DIGEST_BYTES = hashlib.sha256().digest_size
TAIL_BYTES = len(MARK) + DIGEST_BYTES
# An entry of every file written here: one that has it must also have the mark and the checksum.
CHECKED = "has_checksum"
HEAD = "densenet121.classifier.0.weight"


def save_checkpoint(path: Path, content: Mapping) -> str:
    """Write tensors and plain types to `path`, whole or not at all; their SHA-256 in hex.

    Raises `UserError` for a full disk, with the sizes, and for a tensor that is not finite: such
    a number would come back from every later use of the file.
    """
    if (name := find_non_finite(content)) is not None:
        raise UserError(f"{path}: not written, {name} holds numbers that are not finite")
    buffer = io.BytesIO()
    torch.save({**content, CHECKED: True}, buffer)
    digest = hashlib.sha256(buffer.getbuffer())
    with atomic_write(path, needed=buffer.tell() + TAIL_BYTES) as file:
        file.write(buffer.getbuffer())
        file.write(MARK + digest.digest())
    return digest.hexdigest()


def load_checkpoint(path: Path, digest: str | None = None) -> dict:
    """Read a checkpoint onto the CPU; tensors and plain types only (`weights_only`), never code.

    Raises `UserError` when the file is missing, damaged, holds anything else, or is not the one
    with the SHA-256 `digest` that `save_checkpoint` returned. A file that this project did not
    write (the released program's) has no checksum and is read without one.
    """
    raw = _read(path)
    checked = _refuse_damaged(path, raw, digest)
    try:
        stream = io.BytesIO(raw[:-TAIL_BYTES] if checked else raw)
        content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    if content.pop(CHECKED, checked) != checked:
        raise UserError(f"{path}: damaged (its checksum is missing); use an earlier one")
    return content


def verify_checkpoint(path: Path, digest: str) -> None:
    """Raise `UserError` unless `path` is what `save_checkpoint` wrote when it returned `digest`."""
    _refuse_damaged(path, _read(path), digest)


def _read(path: Path) -> memoryview:
    try:
        return memoryview(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an existing checkpoint") from error


def _refuse_damaged(path: Path, raw: memoryview, digest: str | None) -> bool:
    """Whether the file has a checksum; `UserError` where that, or `digest`, does not fit."""
    has_mark = raw[-TAIL_BYTES:-DIGEST_BYTES] == MARK
    if not has_mark and digest is None:
        return False
    found = hashlib.sha256(raw[:-TAIL_BYTES]).digest()
    if not has_mark or found != raw[-DIGEST_BYTES:]:
        raise UserError(f"{path}: damaged (its checksum does not fit); use an earlier one")
    if digest not in (None, found.hex()):
        raise UserError(f"{path}: not the file that was saved with the others; use an earlier one")
    return True


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
    weights = _plain_state_dict(path, weights)
    _refuse_odd_description(path, content)
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


def starting_weights(
    path: Path, class_names: tuple[str, ...], architecture: Mapping
) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint to start a run of these classes and this network from.

    Raises `UserError`, before any network is built, where the file was made for others.
    """
    weights, content = load_model(path, class_names)
    attention = content["architecture"]["attention"]
    if attention not in ("none", architecture["attention"]):
        raise UserError(
            f"{path}: made with --attention {attention}, this run has --attention "
            f"{architecture['attention']}; use the same"
        )
    return weights


def _plain_state_dict(path: Path, weights) -> dict[str, torch.Tensor]:
    """`weights` without "module." prefixes, if they can be those of a DenseNet121."""
    named = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    plain = {name.removeprefix("module."): weights[name] for name in weights} if named else {}
    tensors = all(isinstance(value, torch.Tensor) for value in plain.values())
    if not tensors or HEAD not in plain or plain[HEAD].ndim != 2:
        raise UserError(f"{path}: no weights of this DenseNet121 in it (no {HEAD})")
    if (name := find_non_finite(plain)) is not None:
        raise UserError(f"{path}: {name} holds numbers that are not finite; use an earlier one")
    return plain


def _refuse_odd_description(path: Path, content: Mapping) -> None:
    """Raise `UserError` unless what a file says about its weights has the right form."""
    names = content.get("class_names", [])
    described = content.get("architecture", {"mode": "", "drop_rate": 0.0, "attention": ""})
    preprocessing = content.get("preprocessing", {})
    if not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(described, dict)
        and described.keys() == {"mode", "drop_rate", "attention"}
        and isinstance(described["drop_rate"], (int, float))
        and 0 <= described["drop_rate"] < 1
        and isinstance(preprocessing, dict)
        and isinstance(preprocessing.get("image_size", 1), int)
        and isinstance(preprocessing.get("dicom", {}), dict)
    ):
        raise UserError(f"{path}: describes its weights in a way this program does not know")


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
