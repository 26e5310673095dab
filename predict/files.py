"""What a user has, pictures, scans, volumes or arrays, as the pictures a classifier was trained on.

Every kind is made as `dataloaders.prepare` and the training set's loader would have made it: a
DICOM file through the recorded window, an axial slice of a NIfTI volume likewise, a picture as the
images of a label file are.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dataloaders.dicom import (
    BARE_STARTS,
    Preprocessing,
    UnreadableDicom,
    read_picture,
    resize_picture,
)
from dataloaders.image_files import resolve_images
from dataloaders.nifti import read_nifti, volume_name
from dataloaders.pixels import GREY_MODES, decode_image, read_header
from dataloaders.prepare.conversion import Rejected
from dataloaders.table import read_unlabeled_table
from dataloaders.windows import window_picture
from utils.errors import UserError

TO_KNOW_SCANS = (
    "a scan, and the model does not say how scans became the images it was trained on; say it "
    "with --window and --size if it was trained on scans at all"
)


class Slice(NamedTuple):
    """A readable picture: its file's name (with `[12]` for a slice of a volume), its header's ids
    ("" where it has none), and what is irregular about it (see `dataloaders.dicom.Picture`)."""

    file: str
    study: str = ""
    patient: str = ""
    note: str = ""


class Named(NamedTuple):
    """A file, what the output calls it, and whether it lies outside of the folder that a user
    named, where a link led."""

    name: str
    path: Path
    is_outside: bool = False


# What reading one file gives: each picture with its pixels, uint8 (C, S, S), or why there are none.
Found = list[tuple[Slice, np.ndarray] | Rejected]


class ImageFiles(Dataset):
    """Files as pictures of `image_size` pixels. `scans` says how a scan becomes one, None where
    that is not known; with `only_dicom` every other kind of file is rejected."""

    def __init__(
        self,
        files: Sequence[Named],
        image_size: int,
        scans: Preprocessing | None,
        only_dicom: bool = False,
    ):
        self.files = list(files)
        self.image_size = image_size
        self.scans = scans
        self.only_dicom = only_dicom

    def __len__(self) -> int:
        return len(self.files)

    def hold_dicom(self) -> bool:
        """Whether one of the files is a DICOM file, whose header may name its patient."""
        return any(_may_be_dicom(file.path) for file in self.files)

    def hold_volumes(self) -> bool:
        """Whether one of the files is a volume, which is many pictures."""
        return any(volume_name(file.path) is not None for file in self.files)

    def __getitem__(self, index: int) -> Found:
        name, path, is_outside = self.files[index]
        name = in_utf8(name)
        if is_outside:
            return [Rejected(name, "a link that leads out of the folder; name its file itself")]
        try:
            if self.only_dicom:
                return [self._dicom(name, path)]
            if volume_name(path) is not None:
                return list(self._nifti(name, path))
            if _begins_as_dicom(path):
                return [self._dicom(name, path)]
            return [(Slice(name, note=_pages(path)), self._picture(path))]
        except (UnreadableDicom, ValueError) as error:
            return [Rejected(name, str(error))]
        except OSError as error:
            return [Rejected(name, f"the file cannot be read ({error.strerror or 'damaged'})")]

    def _dicom(self, name: str, path: Path) -> tuple[Slice, np.ndarray]:
        found = read_picture(path, *_known(self.scans))
        slice = Slice(name, found.study_uid, found.patient_id, found.note)
        return slice, resized(found.image, self.image_size)

    def _nifti(self, name: str, path: Path) -> Iterator[tuple[Slice, np.ndarray]]:
        """Axial slices from the lowest to the highest, each as it is looked at: the patient's right
        on the left, the face up."""
        window, size = _known(self.scans)
        if window == "file":
            raise ValueError("a NIfTI file names no window; use a model of a named one")
        hounsfield = read_nifti(path, as_slices=True).data[0]
        for at in range(hounsfield.shape[2]):
            picture = picture_of_hounsfield(hounsfield[::-1, ::-1, at].T, window, size)
            yield Slice(f"{name}[{at}]"), resized(picture, self.image_size)

    def _picture(self, path: Path) -> np.ndarray:
        header = read_header(path)
        return channels_first(decode_image(path, self.image_size, header.mode in GREY_MODES))


def picture_of_hounsfield(hounsfield: np.ndarray, window: str, size: int) -> np.ndarray:
    """(H, W) Hounsfield units -> the uint8 picture that `prepare` makes of such a slice."""
    return resize_picture(Image.fromarray(window_picture(hounsfield, window)), size)


def resized(picture: np.ndarray, image_size: int) -> np.ndarray:
    """A uint8 picture (H, W) or (H, W, 3) as the training images were resized: (C, S, S)."""
    return channels_first(resize_picture(Image.fromarray(picture), image_size))


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _known(scans: Preprocessing | None) -> Preprocessing:
    if scans is None:
        raise ValueError(TO_KNOW_SCANS)
    return scans


def _begins_as_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or start.startswith(BARE_STARTS)


def _may_be_dicom(path: Path) -> bool:
    try:
        return _begins_as_dicom(path)
    except OSError:  # it is said when it is read
        return False


def _pages(path: Path) -> str:
    return "the first of several pages" if read_header(path).several_pages else ""


def find_files(paths: Iterable[Path], root: Path | None, class_names: Sequence[str]) -> list[Named]:
    """The files that a user names: as such, below a folder, or in the column ImageID of a CSV.

    Names are as typed; below a single folder, relative to it. A CSV's are below `root`, by default
    the CSV's own folder; its other columns are not read. Files whose name begins with a dot are
    left out. Raises `UserError` where there is no file, or one is named twice.
    """
    paths = [Path(path) for path in paths]
    found: list[Named] = []
    for path in paths:
        if path.is_dir():
            prefix = "" if len(paths) == 1 else path
            found += [
                file._replace(name=os.path.join(prefix, file.name))
                for file in find_all_files(path, "--predict")
                if not file.path.name.startswith(".")
            ]
        elif path.suffix.lower() == ".csv":
            table = read_unlabeled_table(path, class_names)
            resolved = resolve_images(table, root or path.parent)
            found += map(Named, table.names, resolved)
        elif path.is_file():
            found.append(Named(str(path), path))
        else:
            raise UserError(f"--predict {path}: no such file or folder")
    if not found:
        raise UserError(f"--predict {' '.join(map(str, paths))}: no files")
    seen = set()
    for name, *_ in found:
        if name in seen:
            raise UserError(f"--predict: {name} is named twice; name every file once")
        seen.add(name)
    return found


def find_all_files(folder: Path, flag: str) -> list[Named]:
    """Every file below `folder`, whatever its name (archives often leave off .dcm), by its path
    relative to it, sorted. Links to folders are not followed. `UserError`, which names `flag`,
    where there is none."""
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder")

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{flag} {error.filename}: {error.strerror}; make it readable or move it away"
        )

    walked = os.walk(folder, onerror=refuse)
    files = [
        os.path.relpath(Path(place, name), folder) for place, _, names in walked for name in names
    ]
    if not files:
        raise UserError(f"{flag} {folder}: has no files")
    return [Named(name, folder / name, _leads_out(folder / name, folder)) for name in sorted(files)]


def _leads_out(path: Path, folder: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())


def in_utf8(name: str) -> str:
    """`name` with escapes for bytes that are no UTF-8, which a CSV could not hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Arrays(Dataset):
    """Arrays in memory as pictures: uint8 (H, W) or (H, W, 3) as they are, and two-dimensional
    arrays of other numbers as Hounsfield units through the window of `scans`."""

    def __init__(self, arrays: Sequence[np.ndarray], image_size: int, scans: Preprocessing | None):
        self.arrays = arrays
        self.image_size = image_size
        self.scans = scans

    def __len__(self) -> int:
        return len(self.arrays)

    def hold_volumes(self) -> bool:
        """No: every array is one picture."""
        return False

    def __getitem__(self, index: int) -> Found:
        pixels = np.asarray(self.arrays[index])
        try:
            picture = pixels if pixels.dtype == np.uint8 else self._from_hounsfield(pixels)
            if picture.ndim not in (2, 3) or picture.ndim == 3 and picture.shape[2] not in (1, 3):
                raise ValueError(f"shape {pixels.shape}; give (H, W) or (H, W, 3)")
            picture = picture[:, :, 0] if picture.shape[2:] == (1,) else picture
            return [(Slice(str(index)), resized(picture, self.image_size))]
        except ValueError as error:
            return [Rejected(str(index), str(error))]

    def _from_hounsfield(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.ndim != 2 or pixels.dtype.kind not in "iuf":
            raise ValueError(
                f"{pixels.dtype} of shape {pixels.shape}; give pictures as uint8, 0 to 255, or "
                "slices (H, W) in Hounsfield units"
            )
        if not np.isfinite(pixels).all():
            raise ValueError("has values that are not finite")
        return picture_of_hounsfield(pixels.astype(np.float32), *_known(self.scans))
