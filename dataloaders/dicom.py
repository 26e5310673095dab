"""One head-CT DICOM file -> Hounsfield units -> an 8-bit picture, or one line that says why not.

Preparing a training set and predicting on raw scans both come through here, so that a picture is
made the same way in both places.

Error messages name tags and sizes but never repeat a value of the file: a damaged header may hold
a patient's name where a number belongs.
"""

import io
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dataloaders.dicom_checks import (
    MAX_FILE_BYTES,
    TAGS_READ,
    UnreadableDicom,
    check_pixel_data,
    check_slice,
    number_in,
    padding_note,
)
from dataloaders.windows import WINDOW_CHOICES, apply_window, window_picture

MAX_HOUNSFIELD = 100_000.0
REPAIRED_INTERCEPT = -1000
# How a file begins that lacks the 128 bytes and the DICM mark: with the group of its file meta
# information (element 0 or 1), or with group 8 (elements 0, 5, 8, 16).
BARE_STARTS = (
    b"\x02\x00\x00\x00",
    b"\x02\x00\x01\x00",
    b"\x08\x00\x00\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
)


class Preprocessing(NamedTuple):
    """How pictures are made from scans; `_asdict()` is plain JSON, for manifests and checkpoints.

    window: one of `WINDOW_CHOICES`. size: height and width of the picture in pixels.
    """

    window: str = "triple"
    size: int = 128


class Picture(NamedTuple):
    """image: (size, size) or, for "triple", (size, size, 3), uint8. The rest from the header.

    patient_id and study_uid are empty where the file has none. site is a signature of how the
    scanner stores its pixels, for example `16bit-signed_intercept-1024_windows1`: hospitals that
    leave no name in an anonymised header still differ in it. note: what is irregular about the
    file although it was read, or empty.
    """

    image: np.ndarray
    patient_id: str
    study_uid: str
    site: str
    note: str = ""


def read_hounsfield(source: str | os.PathLike | Dataset) -> np.ndarray:
    """The slice of a DICOM file, or of a data set already read, in Hounsfield units.

    Returns (rows, columns) float32. Slices stored in 12 bits with an intercept near 0, whose
    negative values wrapped round, are repaired. MONOCHROME1 concerns the display and changes
    nothing here.
    Raises `UnreadableDicom` for whatever is not one whole, non-constant, grey CT slice.
    """
    with _errors_in_one_line():
        dataset = source if isinstance(source, Dataset) else _read_file(Path(source))[0]
        return _to_hounsfield(*_stored_pixels(dataset))


def read_picture(path: str | os.PathLike, window: str, size: int) -> Picture:
    """The 8-bit picture of a DICOM file, `size` x `size` pixels whatever the matrix.

    window: "brain", "subdural", "bone" (`WINDOWS`), "triple" (these three as
    red, green, blue), or "file": the file's own window (the first one of several), then min-max
    to 8 bits. MONOCHROME1 pictures are inverted (DICOM PS3.3 C.7.6.3.1.2).
    Raises `UnreadableDicom` as `read_hounsfield` does, and `KeyError` for an unknown window.
    """
    if window not in WINDOW_CHOICES:
        raise KeyError(f"no window {window!r}, choose from {', '.join(WINDOW_CHOICES)}")
    with _errors_in_one_line():
        dataset, notes = _read_file(Path(path))
        stored, rescale = _stored_pixels(dataset)
        # Every step up to the picture maps one stored value to one grey value, so it is done once
        # per value (some thousands) instead of once per pixel (a quarter of a million).
        lowest, highest = int(stored.min()), int(stored.max())
        hounsfield = _to_hounsfield(np.arange(lowest, highest + 1), rescale)
        grey_values = _apply_window_choice(hounsfield, window, dataset)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            grey_values = 255 - grey_values
        picture = _look_up(grey_values, lowest, stored)
        patient_id = _identifier(dataset, "PatientID")
        study_uid = _identifier(dataset, "StudyInstanceUID")
        site = _site_signature(dataset)
        note = "; ".join([*notes, *padding_note(dataset)])
    return Picture(resize_picture(picture, size), patient_id, study_uid, site, note)


def resize_picture(picture: Image.Image, size: int) -> np.ndarray:
    """`picture` as `size` x `size` pixels, (size, size) or (size, size, 3) uint8.

    Shrinking averages over the pixels covered (Pillow's bilinear filter).
    """
    small = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small if small.mode == "L" else small.convert("RGB"))


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Let only `UnreadableDicom` out, and no warning: a damaged file makes pydicom raise almost
    any exception, with the file's own values in its text. For processes, not for threads: the
    filters of warnings are shared."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableDicom:
        raise
    except OSError as error:
        raise UnreadableDicom(f"the file cannot be read ({error.strerror or 'damaged'})") from None
    except Exception as error:
        raise UnreadableDicom(f"damaged DICOM ({type(error).__name__} while reading)") from None
    finally:
        logger.setLevel(level)


