"""Synthetic MR volumes from a seed: two adjoining structures in uneven tissue, several scanners.

They are written as the Medical Segmentation Decathlon writes its data, and prepared as that is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dataloaders.prepare.decathlon import prepare_decathlon
from utils.files import waiting_lock, write_text
from utils.packages import import_3d
from utils.table_files import to_csv

CLASSES = ("background", "anterior", "posterior")
SIDES = (35, 50, 36)  # voxels of 1 mm, give or take SPREAD
SPREAD = 3


class Scanner(NamedTuple):
    """scale: of the stored intensities. contrast: of the structures against the tissue. noise: its
    deviation, blur: of the image, in voxels; bias: how uneven the field is."""

    name: str
    scale: float
    contrast: float
    noise: float
    blur: float
    bias: float


SCANNERS = (
    Scanner("north", 200, 1.0, 0.25, 0.6, 0.2),
    Scanner("east", 2_000, 0.8, 0.35, 0.8, 0.3),
    Scanner("south", 500_000, 1.3, 0.3, 0.7, 0.4),
)


def make_volume(
    generator: np.random.Generator, scanner: Scanner, difficulty: float
) -> tuple[np.ndarray, np.ndarray]:
    """An image, float32 (X, Y, Z) on the scanner's scale, and its classes, uint8 (X, Y, Z).

    A bent, tapering rod along y, its front third to half the first structure, the rest the second;
    around it tissue with blobs of about its brightness. difficulty 0 is clear, 1 is faint.
    """
    shape = np.array(SIDES) + generator.integers(-SPREAD, SPREAD + 1, 3)
    grid = np.stack(np.mgrid[tuple(slice(side) for side in shape)]).astype(np.float32)
    x, y, z = grid - (shape[:, None, None, None] - 1) / 2
    tilt, bend = generator.normal(0, 0.12, 2), generator.uniform(0.008, 0.016)
    x = x - generator.normal(0, 2) - tilt[0] * y
    z = z - generator.normal(0, 2) - tilt[1] * y + bend * y**2
    length, thickness = generator.uniform(15, 19), generator.uniform(4.2, 5.5)
    along = y - generator.normal(0, 1.5)
    radius = thickness * np.sqrt(np.clip(1 - (along / length) ** 2, 0, None))
    radius = radius * (1 + 0.25 * along / length) + _smooth(generator, shape, 4) * 0.5
    inside = (np.hypot(x, z * generator.uniform(0.9, 1.2)) < radius) & (abs(along) < length)
    border = generator.uniform(0, 4) + 0.25 * z
    label = np.where(inside, np.where(along > border, 1, 2), 0).astype(np.uint8)

    contrast = scanner.contrast * (1.4 - 0.8 * difficulty)
    tissue = 0.5 * _smooth(generator, shape, 5) + 0.35 * _smooth(generator, shape, 2)
    blobs = (_smooth(generator, shape, 2.5) > 1.7) & ~ndimage.binary_dilation(inside, iterations=2)
    brightness = np.choose(label, [0.0, contrast, 0.75 * contrast]) + 0.8 * contrast * blobs
    image = ndimage.gaussian_filter(tissue + brightness, scanner.blur)
    image = image + scanner.noise * (0.5 + difficulty) * generator.normal(size=shape)
    image = (4 + image) * (1 + scanner.bias * 0.2 * _smooth(generator, shape, 12))
    return (np.clip(image, 0, None) * scanner.scale / 8).astype(np.float32), label


def _smooth(generator: np.random.Generator, shape: np.ndarray, width: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter(generator.normal(size=shape), width, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def write_decathlon(folder: Path, patients: int, seed: int, difficulty: float = 0.5) -> Path:
    """Two volumes of each patient as dataset.json, imagesTr/ and labelsTr/ in `folder`, and
    facts.csv with patients and sites; the path of the latter. Each patient has one scanner."""
    nibabel = import_3d("nibabel")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pairs, facts = [], []
    for number in range(2 * patients):
        patient, generator = number // 2, np.random.default_rng([seed, number])
        scanner = SCANNERS[np.random.default_rng([seed, patient, 0]).integers(len(SCANNERS))]
        name = f"phantom_{number:03d}"
        for kind, array in zip(
            ("images", "labels"), make_volume(generator, scanner, difficulty), strict=True
        ):
            image = nibabel.Nifti1Image(array, np.eye(4))
            nibabel.save(image, folder / f"{kind}Tr" / f"{name}.nii.gz")
        files = {kind: f"./{kind}sTr/{name}.nii.gz" for kind in ("image", "label")}
        pairs.append(files)
        facts.append([name, f"P{patient:03d}", scanner.name])
    content = {
        "name": "Phantom",
        "modality": {"0": "MRI"},
        "labels": {str(at): name for at, name in enumerate(CLASSES)},
        "training": pairs,
    }
    write_text(folder / "facts.csv", to_csv(["VolumeID", "PatientID", "site"], facts, exact=True))
    write_text(folder / "dataset.json", json.dumps(content, indent=1) + "\n")
    return folder / "facts.csv"


def place_embedded_volumes(
    folder: Path, patients: int, seed: int, difficulty: float, say: Callable[[str], None]
) -> None:
    """Make and prepare the embedded volumes in `folder`, once."""
    if (folder / "volumes.csv").exists():
        return
    with waiting_lock(folder.with_name(f"{folder.name}.lock")):
        if (folder / "volumes.csv").exists():
            return
        say(f"generating {2 * patients} synthetic volumes in {folder}")
        raw = folder / "raw"
        prepare_decathlon(raw, folder, write_decathlon(raw, patients, seed, difficulty))
