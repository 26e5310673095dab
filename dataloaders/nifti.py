"""NIfTI files, read with suspicion, and made into the arrays that networks see.

Every volume is turned to the axes of RAS (right, anterior, superior are the ends), normalised by
itself and, where it differs, resampled; `Volume.restore` takes a prediction back the same way.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dataloaders.volumes import shape_text
from utils.errors import UserError
from utils.memory import available_memory
from utils.packages import import_3d

MODALITIES = ("mr", "ct")
CT_WINDOW = (-200.0, 300.0)  # HU, soft tissue: mapped to -1 .. 1
SAME = 0.01  # relative difference of voxel sides that does not matter
AFFINE_TOLERANCE = 1e-3  # mm
SAME_SHARE = 1e-4  # of a voxel: less is rounding
LARGEST_COSINE = 0.02  # of two axes of a grid that is taken for straight: about one degree
FORM_CODES, ALIGNED = range(6), 2  # of NIfTI's qform and sform
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
MOST_COMPRESSED = 1032  # DEFLATE's largest ratio
BYTES_PER_VOXEL = 24  # float64 as read, float32 beside it, and what resampling holds
SUFFIXES = (".nii.gz", ".nii")


class Volume(NamedTuple):
    """An image as its file has it. data: (K, X, Y, Z) float32 in RAS axes; spacing: mm along
    them. affine, orientation: the file's own, for `restore`; shape: (X, Y, Z) in the file. forms,
    unit: where its header says it lies (qform and sform, each with its code), for
    `write_labels`."""

    data: np.ndarray
    spacing: tuple[float, float, float]
    affine: np.ndarray
    orientation: np.ndarray
    shape: tuple[int, int, int]
    forms: tuple[tuple[np.ndarray | None, int], ...]
    unit: str

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """Labels (X, Y, Z) on the grid of `data` -> the file's own axes, uint8."""
        orientations = import_3d("nibabel.orientations")
        to_ras = orientations.axcodes2ornt(("R", "A", "S"))
        back = orientations.ornt_transform(to_ras, self.orientation)
        return np.ascontiguousarray(orientations.apply_orientation(labels, back).astype(np.uint8))


def volume_name(path: Path) -> str | None:
    """The file's name without .nii or .nii.gz, None for any other file and for macOS's `._x`."""
    if path.name.startswith("._"):
        return None
    endings = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    return path.name[: -len(endings[0])] if endings else None


