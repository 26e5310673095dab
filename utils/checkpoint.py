"""Checkpoints: written whole or not at all, with a checksum, read without running any code.

A file is what `torch.save` writes, followed by a mark and the SHA-256 of all bytes before it.
Programs that know only torch read it as usual.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import atomic_write
from utils.schema import Check, Mismatch, anything, shown
from utils.stored_tensors import UnsafeFile, build, describe
from utils.tensors import find_non_finite

MARK = b"FEDIRM-1"
DIGEST_BYTES = hashlib.sha256().digest_size
TAIL_BYTES = len(MARK) + DIGEST_BYTES
# An entry of every file written here: one that has it must also have the mark and the checksum.
CHECKED = "has_checksum"


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


def load_checkpoint(path: Path, digest: str | None = None, check: Check = anything) -> dict:
    """Read a checkpoint onto the CPU; tensors and plain types only, never code.

    `check` sees the content before any tensor is made, with a `TensorClaim` for each.
    Raises `UserError` when the file is missing, damaged, holds anything else, is not what `check`
    takes, or is not the one with the SHA-256 `digest` that `save_checkpoint` returned. A file that
    this project did not write (the released program's) has no checksum and is read without one.
    """
    raw = _read(path)
    checked = _refuse_damaged(path, raw, digest)
    try:
        description = describe(raw)
        content = description.content
        if not isinstance(content, dict):
            raise Mismatch(f"holds {shown(content)}, not a checkpoint")
        if content.pop(CHECKED, checked) is not checked:
            raise UserError(f"{path}: damaged (its checksum is missing); use an earlier one")
        check(content, "")
        return build(description)
    except (UnsafeFile, Mismatch) as error:
        raise UserError(f"{path}: not a checkpoint that is read: {error}") from error


def verify_checkpoint(path: Path, digest: str) -> None:
    """Raise `UserError` unless `path` is what `save_checkpoint` wrote when it returned `digest`."""
    _refuse_damaged(path, _read(path), digest)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name an existing checkpoint") from error


def _refuse_damaged(path: Path, raw: bytes, digest: str | None) -> bool:
    """Whether the file has a checksum; `UserError` where that, or `digest`, does not fit."""
    has_mark = raw[-TAIL_BYTES:-DIGEST_BYTES] == MARK
    if not has_mark and digest is None:
        return False
    found = hashlib.sha256(memoryview(raw)[:-TAIL_BYTES]).digest()
    if not has_mark or found != raw[-DIGEST_BYTES:]:
        raise UserError(f"{path}: damaged (its checksum does not fit); use an earlier one")
    if digest not in (None, found.hex()):
        raise UserError(f"{path}: not the file that was saved with the others; use an earlier one")
    return True
