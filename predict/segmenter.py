"""A saved 3D U-Net on volumes: a held-out list with labels, or NIfTI files without."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.federated_volumes import refuse_other_preparation, refuse_unlabeled
from dataloaders.nifti import (
    BYTES_PER_VOXEL,
    Volume,
    find_volumes,
    normalise,
    read_channels,
    read_nifti,
    refuse_too_large,
    resample,
    resampled_shape,
    write_labels,
)
from dataloaders.patches import VolumeDataset
from dataloaders.volumes import open_volumes, read_volumes
from networks.devices import full_memory
from networks.models import Network
from networks.saved import load_model
from predict.model import ready_network
from predict.scans import left_out_lines
from predict.volume_report import TEST_LIST
from predict.volumes import class_probabilities
from utils.commands import command_line
from utils.errors import UserError
from utils.files import write_text
from utils.table_files import to_csv
from utils.tensors import net_device

PREDICTED_FILE = "predictions.csv"
BYTES_PER_CLASS = 16  # and voxel: outputs, their weights, softmax, and it on another grid


class Segmenter(NamedTuple):
    """A checkpoint's network in its place, and everything in the file but its weights."""

    path: Path
    net: Network
    content: Mapping
    precision: str

    @property
    def prepared(self) -> Mapping:
        """How its training volumes were made."""
        found = self.content.get("preprocessing", {}).get("volumes")
        if found is None:
            raise UserError(f"{self.path}: does not say how its volumes were made; train it again")
        return found

    @property
    def class_names(self) -> list[str]:
        """Background first."""
        return self.content["class_names"]

    def segment(self, volume: Volume, name: str) -> np.ndarray:
        """The class of every voxel of `volume` on the file's own grid, uint8 (X, Y, Z).

        The volume becomes what the network was trained on, float16 included; where that has other
        voxels, its probabilities are brought back before the largest is taken. `ValueError` for a
        volume that the network cannot see.
        """
        prepared = self.prepared
        if len(volume.data) != prepared["channels"]:
            raise ValueError(
                f"has {len(volume.data)} channel(s), the network was trained on "
                f"{prepared['channels']}"
            )
        own = volume.data.shape[1:]
        shape = resampled_shape(own, volume.spacing, tuple(prepared["spacing"]))
        each = BYTES_PER_VOXEL * len(volume.data)
        if shape != own or net_device(self.net).type == "cpu":  # else probabilities stay on the GPU
            each += BYTES_PER_CLASS * len(self.class_names)
        refuse_too_large(max(math.prod(shape), math.prod(own)) * each)
        normal = normalise(volume.data, prepared["modality"], tuple(prepared["ct_window"]))
        seen = resample(normal, shape).astype(np.float16).astype(np.float32)
        found = class_probabilities(self.net, seen, prepared["patch_size"], name)
        if shape != own:
            found = torch.from_numpy(resample(found.cpu().numpy(), own))
        return volume.restore(found.argmax(dim=0).to("cpu", torch.uint8).numpy())

    def values(self) -> np.ndarray:
        """The number that each class has in the label files it was trained on, uint8 (C,)."""
        numbers = self.prepared.get("values", range(len(self.class_names)))
        return np.array(list(numbers), dtype=np.uint8)


def load_segmenter(
    path: Path,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    class_names: Sequence[str] | None = None,
) -> Segmenter | None:
    """The 3D U-Net in a checkpoint; None where the checkpoint holds a network of images.

    All but `path` as in `predict.load`. Raises `UserError` for what cannot be used.
    """
    weights, content = load_model(path, class_names)
    if content["architecture"]["network"] != "unet3d":
        return None
    net, precision = ready_network(path, weights, content, device, precision, say)
    return Segmenter(path, net, content, precision)