def find_volumes(paths: Sequence[Path], out: Path) -> dict[str, Path]:
    """The NIfTI files among `paths` and below those that are folders: name -> file, by name.

    Raises `UserError` for a path that is no such file, for two of one name, and where one lies in
    `out`, where files of these names shall be written.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        named = [(volume_name(file), file) for file in files if file.is_file()]
        if not any(name for name, _ in named):
            raise UserError(f"{path}: no NIfTI volume; give .nii or .nii.gz files, or their folder")
        for name, file in named:
            if name is None:
                continue
            if name in found:
                raise UserError(f"{file}: has the name of {found[name]}; rename one of them")
            if out.resolve() in file.resolve().parents:
                raise UserError(f"--out {out}: holds {file}, a source; give another folder")
            found[name] = file
    return dict(sorted(found.items()))


def read_nifti(path: Path, as_slices: bool = False) -> Volume:
    """An image of three dimensions, or of four with the channels last.

    Raises `ValueError`, in words, for a file that cannot be read, another number of dimensions, a
    header that claims more than the file or the memory can hold, and voxels that are not finite;
    and, unless it is to be looked at `as_slices`, for a single slice and for axes that are not at
    right angles.
    """
    orientations = import_3d("nibabel.orientations")
    with _faults_in_words():
        image = import_3d("nibabel").load(path)
        _check_header(path, image, 1 if as_slices else 2)
        orientation = _orientation(image.affine, may_tilt=as_slices)
        data = np.asanyarray(image.dataobj).astype(np.float32)
    if not np.isfinite(data).all():
        raise ValueError("has voxels that are not finite numbers")
    spacing = _sides(image)
    to_ras = orientations.ornt_transform(orientation, orientations.axcodes2ornt(("R", "A", "S")))
    turned = orientations.apply_orientation(data, to_ras)
    sides = [0.0] * 3
    for axis, (target, _) in enumerate(orientation):
        sides[int(target)] = float(spacing[axis])
    channels = turned[None] if turned.ndim == 3 else np.moveaxis(turned, -1, 0)
    return Volume(
        np.ascontiguousarray(channels),
        tuple(sides),
        image.affine,
        orientation,
        data.shape[:3],
        _forms(image.header),
        _unit(image.header),
    )


def read_channels(paths: Sequence[Path]) -> Volume:
    """One volume of several files that lie on each other, their channels in that order.

    Raises `ValueError` as `read_nifti`, which names the file, and where the files differ.
    """
    volumes = []
    for path in paths:
        volumes.append(read_named("image", path))
        refuse_apart(volumes[0], volumes[-1])
    return volumes[0]._replace(data=np.concatenate([volume.data for volume in volumes]))


def read_named(kind: str, path: Path) -> Volume:
    """`read_nifti`, whose `ValueError` names the file and says what it is."""
    try:
        return read_nifti(path)
    except ValueError as error:
        raise ValueError(f"{kind} {path.name} {error}") from None


def refuse_apart(one: Volume, other: Volume) -> None:
    """`ValueError` unless both have the same voxels at the same places."""
    if one.shape != other.shape:
        raise ValueError(f"shapes differ: {shape_text(one.shape)} and {shape_text(other.shape)}")
    if not np.allclose(other.affine, one.affine, atol=AFFINE_TOLERANCE):
        raise ValueError("the affines of its files differ: they do not lie on each other")


def _sides(image) -> np.ndarray:
    """mm of a voxel along each of the file's own axes, whatever unit the file counts in."""
    scale = MILLIMETRES[_unit(image.header)]
    return scale * np.linalg.norm(image.affine[:3, :3], axis=0)


def _unit(header) -> str:
    """In which a header counts; millimetres where it says nothing, or nothing sensible."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        return "mm"
    return unit if unit in MILLIMETRES else "mm"


def _forms(header) -> tuple[tuple[np.ndarray | None, int], ...]:
    """qform and sform, each with its code; (None, 0) for one that cannot be read."""
    found = []
    for read in (header.get_qform, header.get_sform):
        try:
            form, code = read(coded=True)
        except (ValueError, import_3d("nibabel.spatialimages").HeaderDataError):
            form, code = None, 0
        found.append((form, int(code) if code in FORM_CODES else ALIGNED))
    return tuple(found)


def header_spacing(path: Path) -> tuple[float, ...]:
    """mm of an image's voxels along the axes of RAS, from its header; `ValueError` as above."""
    with _faults_in_words():
        image = import_3d("nibabel").load(path)
        _check_header(path, image)
        orientation = _orientation(image.affine)
    return tuple(_sides(image)[np.argsort(orientation[:, 0])].tolist())


def _orientation(affine: np.ndarray, may_tilt: bool = False) -> np.ndarray:
    """Where the axes of an array point, as nibabel's `io_orientation`; `ValueError` for nowhere
    and, unless they `may_tilt`, for axes that are not at right angles, as resampling and distances
    take them."""
    if not np.isfinite(affine).all():
        raise ValueError("its affine has numbers that are not finite")
    orientation = import_3d("nibabel.orientations").io_orientation(affine)
    if np.isnan(orientation).any():
        raise ValueError("its affine has no three directions")
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if not may_tilt and cosines.max() > LARGEST_COSINE:
        raise ValueError(
            "its axes are not at right angles (a tilted gantry?): resample it to a straight grid"
        )
    return orientation


@contextmanager
def _faults_in_words() -> Iterator[None]:
    """Whatever nibabel raises for a file that it cannot read becomes a `ValueError` of one line."""
    nibabel = import_3d("nibabel")
    unreadable = (OSError, EOFError, zlib.error, OverflowError)
    unreadable += (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    try:
        yield
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except MemoryError:
        raise ValueError("larger than the memory that is free") from None
    except unreadable as error:
        # Not the error's own words: they quote the path, which may name a patient.
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"cannot be read, cut off or no NIfTI ({reason})") from None


