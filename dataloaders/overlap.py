"""What two sets of images share: names, patients or lesions, and pixels under another name.

A run keeps digests of what it trained on in seen.json, beside its other files, so that a report on
a later test set can say whether its patients were in training. The file holds no id: digests alone.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from dataloaders.image_files import image_key
from utils.files import write_text
from utils.json_files import read_json
from utils.schema import choice, mapping, nothing_or, record, sequence, text

SEEN_FILE = "seen.json"
_FORMAT = 1
_WHOLE_FLOAT = re.compile(r"(\d+)\.0+")


class DataSet(Protocol):
    """What can be compared: images or volumes with names and, where known, patients."""

    names: list[str]
    groups: list[str] | None
    group_column: str

    def digests(self) -> list[str] | None:
        """One digest of the pixels of each image; None where they are not to be compared."""


class Listed(NamedTuple):
    """Images of which only the list is known: a `DataSet` without pixels."""

    names: list[str]
    groups: list[str] | None
    group_column: str

    def digests(self) -> None:
        """None: nothing was decoded."""


class Members(NamedTuple):
    """Digests of what identifies the images of one set: their names, their pixels (None where
    they are not compared) and their patients or lesions (None where they are not known), which
    `noun` names in a sentence."""

    names: list[str]
    pixels: list[str] | None
    groups: list[str] | None
    noun: str = "patients"


class Overlap(NamedTuple):
    """How many images, and how many patients or lesions, of the set `second` stand in `first`.

    names: images of the same name; pixels: images of the same pixels, under whatever name; groups:
    patients or lesions, which `noun` names. Each is (how many of the second set's, its number of
    them), or None where that cannot be known.
    """

    first: str
    second: str
    names: tuple[int, int]
    pixels: tuple[int, int] | None
    groups: tuple[int, int] | None
    noun: str

    @property
    def images(self) -> int:
        """The larger of the two counts of images."""
        return max(self.names[0], 0 if self.pixels is None else self.pixels[0])

    @property
    def found(self) -> bool:
        """Whether the sets share anything."""
        return bool(self.images or (self.groups and self.groups[0]))

    def words(self) -> str:
        """For example "0 of 76 test patients were in training; 0 of 211 test images by name, 2 by
        their pixels"."""
        where = {"train": "training", "val": "validation"}.get(self.first, self.first)
        if self.groups is None:
            parts = [f"whether {self.second} patients were in {where} is not known"]
        else:
            shared, total = self.groups
            parts = [f"{shared} of {total} {self.second} {self.noun} were in {where}"]
        by_pixels = "" if self.pixels is None else f", {self.pixels[0]} by their pixels"
        parts.append(f"{self.names[0]} of {self.names[1]} {self.second} images by name{by_pixels}")
        return "; ".join(parts)


def members(data: DataSet) -> Members:
    """The digests of a data set's names, pixels and patients or lesions.

    A name counts without its suffix and in one Unicode form; "3.0" and "3" are one patient, as
    pandas writes a column of numbers with and without an empty cell.
    """
    groups = data.groups
    return Members(
        _digests(image_key(name) for name in data.names),
        data.digests(),
        None if groups is None else _digests(plain_group(group) for group in groups),
        "lesions" if "lesion" in data.group_column.lower() else "patients",
    )


def members_of(sets: Mapping[str, DataSet | None]) -> dict[str, Members]:
    """`members` of each set that there is."""
    return {name: members(data) for name, data in sets.items() if data is not None}


def plain_group(group: str) -> str:
    """A patient's or lesion's id in the form in which ids are compared."""
    group = unicodedata.normalize("NFC", str(group).strip())
    whole = _WHOLE_FLOAT.fullmatch(group)
    return whole[1] if whole else group


def compare(first: str, seen: Members, second: str, tested: Members) -> Overlap:
    """What the set `tested`, called `second`, shares with `seen`, called `first`."""
    by_pixels = None
    if seen.pixels is not None and tested.pixels is not None:
        by_pixels = (_count(tested.pixels, seen.pixels), len(tested.pixels))
    by_group = None
    if seen.groups is not None and tested.groups is not None:
        different = list(dict.fromkeys(tested.groups))
        by_group = (_count(different, seen.groups), len(different))
    by_name = (_count(tested.names, seen.names), len(tested.names))
    return Overlap(first, second, by_name, by_pixels, by_group, tested.noun)


def compare_all(sets: Mapping[str, Members]) -> list[Overlap]:
    """Every pair of the sets, a later one compared with each before it."""
    names = list(sets)
    return [
        compare(first, sets[first], second, sets[second])
        for at, second in enumerate(names)
        for first in names[:at]
    ]


def warning_line(overlaps: Iterable[Overlap]) -> str | None:
    """One line about the pairs that share something; None where none does."""
    shared = [overlap.words() for overlap in overlaps if overlap.found]
    return f"warning: the sets overlap: {' | '.join(shared)}" if shared else None


def save_seen(folder: Path, sets: Mapping[str, Members]) -> None:
    """Write seen.json: the digests of the sets "train" and "val", those of them there are."""
    content = {
        name: {key: getattr(sets[name], key) for key in ("names", "pixels", "groups")}
        for name in ("train", "val")
        if name in sets
    }
    write_text(folder / SEEN_FILE, json.dumps({"format": _FORMAT, "sets": content}) + "\n")


_DIGESTS = sequence(text(16), 0, 10**8)
_SEEN = record(
    {
        "format": choice(_FORMAT),
        "sets": mapping(
            choice("train", "val"),
            record(
                {
                    "names": _DIGESTS,
                    "pixels": nothing_or(_DIGESTS),
                    "groups": nothing_or(_DIGESTS),
                }
            ),
            largest=2,
        ),
    }
)


def overlaps_with_run(folder: Path, tested: DataSet) -> list[Overlap]:
    """What a test set shares with the sets of the run in `folder`; [] where it kept no seen.json.
    `UserError` for a file that is none."""
    path = folder / SEEN_FILE
    if not path.exists():
        return []
    seen = read_json(path, _SEEN, "remove it, and reports will not say what was in training")
    found = members(tested)
    return [
        compare(name, Members(**digests), "test", found) for name, digests in seen["sets"].items()
    ]


def _digests(values: Iterable[str]) -> list[str]:
    return [digest(value.encode("utf-8", "surrogatepass")) for value in values]


def digest(content: bytes | memoryview) -> str:
    """64 bits in hexadecimal, for telling things apart."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _count(values: Iterable[str], among: Iterable[str]) -> int:
    among = set(among)
    return sum(value in among for value in values)


def overlap_lines(tables: Mapping[str, DataSet]) -> list[str]:
    """What sets share by their tables alone, before anything is decoded, for a terminal."""
    lists = {n: Listed(t.names, t.groups, t.group_column) for n, t in tables.items()}
    return [
        f"{'warning: ' if overlap.found else ''}{overlap.words()}"
        for overlap in compare_all(members_of(lists))
    ]
