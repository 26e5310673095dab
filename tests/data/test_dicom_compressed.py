"""Compressed DICOM slices: the size that a frame announces, and pixels right to the bit."""

import struct
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from dataloaders import dicom_checks
from dataloaders.dicom import UnreadableDicom, read_hounsfield, read_picture
from dataloaders.dicom_checks import jpeg_2000_sizes, jpeg_sizes
from tests.helpers.dicom_files import compress_jpeg_2000, ct_dataset, head


def compressed(stream: bytes, syntax: str, **tags) -> pydicom.Dataset:
    dataset = ct_dataset((head() + 1024).astype(np.uint16), **tags)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def frame_header(marker: int, rows: int, columns: int, components: int = 1) -> bytes:
    """The beginning of a JPEG stream: an application segment, fill bytes and a frame header."""
    app = b"\xff\xe0" + struct.pack(">H", 6) + b"\xff\xc0\x00\x00"
    sizes = struct.pack(">HBHHB", 8 + 3 * components, 16, rows, columns, components)
    frame = b"\xff\xff" + bytes([marker]) + sizes + b"\x01\x11\x00" * components
    return b"\xff\xd8" + app + frame + b"\xff\xda" + bytes(20)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC3, 0xC5, 0xCF, 0xF7])
def test_the_size_of_a_jpeg_is_read_from_its_frame_header(marker):
    assert jpeg_sizes(frame_header(marker, 30, 40)) == [(30, 40, 1)]
    assert jpeg_sizes(frame_header(marker, 65535, 65535, 3)) == [(65535, 65535, 3)]


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc4\x00\x02", b"JFIF" * 9])
def test_no_frame_header_no_size(stream):
    assert jpeg_sizes(stream) == []


def test_the_size_of_a_jpeg_2000_is_read_from_its_code_stream():
    for form in ({"no_jp2": True}, {}):
        stream = pydicom.filebase.DicomBytesIO()
        Image.new("I;16", (40, 30)).save(stream, "JPEG2000", **form)
        assert jpeg_2000_sizes(stream.getvalue()) == [(30, 40, 1)]


@pytest.mark.parametrize(
    ("rows", "components", "reason"),
    [(800, 1, "not the size"), (32, 3, "not the size"), (32, 1, "needs a plug-in|damaged")],
)
def test_jpeg_lossless_is_measured_without_a_decoder(
    tmp_path, monkeypatch, rows, components, reason
):
    if reason.startswith("not"):  # the size is looked at once a decoder is there
        monkeypatch.setattr(dicom_checks, "get_decoder", lambda _: SimpleNamespace(is_available=1))
    dataset = compressed(frame_header(0xC3, rows, 32, components), JPEGLosslessSV1)
    with pytest.raises(UnreadableDicom, match=reason):
        read_hounsfield(dataset)


def jpeg_lossless(stored: np.ndarray, bits: int) -> bytes:
    """`stored` (H, W) uint16 as JPEG lossless, process 14, first predictor (ITU-T T.81, H.1):
    every difference's length takes a Huffman code of 5 bits, 0 to 16 in their order."""
    rows, columns = stored.shape
    table = bytes([0, *[0] * 4, 17, *[0] * 11, *range(17)])
    out = b"\xff\xd8\xff\xc4" + struct.pack(">H", 2 + len(table)) + table
    out += b"\xff\xc3" + struct.pack(">HBHHB", 11, bits, rows, columns, 1) + b"\x01\x11\x00"
    out += b"\xff\xda" + struct.pack(">HB", 8, 1) + b"\x01\x00\x01\x00\x00"
    above = np.vstack([[1 << (bits - 1)], stored[:-1, :1]])
    predicted = np.hstack([above, stored[:, :-1]]).astype(np.int64)
    differences = (stored.astype(np.int64) - predicted + 32768) % 65536 - 32768
    code = []
    for difference in differences.ravel().tolist():
        length = abs(difference).bit_length()
        code.append(f"{length:05b}")
        if 0 < length < 16:
            code.append(
                f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}"
            )
    text = "".join(code)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    return out + coded + b"\xff\xd9"


@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_lossless_is_read_to_the_bit_where_a_plug_in_is_installed(tmp_path, bits):
    if not get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("no plug-in for JPEG lossless (python-gdcm, or pylibjpeg with -libjpeg)")
    stored = (head() + 1024).astype(np.uint16)
    dataset = compressed(jpeg_lossless(stored, bits), JPEGLosslessSV1, BitsStored=bits)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_hounsfield(tmp_path / "a.dcm"), head())


def test_several_frames_in_one_compressed_slice_are_named(tmp_path):
    dataset = compressed(b"frame", JPEG2000Lossless)
    dataset.PixelData = encapsulate([b"\xff\x4f" * 20] * 2)
    with pytest.raises(UnreadableDicom, match="more than one frame"):
        read_hounsfield(dataset)


def test_missing_plug_in_is_named(tmp_path, monkeypatch):
    missing = SimpleNamespace(is_available=False, missing_dependencies=["pyjpegls>=1.2"])
    monkeypatch.setattr(dicom_checks, "get_decoder", lambda _: missing)
    dataset = ct_dataset(head())
    dataset.PixelData = encapsulate([head().tobytes()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableDicom, match="JPEG-LS.* needs a plug-in: install .*pyjpegls"):
        read_picture(tmp_path / "a.dcm", "brain", 32)


def test_compressed_picture_larger_than_the_header_is_not_decoded(tmp_path):
    dataset = ct_dataset(np.arange(6400 * 100, dtype=np.uint16).reshape(800, 800))
    compress_jpeg_2000(dataset)
    dataset.Rows = dataset.Columns = 600
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableDicom, match="not the size that the header states"):
        read_hounsfield(tmp_path / "a.dcm")
