"""The operator's list of sites: which key may be which client, and whether with labels.

A CSV: client,labeled,key and, where the operator knows it, images, the most that a site may say
it has. key is the file of the site's public key, as registered, relative to the list.

    client,labeled,key,images
    0,1,site_0.pub,1200
    1,0,site_1.pub,
"""

import csv
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization

from dataloaders.columns import read_csv_text
from utils.errors import UserError

COLUMNS = ("client", "labeled", "key", "images")


class Role(NamedTuple):
    """What the operator lets a key be. most_images: None where the list is silent."""

    client: int
    labeled: bool
    most_images: int | None

    def fault(self, client: int, labeled: bool, num_samples: int) -> str | None:
        """Why a node of this role may not be what it says it is, or None."""
        if client != self.client:
            return f"says that it is client {client}, its key is client {self.client}'s"
        if labeled != self.labeled:
            words = ("has no labels", "has labels")
            return f"says that it {words[labeled]}, the list of sites that it {words[self.labeled]}"
        if self.most_images is not None and num_samples > self.most_images:
            return f"says that it has {num_samples} images, the list of sites {self.most_images}"
        return None


def read_roles(path: Path) -> dict[bytes, Role]:
    """The role of each key, by `plain_key`. `UserError` names the line at fault."""
    roles: dict[bytes, Role] = {}
    table = read_csv_text(path)
    if tuple(table.header) not in (COLUMNS, COLUMNS[:3]):
        raise UserError(f"{path} line 1: give the columns {','.join(COLUMNS)}, images or not")
    rows = csv.reader(table.text.rstrip().split("\n")[1:], delimiter=table.separator)
    for line, cells in enumerate(rows, start=2):
        client, labeled, key_file, images = [*map(str.strip, cells), "", "", "", ""][:4]
        if not client.isdecimal() or labeled not in ("0", "1") or not (images or "0").isdecimal():
            raise UserError(
                f"{path} line {line}: give a client's number, labeled 0 or 1, the file of a "
                "public key, and perhaps a number of images"
            )
        key = _read_key(path.parent / key_file, f"{path} line {line}")
        role = Role(int(client), labeled == "1", int(images) if images else None)
        if key in roles or role.client in {known.client for known in roles.values()}:
            raise UserError(f"{path} line {line}: that key or client stands in the list already")
        roles[key] = role
    return roles


def plain_key(content: bytes) -> bytes:
    """A public key (OpenSSH or PEM) in one form, to be compared; `ValueError` for anything else."""
    load = (
        serialization.load_pem_public_key
        if content.lstrip().startswith(b"-----BEGIN")
        else serialization.load_ssh_public_key
    )
    return load(content).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _read_key(path: Path, place: str) -> bytes:
    try:
        return plain_key(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no public key"
        raise UserError(f"{place}: {path}: {reason}; give the file that was registered") from None
