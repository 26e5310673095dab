"""Small CT files for the tests, whole or damaged in one chosen way."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

PATIENT_NAME = "Liddell^Alice"
BIRTH_DATE = "18520504"


def head(rows: int = 32, columns: int = 32, seed: int = 0) -> np.ndarray:
    """(rows, columns) int16 Hounsfield units: air, a ring of bone, brain with noise."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    radius = np.hypot(x, y)
    brain = np.random.default_rng(seed).normal(35, 10, (rows, columns))
    return np.select([radius > 0.9, radius > 0.75], [-1000, 900], brain).astype(np.int16)


def ct_dataset(stored: np.ndarray, intercept: float = -1024, **tags) -> Dataset:
    """A CT slice whose pixel data are `stored`; `tags` replace or, where None, remove elements."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance"])
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.PatientName = PATIENT_NAME
    dataset.PatientBirthDate = BIRTH_DATE
    dataset.PatientID = "ID_patient"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.WindowCenter = 40
    dataset.WindowWidth = 80
    dataset.RescaleIntercept = intercept
    dataset.RescaleSlope = 1
    dataset.PixelData = stored.tobytes()
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_ct(
    path: Path, stored: np.ndarray | None = None, intercept: float = -1024, **tags
) -> Path:
    """Write `ct_dataset` (by default of a `head`) to `path` and return it."""
    stored = head() + np.int16(1024) if stored is None else stored
    ct_dataset(stored, intercept, **tags).save_as(path, enforce_file_format=True)
    return path


def write_deflated(path: Path, dataset: Dataset, zeros_appended: int = 0) -> Path:
    """Write `dataset` deflated, with an element of that many zero bytes before the pixels."""
    meta = dataset.file_meta
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    body = DicomBytesIO()
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, dataset)
    header = DicomBytesIO()
    write_file_meta_info(header, meta, enforce_standard=True)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    parts = [deflate.compress(body.getvalue())]
    if zeros_appended:
        element = b"\xe1\x7f\x10\x10OB\x00\x00" + zeros_appended.to_bytes(4, "little")
        parts.append(deflate.compress(element))
        block = bytes(1 << 20)
        parts += [deflate.compress(block) for _ in range(zeros_appended >> 20)]
    parts.append(deflate.flush())
    path.write_bytes(bytes(128) + b"DICM" + header.getvalue() + b"".join(parts))
    return path


def compress_jpeg_2000(dataset: Dataset) -> None:
    """Turn the pixel data of `dataset` into lossless JPEG 2000."""
    stream = DicomBytesIO()
    Image.fromarray(dataset.pixel_array.astype(np.uint16)).save(stream, "JPEG2000", no_jp2=True)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


def long_label_rows(images: dict[str, tuple[int, ...]]) -> list[str]:
    """Lines of the long label file: for every image its five subtypes (in the order epidural,
    intraparenchymal, intraventricular, subarachnoid, subdural) and `any`."""
    names = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    return [
        f"{image}_{name},{value}"
        for image, values in images.items()
        for name, value in zip(names, (*values, max(values)), strict=True)
    ]