def _check_header(path: Path, image, fewest_slices: int = 2) -> None:
    shape, kind = image.shape, image.get_data_dtype()
    if kind.kind not in "iuf":
        raise ValueError(f"has voxels of the type {kind}, not one number each")
    if len(shape) not in (3, 4):
        raise ValueError(f"has {len(shape)} dimensions; only three, or four with channels, are")
    if min(shape[:3]) < fewest_slices:
        raise ValueError(f"is a single slice ({shape_text(shape)} voxels), not a volume")
    voxels = int(np.prod([int(side) for side in shape], dtype=object))
    claimed = voxels * kind.itemsize
    stored = os.stat(path).st_size * (MOST_COMPRESSED if path.name.lower().endswith(".gz") else 1)
    if claimed > stored:
        raise ValueError(f"its header claims {claimed:.3g} bytes, more than the file can hold")
    refuse_too_large(voxels * BYTES_PER_VOXEL)


def refuse_too_large(needed: int) -> None:
    """`ValueError` where so many bytes are more than the memory that is free."""
    if needed > available_memory():
        raise ValueError(
            f"needs {needed / 1e9:.1f} GB of memory, {available_memory() / 1e9:.1f} GB are free"
        )


def normalise(data: np.ndarray, modality: str, window: tuple[float, float]) -> np.ndarray:
    """Image (K, X, Y, Z) -> float32, channel by channel: "mr" mean 0 and deviation 1 of the whole
    volume, "ct" the window (HU) mapped to -1 .. 1 and clipped. `ValueError` for a constant one."""
    if modality == "ct":
        low, high = window
        return (np.clip(data, low, high) - low) * (2 / (high - low)) - 1
    mean = data.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
    deviation = data.std(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
    if not (deviation > 0).all():
        raise ValueError("is constant: there is nothing to see in it")
    return ((data - mean) / deviation).astype(np.float32)


def resample(data: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Image or probabilities (K, X, Y, Z), linearly, on a grid of `shape` over the same extent."""
    if data.shape[1:] == tuple(shape):
        return data
    factors = [1, *(new / old for new, old in zip(shape, data.shape[1:], strict=True))]
    return ndimage.zoom(data, factors, order=1, mode="nearest", grid_mode=True)


def resample_classes(classes: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Class numbers (X, Y, Z) on a grid of `shape` over the same extent: at each voxel the class
    that `resample` gives the largest share, so that labels lie where it puts their image. Equal
    shares, which a boundary has everywhere where a side is halved, go to the lower and the higher
    number in turn, as the squares of a chessboard: structures neither grow nor shrink."""
    if classes.shape == tuple(shape):
        return classes
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    odd = (x + y + z) % 2 == 1
    chosen, largest = np.zeros(shape, classes.dtype), np.zeros(shape, np.float32)
    for number in np.unique(classes):
        share = resample((classes == number)[None].astype(np.float32), shape)[0]
        equal = np.abs(share - largest) < SAME_SHARE
        chosen[np.where(equal, odd & (share > SAME_SHARE), share > largest)] = number
        np.maximum(largest, share, out=largest)
    return chosen


def resampled_shape(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
) -> tuple[int, int, int]:
    """The grid that has voxels of `wanted` mm over the extent of one with `spacing`."""
    return tuple(
        side if abs(mm - new) <= SAME * new else max(round(side * mm / new), 1)
        for side, mm, new in zip(shape, spacing, wanted, strict=True)
    )


def write_labels(path: Path, labels: np.ndarray, source: Volume) -> None:
    """Write labels (X, Y, Z) uint8 as NIfTI that lies on `source` in every viewer: with its affine,
    both of its forms and their codes, and its unit; whole or not at all."""
    nibabel = import_3d("nibabel")
    image = nibabel.Nifti1Image(labels, source.affine)
    image.set_qform(*source.forms[0])
    image.set_sform(*source.forms[1])
    image.header.set_xyzt_units(source.unit)
    temporary = path.with_name(f".{path.name.removesuffix('.nii.gz')}.partial.nii.gz")
    nibabel.save(image, temporary)
    os.replace(temporary, path)