def _read_file(path: Path) -> tuple[Dataset, list[str]]:
    """The data set of a file, and notes on what the file lacks of the standard's form."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableDicom("not a file")
    if status.st_size > MAX_FILE_BYTES:
        raise UnreadableDicom(f"larger than {MAX_FILE_BYTES >> 20} MB: not one CT slice")
    content = path.read_bytes()
    if content[128:132] == b"DICM":
        return pydicom.dcmread(_FileContent(content), specific_tags=TAGS_READ), []
    if not content.startswith(BARE_STARTS):
        raise UnreadableDicom("not a DICOM file (no DICM mark at byte 128)")
    dataset = pydicom.dcmread(_FileContent(content), specific_tags=TAGS_READ, force=True)
    if "TransferSyntaxUID" in dataset.file_meta:
        return dataset, ["no preamble"]
    # Without a file meta group only the two little-endian syntaxes can be told apart.
    implicit, _ = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset, ["no preamble", "no file meta information"]


class _FileContent(io.BytesIO):
    """pydicom reads all that remains of a file only to inflate it, and that without a limit, so
    that 0.4 MB of file can claim 0.8 GB of memory: here it is first inflated with a limit."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            inflated = inflate.decompress(self.getbuffer()[self.tell() :], MAX_FILE_BYTES + 1)
            if len(inflated) > MAX_FILE_BYTES:
                megabytes = MAX_FILE_BYTES >> 20
                raise UnreadableDicom(f"inflates to more than {megabytes} MB: not one CT slice")
        return super().read(size)


def _stored_pixels(dataset: Dataset) -> tuple[np.ndarray, Dataset]:
    """The stored values (rows, columns) and the data set whose Rescale tags give Hounsfield."""
    check_slice(dataset)
    check_pixel_data(dataset)
    stored = pixel_array(dataset)
    if stored.shape != (dataset.Rows, dataset.Columns):
        raise UnreadableDicom("the decoded picture has not the size that the header states")
    if stored.min() == stored.max():
        raise UnreadableDicom("constant image: every pixel has the same value")
    is_12_bit = dataset.BitsStored == 12 and dataset.PixelRepresentation == 0
    if is_12_bit and number_in(dataset, "RescaleIntercept") > -100:
        return _repair_12_bit(stored, dataset)
    return stored, dataset


def _repair_12_bit(stored: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, Dataset]:
    """Undo the wrap of some 12-bit scanners: Hounsfield units stored modulo 4096, with an
    intercept of about 0. Values that did not wrap keep theirs: 1000 is added here and taken away
    by the intercept."""
    repaired = stored.astype(np.int32) - REPAIRED_INTERCEPT
    repaired[repaired >= 4096] -= 4096
    rescale = Dataset()
    rescale.RescaleSlope = dataset.RescaleSlope
    rescale.RescaleIntercept = REPAIRED_INTERCEPT
    return repaired, rescale


def _to_hounsfield(stored: np.ndarray, rescale: Dataset) -> np.ndarray:
    hounsfield = apply_modality_lut(stored, rescale).astype(np.float32)
    if not np.abs(hounsfield).max() <= MAX_HOUNSFIELD:
        raise UnreadableDicom("RescaleSlope or RescaleIntercept give no Hounsfield units")
    return hounsfield


def _apply_window_choice(hounsfield: np.ndarray, window: str, dataset: Dataset) -> np.ndarray:
    if window != "file":
        return window_picture(hounsfield, window)
    center, width = number_in(dataset, "WindowCenter"), number_in(dataset, "WindowWidth")
    if width <= 0:
        raise UnreadableDicom("WindowWidth is not positive: use a named window")
    # Min-max after clipping to the window is the window between the two extremes that remain.
    low, high = np.clip(
        [hounsfield.min(), hounsfield.max()], center - width / 2, center + width / 2
    )
    if low == high:
        raise UnreadableDicom("constant image: no pixel lies inside the file's own window")
    return apply_window(hounsfield, (low + high) / 2, high - low)


def _look_up(grey_values: np.ndarray, lowest: int, stored: np.ndarray) -> Image.Image:
    """The picture of `stored` (H, W); row i of `grey_values` (N,) or (N, 3) is for the stored
    value `lowest` + i."""
    # Rolled, the value v stands at v modulo N, which saves subtracting `lowest` everywhere.
    grey_values = np.roll(grey_values, lowest, axis=0)
    if grey_values.ndim == 1:
        return Image.fromarray(np.take(grey_values, stored, mode="wrap"))
    # Four bytes are looked up in half the time of three; Pillow ignores the fourth.
    padded = np.zeros((len(grey_values), 4), dtype=np.uint8)
    padded[:, :3] = grey_values
    pixels = np.take(padded.view(np.uint32)[:, 0], stored, mode="wrap")
    return Image.frombuffer("RGBX", stored.shape[::-1], pixels, "raw", "RGBX", 0, 1)


def _identifier(dataset: Dataset, keyword: str) -> str:
    value = str(dataset.get(keyword) or "")
    return "".join(letter for letter in value if letter.isprintable()).strip()


def _site_signature(dataset: Dataset) -> str:
    sign = "signed" if dataset.PixelRepresentation else "unsigned"
    intercept = round(number_in(dataset, "RescaleIntercept"))
    centers = dataset.get("WindowCenter")
    windows = len(centers) if isinstance(centers, MultiValue) else int(centers is not None)
    return f"{int(dataset.BitsStored)}bit-{sign}_intercept{intercept}_windows{windows}"
