"""What a Decathlon task holds, or nnU-Net's raw data: classes, and the files of each volume."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dataloaders.columns import quoted
from dataloaders.nifti import volume_name
from dataloaders.volumes import FACTS, is_name
from utils.errors import UserError
from utils.json_files import read_json
from utils.schema import anything, mapping, record, text

DATASET_FILE = record(
    {"labels": mapping(text(100), anything, largest=256)},
    {
        "training": anything,
        "test": anything,
        "modality": mapping(text(20), text(100), largest=64),
        "channel_names": mapping(text(20), text(100), largest=64),
        "file_ending": text(20),
        "name": text(200),
    },
)


class Pair(NamedTuple):
    """A volume: its name, the files of its channels (one file may hold several) and its label, None
    where nobody drew one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return self.images if self.label is None else (*self.images, self.label)


class Labels(NamedTuple):
    """names: classes, background first. values: the number of each in the label files."""

    names: tuple[str, ...]
    values: tuple[int, ...]


def read_labels(dataset_dir: Path, content: Mapping) -> Labels:
    """Of dataset.json: MSD's number -> name, or nnU-Net's name -> number."""
    pairs = []
    for key, value in content.items():
        number, name = (key, value) if str(key).isdecimal() else (value, key)
        if not str(number).isdecimal() or not isinstance(name, str) or int(number) > 255:
            raise UserError(
                f"{dataset_dir}/dataset.json: labels: {quoted(str(key))}: {quoted(str(value))}; "
                "give numbers from 0 to 255 and names (regions of nnU-Net are not supported)"
            )
        pairs.append((int(number), name))
    values, names = zip(*sorted(pairs), strict=True)
    bad = [name for name in names if not name or name in FACTS or set(name) & set(",\"'\r\n")]
    if values[0] != 0 or len(set(values)) < len(values) or len(set(names)) < len(names) or bad:
        raise UserError(
            f"{dataset_dir}/dataset.json: labels must name 0, the background, and every other "
            f"number once, by names that a CSV's header can hold; it has {dict(pairs)}"
        )
    if "ignore" in (name.lower() for name in names):
        raise UserError(
            f"{dataset_dir}/dataset.json: nnU-Net's label ignore, of voxels that nobody judged, is "
            "not supported; leave those volumes out"
        )
    if len(values) < 2:
        raise UserError(f"{dataset_dir}/dataset.json: labels name no structure, only background")
    return Labels(names, values)


def find_modality(content: Mapping) -> str:
    """ "ct" where dataset.json says that every channel is CT, else "mr"."""
    channels = content.get("channel_names") or content.get("modality") or {}
    return "ct" if channels and all(name.lower() == "ct" for name in channels.values()) else "mr"


def find_pairs(dataset_dir: Path, content: Mapping, unlabeled: bool = False) -> list[Pair]:
    """The labelled volumes in the order of their names' numbers; with `unlabeled` the others, too.

    MSD lists both, as "training" and "test"; of nnU-Net's dialect the labelled ones are the files
    of labelsTr, and the others what else is in imagesTr and imagesTs. `UserError` for a path that
    leads out of the folder and for files that are not there.
    """
    if content.get("training"):
        pairs = [_listed_pair(dataset_dir, entry) for entry in content["training"]]
        listed = content.get("test") or [] if unlabeled else []
        pairs += [_listed_image(dataset_dir, entry) for entry in listed]
    else:
        pairs = _nnunet_pairs(dataset_dir, content, unlabeled)
    names = [pair.name for pair in pairs]
    labeled = any(pair.label is not None for pair in pairs)
    if not labeled or len(set(names)) < len(names):
        raise UserError(
            f"{dataset_dir}: {'two volumes of one name' if labeled else 'no labelled volumes'}; "
            "give a folder with dataset.json, imagesTr and labelsTr"
        )
    if unlabeled and all(pair.label is not None for pair in pairs):
        raise UserError(
            f"{dataset_dir}: --unlabeled, and every volume has a label; leave the flag out"
        )
    for pair in pairs:
        if not is_name(pair.name):
            raise UserError(
                f"{pair.files[-1]}: {quoted(pair.name)} is to be a VolumeID; rename the files, "
                "letters, digits, . _ - only"
            )
        for path in pair.files:
            if not path.is_file():
                raise UserError(f"{path}: no such file, though dataset.json names {pair.name}")
    return sorted(pairs, key=lambda pair: _natural(pair.name))


def _natural(name: str) -> list:
    """A sorting key that takes x_9 before x_10."""
    digits = "".join(c if c.isdecimal() else " " for c in name).split()
    return [[int(part) for part in digits], name]


def _listed_pair(dataset_dir: Path, entry: object) -> Pair:
    known = entry if isinstance(entry, dict) else {}
    wanted = 'pairs {"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}'
    image, label = (
        _listed_file(dataset_dir, known.get(key), f"training has {quoted(str(entry))}", wanted)
        for key in ("image", "label")
    )
    return Pair(volume_name(label), (image,), label)


def _listed_image(dataset_dir: Path, entry: object) -> Pair:
    value = entry.get("image") if isinstance(entry, dict) else entry
    wanted = 'files "./imagesTs/x.nii.gz"'
    image = _listed_file(dataset_dir, value, f"test has {quoted(str(entry))}", wanted)
    return Pair(volume_name(image), (image,), None)


def _listed_file(dataset_dir: Path, value: object, found: str, wanted: str) -> Path:
    if not isinstance(value, str) or volume_name(Path(value)) is None:
        raise UserError(f"{dataset_dir}/dataset.json: {found}; expected {wanted}")
    path = dataset_dir / value
    if not path.resolve().is_relative_to(dataset_dir.resolve()):
        raise UserError(
            f"{dataset_dir}/dataset.json: {quoted(value)} leads out of the folder; "
            "name files inside it"
        )
    return path


def _nnunet_pairs(dataset_dir: Path, content: Mapping, unlabeled: bool) -> list[Pair]:
    channels = sorted(content.get("channel_names") or {"0": ""}, key=int)
    ending = content.get("file_ending", ".nii.gz")
    endings = [f"_{int(channel):04d}{ending}" for channel in channels]

    def images(name: str, folder: str) -> tuple[Path, ...]:
        return tuple(dataset_dir / folder / f"{name}{end}" for end in endings)

    labels = sorted((dataset_dir / "labelsTr").glob(f"*{ending}"))
    named = {volume_name(label): label for label in labels if volume_name(label) is not None}
    pairs = [Pair(name, images(name, "imagesTr"), label) for name, label in named.items()]
    for folder in ("imagesTr", "imagesTs") if unlabeled else ():
        files = sorted((dataset_dir / folder).glob(f"*{endings[0]}"))
        names = [file.name.removesuffix(endings[0]) for file in files]
        pairs += [Pair(name, images(name, folder), None) for name in names if name not in named]
    return pairs


def read_description(dataset_dir: Path) -> dict:
    """What is used of dataset.json; `UserError` where it is missing or says something else."""
    advice = "give the folder of a Decathlon task, which has dataset.json"
    content = read_json(dataset_dir / "dataset.json", check=anything, advice=advice)
    known = {key: content[key] for key in DATASET_KEYS if key in content}
    try:
        DATASET_FILE(known, "")
    except ValueError as error:
        raise UserError(f"{dataset_dir}/dataset.json: {error}; {advice}") from None
    return known


DATASET_KEYS = ("labels", "training", "test", "modality", "channel_names", "file_ending", "name")
