"""What makes a DICOM data set one axial CT slice in Hounsfield units that is safe to decode.

Every check is made on the header and on the first bytes of the compressed frame, before anything
is decoded. Messages name tags and sizes, never a value of the file.
"""

import struct

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

# A CT slice has 0.5 MB (512 x 512 x 16 bit), the largest scanners' 8 MB. The limits bound the
# memory that a hostile file can claim; each is far above what a real slice needs.
MAX_FILE_BYTES = 32 * 2**20
MAX_SIDE = 2048

REQUIRED = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
)
OPTIONAL = (
    "BurnedInAnnotation",
    "HighBit",
    "ImageOrientationPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "RescaleType",
    "SOPClassUID",
    "StudyInstanceUID",
    "WindowCenter",
    "WindowWidth",
)
# Nothing else is parsed: names, birth dates and free text never leave the file's bytes.
TAGS_READ = [Tag(keyword) for keyword in REQUIRED + OPTIONAL]

# A value of ImageType -> what such an object is (PS3.3 C.8.2.1.1.1; the last three are vendors').
OTHER_IMAGE_TYPES = {
    "LOCALIZER": "a localizer (scout)",
    "SCREEN SAVE": "a screen capture",
    "DOSE_INFO": "a dose report",
    "CSA REPORT": "a report",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


class UnreadableDicom(ValueError):  # noqa: N818
    """The file gives no head-CT picture; the message is one line with the reason."""


def check_slice(dataset: Dataset) -> None:
    """Raise `UnreadableDicom` unless the header describes one axial CT slice in Hounsfield units.

    Modality, ImageType, RescaleType, orientation and SOP class may be absent (old anonymisers
    drop them); where they are present they are believed.
    """
    _check_kind(dataset)
    for keyword in REQUIRED:
        if dataset.get(keyword) in (None, "", b""):
            raise UnreadableDicom(f"no {keyword}")
    photometric = dataset.PhotometricInterpretation
    if dataset.SamplesPerPixel != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnreadableDicom("a colour picture, not a CT slice")
    for keyword in ("Rows", "Columns"):
        if not 1 <= number_in(dataset, keyword) <= MAX_SIDE:
            raise UnreadableDicom(f"{keyword} is not between 1 and {MAX_SIDE}")
    if dataset.BitsAllocated not in (8, 16):
        raise UnreadableDicom("BitsAllocated is neither 8 nor 16")
    if not 1 <= number_in(dataset, "BitsStored") <= dataset.BitsAllocated:
        raise UnreadableDicom("BitsStored is not between 1 and BitsAllocated")
    if dataset.PixelRepresentation not in (0, 1):
        raise UnreadableDicom("PixelRepresentation is neither 0 nor 1")
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if isinstance(dataset.get(keyword), MultiValue | list):
            raise UnreadableDicom(f"{keyword} has more than one value")
    if number_in(dataset, "RescaleSlope") == 0:
        raise UnreadableDicom("RescaleSlope is 0")
    number_in(dataset, "RescaleIntercept")


def _check_kind(dataset: Dataset) -> None:
    """Which CT objects are left out: everything that is no axial slice in Hounsfield units."""
    if dataset.get("Modality") not in (None, "", "CT"):
        raise UnreadableDicom("Modality is not CT")
    if str(dataset.get("SOPClassUID", "")).startswith(SECONDARY_CAPTURE):
        raise UnreadableDicom("a secondary capture, not a CT slice")
    image_type = dataset.get("ImageType") or ()
    for value in (image_type,) if isinstance(image_type, str) else image_type:
        if (kind := OTHER_IMAGE_TYPES.get(str(value).strip().upper())) is not None:
            raise UnreadableDicom(f"{kind}, not an axial slice")
    if dataset.get("NumberOfFrames") not in (None, "", 1):
        raise UnreadableDicom("more than one frame: not one CT slice")
    if str(dataset.get("RescaleType") or "HU").strip().upper() != "HU":
        raise UnreadableDicom("RescaleType is not HU")
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise UnreadableDicom("BurnedInAnnotation is YES: text in the picture may name the patient")
    if not _is_axial(dataset.get("ImageOrientationPatient")):
        raise UnreadableDicom("a sagittal or coronal picture, not an axial slice")


def _is_axial(orientation: MultiValue | None) -> bool:
    """Whether the normal of the slice points along the body, a tilted gantry's included; True
    where the orientation is absent or no orientation."""
    try:
        directions = np.array(orientation, dtype=float).reshape(2, 3)
    except (TypeError, ValueError):
        return True
    normal = np.abs(np.cross(*directions))
    return bool(normal[2] >= normal.max()) or not np.isfinite(normal).all()


def check_pixel_data(dataset: Dataset) -> None:
    """Raise `UnreadableDicom` unless the pixel data are as long as the header says, a decoder is
    installed, and what it will decode has the header's size."""
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    expected, stored = _expected_bytes(dataset), len(dataset.PixelData)
    if not syntax.is_transfer_syntax or syntax.is_private:
        raise UnreadableDicom("no TransferSyntaxUID of the DICOM standard")
    if not syntax.is_encapsulated:
        if stored < expected:
            raise UnreadableDicom(f"{stored} bytes of pixels where {expected} are expected")
        if stored >= 2 * expected:
            raise UnreadableDicom(
                f"{stored} bytes of pixels where {expected} are expected: more than one frame"
            )
        return
    # No compression makes a picture much longer; RLE can inflate 64-fold before it is found out.
    if stored > expected + expected // 16 + 65536:
        raise UnreadableDicom(f"{stored} compressed bytes for a picture of {expected}")
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        wanted = "; or ".join(decoder.missing_dependencies)
        raise UnreadableDicom(f"{syntax.name} needs a plug-in: install {wanted}")
    if len(parse_basic_offsets(dataset.PixelData)) > 1:
        raise UnreadableDicom("more than one frame: not one CT slice")
    sizes = _coded_sizes(syntax, dataset.PixelData)
    if any(size != (dataset.Rows, dataset.Columns, 1) for size in sizes):
        raise UnreadableDicom("the compressed picture has not the size that the header states")


def padding_note(dataset: Dataset) -> list[str]:
    """A note where uncompressed pixels are followed by more than the one byte that makes their
    length even."""
    expected = _expected_bytes(dataset)
    extra = len(dataset.PixelData) - expected - expected % 2
    is_plain = not UID(dataset.file_meta.TransferSyntaxUID).is_encapsulated
    return ["padding after the pixels"] if is_plain and extra > 0 else []


def _expected_bytes(dataset: Dataset) -> int:
    return dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8


def _coded_sizes(syntax: UID, pixel_data: bytes) -> list[tuple[int, int, int]]:
    """(rows, columns, components) of each picture that the compressed frame announces, which is
    what decides over its decoder's memory. Empty for RLE, which announces none."""
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        sizes = jpeg_sizes(get_frame(pixel_data, 0, number_of_frames=1))
    elif syntax in JPEG2000TransferSyntaxes or syntax.name.startswith("High-Throughput JPEG 2000"):
        sizes = jpeg_2000_sizes(get_frame(pixel_data, 0, number_of_frames=1))
    else:
        return []
    if not sizes:
        raise UnreadableDicom("the compressed picture has no header of its own")
    return sizes


def jpeg_sizes(stream: bytes) -> list[tuple[int, int, int]]:
    """(rows, columns, components) of every frame header (SOF0-15, JPEG-LS: SOF55) that stands
    before the first scan of a JPEG of any process and depth (ITU-T T.81, B.1 and B.2)."""
    sizes, at = [], 2
    if stream[:2] != b"\xff\xd8":
        return []
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length follows
            at += 2
        elif marker in (0xD9, 0xDA):  # end of the image, start of a scan
            break
        else:
            is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
            if (is_frame or marker == 0xF7) and at + 10 <= len(stream):
                sizes.append(struct.unpack_from(">HHB", stream, at + 5))
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return sizes


def jpeg_2000_sizes(stream: bytes) -> list[tuple[int, int, int]]:
    """(rows, columns, components) of every SIZ marker segment that follows a start of codestream
    (ITU-T T.800, A.5.1), within a JP2 file or without."""
    sizes, at = [], stream.find(b"\xff\x4f\xff\x51")
    while at >= 0 and at + 42 <= len(stream):
        width, height, left, top = struct.unpack_from(">4I", stream, at + 8)
        components = struct.unpack_from(">H", stream, at + 40)[0]
        sizes.append((height - top, width - left, components))
        at = stream.find(b"\xff\x4f\xff\x51", at + 4)
    return sizes


def number_in(dataset: Dataset, keyword: str) -> float:
    """The tag's value, the first of several, as a finite number; `UnreadableDicom` otherwise."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue | list):
        value = value[0] if value else None
    if value in (None, ""):
        raise UnreadableDicom(f"no {keyword}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise UnreadableDicom(f"{keyword} is not a number")
    return number
