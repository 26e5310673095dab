"""Volumes small enough to train on in a test, as arrays and as a Decathlon folder."""

import json
from pathlib import Path

import numpy as np

from dataloaders.volumes import ARRAYS, VolumeTable, open_volumes, read_volumes

CLASSES = ("background", "front", "back")


def write_prepared(folder: Path, count: int = 8, side: int = 12, patients: bool = False) -> Path:
    """A folder as `dataloaders.prepare decathlon` makes it: bright boxes in noise."""
    generator = np.random.default_rng(0)
    (folder / ARRAYS).mkdir(parents=True)
    rows = [
        "VolumeID," + ("PatientID," if patients else "") + "site,shape,spacing," + ",".join(CLASSES)
    ]
    for number in range(count):
        label = np.zeros((side, side, side + 2), np.float16)
        label[3:6, 3:8, 4:8], label[6:9, 3:8, 4:8] = 1, 2
        image = 1.5 * label + generator.normal(size=label.shape) / 2
        np.save(folder / ARRAYS / f"v{number}.npy", np.stack([image, label]).astype(np.float16))
        counts = np.bincount(label.astype(int).ravel(), minlength=3)
        cells = [f"v{number}", *([f"P{number // 2}"] if patients else []), f"s{number % 2}"]
        cells += ["x".join(map(str, label.shape)), "1x1x1", *map(str, counts)]
        rows.append(",".join(cells))
    (folder / "volumes.csv").write_text("\n".join(rows) + "\n")
    manifest = {"modality": "mr", "ct_window": [-200.0, 300.0], "spacing": [1.0, 1.0, 1.0]}
    manifest["classes"] = dict(zip(CLASSES, (0, 1, 5), strict=True))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def prepared_table(folder: Path) -> tuple[list[np.ndarray], VolumeTable]:
    """The arrays and the table of such a folder."""
    table = read_volumes(folder / "volumes.csv")
    return open_volumes(folder, table), table


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file of `array`."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_decathlon(folder: Path, count: int = 3, **content) -> Path:
    """A small Decathlon task; `content` replaces entries of its dataset.json."""
    generator = np.random.default_rng(1)
    pairs = []
    for number in range(count):
        label = np.zeros((6, 7, 8), np.uint8)
        label[1:3, 2:5, 2:6], label[3:5, 2:5, 2:6] = 1, 2
        image = (100 + 50 * label + generator.normal(size=label.shape)).astype(np.float32)
        name = f"case_{number:02d}.nii.gz"
        write_nifti(folder / "imagesTr" / name, image)
        write_nifti(folder / "labelsTr" / name, label)
        pairs.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    described = {
        "name": "Made",
        "modality": {"0": "MRI"},
        "labels": dict(zip("012", CLASSES, strict=True)),
        "training": pairs,
    }
    (folder / "dataset.json").write_text(json.dumps(described | content))
    return folder