def open_held_out(model: Segmenter, folder: Path, listed: Path) -> VolumeDataset:
    """The labelled volumes of `folder` that the CSV `listed` names, for this model.

    Raises `UserError` for other classes, for a volume that nobody labelled, and for volumes
    prepared otherwise than its training's.
    """
    table = read_volumes(listed)
    if list(table.class_names) != model.class_names:
        raise UserError(
            f"{listed}: its classes are {', '.join(table.class_names)}, but {model.path} was made "
            f"for {', '.join(model.class_names)}"
        )
    refuse_unlabeled(table, "in the list to be tested")
    arrays = open_volumes(folder, table)
    whose = f"the training volumes of {model.path}"
    refuse_other_preparation(folder, len(arrays[0]) - 1, model.prepared, whose)
    return VolumeDataset(arrays, table, tuple(model.prepared["patch_size"]))


def predict_volumes(model: Segmenter, paths: Sequence[Path], out: Path) -> list[str]:
    """NAME.nii.gz in `out` for every NIfTI file among `paths` or below them, and predictions.csv;
    for the terminal, how many were written and what was left out.

    A file has its source's shape, affine and orientation, and the numbers that the label files of
    the training had. The channels of a volume are one file, or one each as nnU-Net names them
    (NAME_0000.nii.gz, ...). predictions.csv says the millilitres of each structure, or why a volume
    could not be read; it has what was done also where the command ends early. Raises `UserError`
    where files share a name or `out` holds the sources.
    """
    volumes = by_volume(find_volumes(paths, out), model.prepared["channels"])
    structures = model.class_names[1:]
    rows, written = [], 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name, files in tqdm(volumes.items(), unit="volume", disable=None):
            try:
                volume, classes = _segmented(model, files)
            except ValueError as error:
                rows.append([name, str(files[0]), *[""] * len(structures), str(error)])
                continue
            write_labels(out / f"{name}.nii.gz", model.values()[classes], volume)
            counts = np.bincount(classes.ravel(), minlength=len(model.class_names))[1:]
            millilitres = counts * np.prod(volume.spacing) / 1000
            rows.append([name, str(files[0]), *(f"{ml:.4g}" for ml in millilitres), ""])
            written += 1
    finally:
        header = ["VolumeID", "file", *(f"{structure}_ml" for structure in structures), "note"]
        write_text(out / PREDICTED_FILE, to_csv(header, rows))
    if not written:
        raise UserError(
            f"--predict: none of {len(rows)} volumes can be read, {rows[0][1]}: {rows[0][-1]}"
        )
    said = f"{written} volumes in {out}; for research, not for clinical use"
    return [said, *left_out_lines([row[-1] for row in rows if row[-1]], PREDICTED_FILE)]


def _segmented(model: Segmenter, files: Sequence[Path]) -> tuple[Volume, np.ndarray]:
    """A volume and its classes, as `Segmenter.segment`; `ValueError`, too, for a full memory."""
    try:
        volume = read_channels(files) if len(files) > 1 else read_nifti(files[0])
        return volume, model.segment(volume, str(files[0]))
    except Exception as error:
        if (where := full_memory(error)) is None:
            raise
        raise ValueError(f"too large: {where} is full") from error


def by_volume(files: Mapping[str, Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """The files of each volume: one; or, where the network sees several `channels`, those called
    NAME_0000, NAME_0001, ... that are as many."""
    volumes = {}
    for name, path in files.items():
        stem = name.rpartition("_")[0]
        whole = [f"{stem}_{channel:04d}" for channel in range(channels)]
        if channels == 1 or not set(whole) <= files.keys() or name not in whole:
            volumes[name] = (path,)
        elif name == whole[0]:
            volumes[stem] = tuple(files[each] for each in whole)
    return volumes


def volume_test_command(checkpoint: Path, volumes: Path) -> str:
    """What to type to test a run's checkpoint on its own test volumes, which lie in `volumes`."""
    listed = checkpoint.parent.parent / TEST_LIST
    return command_line(
        "test.py", {"resume": checkpoint, "volumes": volumes, "csv_file_test": listed}
    )
