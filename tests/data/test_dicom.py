"""DICOM slices: Hounsfield units and pictures against numbers worked out by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dataloaders.dicom import (
    Preprocessing,
    read_hounsfield,
    read_picture,
)
from dataloaders.windows import apply_window, window_picture
from tests.helpers.dicom_files import (
    compress_jpeg_2000,
    ct_dataset,
    head,
    write_ct,
    write_deflated,
)


def test_signed_16_bit_is_stored_value_plus_intercept(tmp_path):
    stored = np.array([[24, 1064], [-976, 2024]], dtype=np.int16)
    hounsfield = read_hounsfield(write_ct(tmp_path / "a.dcm", stored))
    assert hounsfield.dtype == np.float32
    assert hounsfield.tolist() == [[-1000, 40], [-2000, 1000]]


def test_slope_is_applied(tmp_path):
    path = write_ct(tmp_path / "a.dcm", np.array([[0, 20]], np.int16), -10, RescaleSlope=0.5)
    assert read_hounsfield(path).tolist() == [[-10, 0]]


TWELVE_BITS = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}


@pytest.mark.parametrize(
    ("intercept", "expected"),
    [
        # What did not wrap keeps its value; the others are negative modulo 4096.
        (0, [[64, -976, -1000, 3095]]),
        (-99, [[64, -976, -1000, 3095]]),
        # A sound intercept is believed.
        (-100, [[-36, 3020, 2996, 2995]]),
        (-1024, [[-960, 2096, 2072, 2071]]),
    ],
)
def test_12_bit_intercept_near_zero_is_repaired(tmp_path, intercept, expected):
    stored = np.array([[64, 3120, 3096, 3095]], dtype=np.uint16)
    path = write_ct(tmp_path / "a.dcm", stored, intercept, **TWELVE_BITS)
    assert read_hounsfield(path).tolist() == expected


def test_other_depths_are_not_repaired(tmp_path):
    stored = np.array([[64, 3120]], dtype=np.uint16)
    sixteen = write_ct(tmp_path / "a.dcm", stored, 0)
    signed = write_ct(tmp_path / "b.dcm", stored.astype(np.int16), 0, BitsStored=12, HighBit=11)
    assert read_hounsfield(sixteen).tolist() == [[64, 3120]]
    # 3120 - 4096: in 12 signed bits the highest is the sign.
    assert read_hounsfield(signed).tolist() == [[64, -976]]


def test_a_data_set_already_read_and_left_unchanged():
    stored = np.array([[64, 3120]], dtype=np.uint16)
    dataset = ct_dataset(stored, 0, **TWELVE_BITS)
    assert read_hounsfield(dataset).tolist() == [[64, -976]]
    assert dataset.RescaleIntercept == 0
    assert dataset.PixelData == stored.tobytes()


@pytest.mark.parametrize("window", ["brain", "subdural", "bone", "triple"])
def test_picture_is_the_window_of_the_hounsfield_units(tmp_path, window):
    path = write_ct(tmp_path / "a.dcm", head(40, 40) + np.int16(1024))
    picture = read_picture(path, window, 40)
    expected = window_picture(read_hounsfield(path), window)
    assert picture.image.dtype == np.uint8
    np.testing.assert_array_equal(picture.image, expected)


def test_triple_by_hand(tmp_path):
    # 40 HU: brain (40-0)/80, subdural (40+20)/200, bone (40+800)/2800 of 255
    stored = np.array([[1064, 24], [1064, 24]], np.int16)
    picture = read_picture(write_ct(tmp_path / "a.dcm", stored), "triple", 2)
    assert picture.image[0].tolist() == [[128, 76, 76], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(32, 32), (37, 61), (61, 16)])
def test_resizing_is_pillows_whatever_the_matrix(tmp_path, shape):
    path = write_ct(tmp_path / "a.dcm", head(*shape) + np.int16(1024))
    whole = Image.fromarray(window_picture(read_hounsfield(path), "triple"))
    expected = np.asarray(whole.resize((24, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_picture(path, "triple", 24).image, expected)


def test_file_window_takes_the_first_value_and_stretches_what_remains(tmp_path):
    # Window 40/80 = 0..80 HU. Between 10 and 60 HU nothing is cut, so these become 0 and 255.
    stored = np.array([[1034, 1084], [1059, 1034]], np.int16)
    path = write_ct(tmp_path / "a.dcm", stored, WindowCenter=[40, 600], WindowWidth=[80, 2800])
    assert read_picture(path, "file", 2).image.tolist() == [[0, 255], [128, 0]]


def test_file_window_cuts_at_its_edges(tmp_path):
    stored = np.array([[24, 1064], [1104, 3024]], np.int16)  # -1000, 40, 80, 2000 HU
    picture = read_picture(write_ct(tmp_path / "a.dcm", stored), "file", 2)
    assert picture.image.tolist() == [[0, 128], [255, 255]]


def test_file_window_after_the_12_bit_repair_sees_only_values_that_occur(tmp_path):
    # 10 and 60 HU, and -1000 HU on the other side of the wrap.
    stored = np.array([[10, 60], [60, 3096]], dtype=np.uint16)
    path = write_ct(tmp_path / "a.dcm", stored, 0, **TWELVE_BITS)
    expected = apply_window(np.array([[10, 60], [60, -1000]]), 30, 60)
    np.testing.assert_array_equal(read_picture(path, "file", 2).image, expected)


@pytest.mark.parametrize("window", ["file", "brain", "triple"])
def test_monochrome1_inverts_the_picture_and_not_the_hounsfield_units(tmp_path, window):
    plain = write_ct(tmp_path / "a.dcm")
    inverted = write_ct(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_hounsfield(plain), read_hounsfield(inverted))
    np.testing.assert_array_equal(
        255 - read_picture(plain, window, 32).image, read_picture(inverted, window, 32).image
    )


def test_ids_and_site(tmp_path):
    path = write_ct(
        tmp_path / "a.dcm", PatientID="ID_7\n", StudyInstanceUID="1.2.9", WindowCenter=[40, 50]
    )
    picture = read_picture(path, "brain", 16)
    assert (picture.patient_id, picture.study_uid) == ("ID_7", "1.2.9")
    assert picture.site == "16bit-signed_intercept-1024_windows2"


def test_site_keeps_the_intercept_that_the_repair_replaces(tmp_path):
    stored = np.array([[64, 3120]], dtype=np.uint16)
    path = write_ct(tmp_path / "a.dcm", stored, 1, **TWELVE_BITS)
    assert read_picture(path, "brain", 16).site == "12bit-unsigned_intercept1_windows1"


def test_no_ids_are_empty_and_nothing_else_is_read(tmp_path):
    path = write_ct(tmp_path / "a.dcm", PatientID=None, StudyInstanceUID=None)
    picture = read_picture(path, "brain", 16)
    assert (picture.patient_id, picture.study_uid) == ("", "")


def test_preprocessing_survives_json():
    assert Preprocessing() == ("triple", 128)
    stored = json.dumps(Preprocessing("file", 224)._asdict())
    assert Preprocessing(**json.loads(stored)) == Preprocessing("file", 224)


@pytest.mark.parametrize("syntax", ["implicit", "big endian", "RLE", "deflated", "JPEG 2000"])
def test_every_readable_transfer_syntax_gives_the_same_units(tmp_path, syntax):
    stored = (head(24, 30) + 1024).astype(np.uint16)
    dataset = ct_dataset(stored)
    path = tmp_path / "a.dcm"
    if syntax == "deflated":
        write_deflated(path, dataset)
    else:
        if syntax == "implicit":
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        elif syntax == "big endian":
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            dataset.PixelData = stored.astype(">u2").tobytes()
        elif syntax == "RLE":
            dataset.compress(RLELossless, generate_instance_uid=False)
        else:
            compress_jpeg_2000(dataset)
        dataset.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_hounsfield(path), stored.astype(np.float32) - 1024)
