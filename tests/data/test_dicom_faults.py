"""DICOM files that are damaged, odd or hostile: a reason in one line, or a picture with a note."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dataloaders.dicom import (
    MAX_FILE_BYTES,
    UnreadableDicom,
    read_hounsfield,
    read_picture,
)
from tests.helpers import PROJECT
from tests.helpers.dicom_files import (
    BIRTH_DATE,
    ct_dataset,
    head,
    write_ct,
    write_deflated,
)

STORED = head() + np.int16(1024)


PIXEL_BYTES = STORED.tobytes()


FAULTS = {
    "truncated pixels": ({"PixelData": PIXEL_BYTES[:600]}, "600 bytes of pixels where 2048"),
    "too many pixels": ({"PixelData": PIXEL_BYTES * 2}, "4096 bytes.* 2048.* more than one frame"),
    "wrong rows": ({"Rows": 64}, "2048 bytes of pixels where 4096"),
    "huge rows": ({"Rows": 65535, "Columns": 65535}, "Rows is not between 1 and 2048"),
    "no rows": ({"Rows": None}, "no Rows"),
    "no pixels": ({"PixelData": None}, "no PixelData"),
    "empty pixels": ({"PixelData": b""}, "no PixelData"),
    "no intercept": ({"RescaleIntercept": None}, "no RescaleIntercept"),
    "no slope": ({"RescaleSlope": None}, "no RescaleSlope"),
    "two slopes": ({"RescaleSlope": [1, 2]}, "RescaleSlope has more than one value"),
    "two intercepts": ({"RescaleIntercept": [0, -1024]}, "RescaleIntercept has more than one"),
    "zero slope": ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    "absurd slope": ({"RescaleSlope": 1e30}, "give no Hounsfield units"),
    "absurd intercept": ({"RescaleIntercept": 1e9}, "give no Hounsfield units"),
    "no bits": ({"BitsStored": None}, "no BitsStored"),
    "too many bits": ({"BitsStored": 17}, "BitsStored is not between"),
    "odd allocation": ({"BitsAllocated": 12}, "BitsAllocated is neither 8 nor 16"),
    "no sign": ({"PixelRepresentation": None}, "no PixelRepresentation"),
    "wrong sign": ({"PixelRepresentation": 7}, "PixelRepresentation is neither"),
    "colour": ({"PhotometricInterpretation": "RGB"}, "a colour picture"),
    "frames": ({"NumberOfFrames": 2}, "more than one frame"),
    "frames without units": ({"NumberOfFrames": 2, "RescaleSlope": None}, "more than one frame"),
    "MR": ({"Modality": "MR"}, "Modality is not CT"),
    "scout": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, r"a localizer \(scout\)"),
    "screen": ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a screen capture"),
    "one image type": ({"ImageType": "LOCALIZER"}, "a localizer"),
    "capture": ({"SOPClassUID": SecondaryCaptureImageStorage}, "a secondary capture"),
    "electron density": ({"RescaleType": "ED"}, "RescaleType is not HU"),
    "burned in": ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
    "coronal": ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "sagittal or coronal"),
    "sagittal": ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "sagittal or coronal"),
    "constant": ({"PixelData": bytes(2048)}, "constant image"),
}


# What an axial slice's header may say, a gantry tilted by 25 degrees among it.
AXIAL = {
    "original": {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "RescaleType": "HU"},
    "reformatted": {"ImageType": ["DERIVED", "SECONDARY", "MPR"], "RescaleType": "hu "},
    "upright": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "BurnedInAnnotation": "NO"},
    "tilted": {"ImageOrientationPatient": [1, 0, 0, 0, 0.906, -0.423]},
    "empty": {"ImageType": "", "RescaleType": "", "ImageOrientationPatient": None},
}


@pytest.mark.parametrize("tags", AXIAL.values(), ids=AXIAL)
def test_axial_slices_are_read_whatever_else_their_header_says(tmp_path, tags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_ct(tmp_path / "a.dcm", STORED, **{k: v for k, v in tags.items() if v})
    assert read_picture(path, "brain", 32).note == ""
    np.testing.assert_array_equal(read_hounsfield(path), head())


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected_with_their_reason(tmp_path, fault):
    tags, reason = FAULTS[fault]
    path = write_ct(tmp_path / "a.dcm", STORED, **tags)
    with pytest.raises(UnreadableDicom, match=reason):
        read_hounsfield(path)
    with pytest.raises(UnreadableDicom, match=reason):
        read_picture(path, "triple", 32)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"WindowCenter": None}, "no WindowCenter"),
        ({"WindowWidth": 0}, "WindowWidth is not positive"),
        ({"WindowCenter": -5000}, "no pixel lies inside"),
    ],
)
def test_a_bad_window_matters_only_where_it_is_used(tmp_path, tags, reason):
    path = write_ct(tmp_path / "a.dcm", **tags)
    with pytest.raises(UnreadableDicom, match=reason):
        read_picture(path, "file", 32)
    assert read_picture(path, "triple", 32).image.max() == 255


def test_an_unknown_window_is_not_the_files_fault(tmp_path):
    with pytest.raises(KeyError, match="choose from file, brain"):
        read_picture(write_ct(tmp_path / "a.dcm"), "lung", 32)


def test_files_that_are_no_dicom_files(tmp_path):
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.dcm").write_text("no DICOM " * 100)
    os.mkfifo(tmp_path / "pipe.dcm")
    with open(tmp_path / "huge.dcm", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    whole = write_ct(tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "header.dcm").write_bytes(whole[:400])
    reasons = {
        "empty": "no DICM mark",
        "text": "no DICM mark",
        "pipe": "not a file",
        "huge": "larger than 32 MB",
        "header": "no |damaged",
        "absent": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableDicom, match=reason):
            read_picture(tmp_path / f"{name}.dcm", "brain", 32)


def test_truncated_like_the_sets_known_bad_file(tmp_path):
    whole = write_ct(tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[: len(whole) - 1500])
    with pytest.raises(UnreadableDicom, match="548 bytes of pixels where 2048"):
        read_picture(tmp_path / "b.dcm", "brain", 32)


def test_padding_after_the_pixels_is_read_with_a_note(tmp_path):
    path = write_ct(tmp_path / "a.dcm", STORED, PixelData=PIXEL_BYTES + bytes(100))
    np.testing.assert_array_equal(read_hounsfield(path), head())
    assert read_picture(path, "brain", 32).note == "padding after the pixels"


@pytest.mark.parametrize("implicit", [False, True])
def test_a_missing_preamble_is_read_with_a_note(tmp_path, implicit):
    dataset = ct_dataset(STORED)
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    whole = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[132:])
    length = 132 + 12 + int.from_bytes(whole[140:144], "little")  # of the file meta information
    (tmp_path / "c.dcm").write_bytes(whole[length:])
    expected = read_picture(tmp_path / "a.dcm", "triple", 32)
    assert expected.note == ""
    for name, note in (("b", "no preamble"), ("c", "no preamble; no file meta information")):
        picture = read_picture(tmp_path / f"{name}.dcm", "triple", 32)
        np.testing.assert_array_equal(picture.image, expected.image)
        assert picture.note == note and picture.patient_id == "ID_patient"


def test_reasons_repeat_nothing_of_the_file(tmp_path):
    whole = write_ct(tmp_path / "a.dcm", WindowCenter="1852.0504").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole.replace(b"1852.0504", b"18520504x"))
    with pytest.raises(UnreadableDicom) as error:
        read_picture(tmp_path / "b.dcm", "file", 32)
    assert BIRTH_DATE not in str(error.value)


def test_nothing_is_printed_or_warned(tmp_path, capfd):
    with pytest.warns(UserWarning, match="exceeds the maximum length"):
        path = write_ct(tmp_path / "a.dcm", PatientID="x" * 70, WindowWidth=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableDicom):
            read_picture(path, "file", 32)
    assert capfd.readouterr() == ("", "")


def test_deflated_bomb_is_rejected_in_bounded_memory(tmp_path):
    bomb = write_deflated(tmp_path / "bomb.dcm", ct_dataset(STORED), zeros_appended=400 << 20)
    assert bomb.stat().st_size < 500_000
    # VmHWM, not ru_maxrss: the latter starts at the size of the process that ran the tests.
    program = (
        "import sys\n"
        "from dataloaders.dicom import read_picture\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "before = peak()\n"
        "try:\n    read_picture(sys.argv[1], 'brain', 32)\n"
        "except ValueError as error:\n    print(error)\n"
        "print((peak() - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, bomb], cwd=PROJECT, capture_output=True, text=True
    )
    reason, megabytes = done.stdout.splitlines()
    assert "inflates to more than 32 MB" in reason
    assert 10 < int(megabytes) < 200


def fuzz_seeds() -> list[bytes]:
    """pydicom's own test files as they are, and once more labelled as CT so that the damage
    reaches the decoders."""
    seeds = []
    for path in sorted(Path(pydicom.__file__).parent.glob("data/test_files/*.dcm")):
        seeds.append(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            dataset.Modality = "CT"
            dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
            stream = pydicom.filebase.DicomBytesIO()
            try:
                dataset.save_as(stream)
            except Exception:
                continue
        seeds.append(stream.getvalue())
    return seeds


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """`content` with some bytes changed, a block cut out or repeated, or its end missing."""
    changed = bytearray(content)
    kind = random.integers(5)
    if kind < 2:
        # Mostly in the header, where a byte decides over lengths and types.
        reach = len(changed) if kind else min(len(changed), 2000)
        for at in random.integers(reach, size=random.integers(1, 30)):
            changed[at] = random.integers(256)
    elif kind == 2:
        del changed[random.integers(len(changed)) :]
    else:
        start = random.integers(len(changed))
        end = start + random.integers(1, 200)
        changed[start:end] = b"" if kind == 3 else changed[start:end] * 3
    return bytes(changed)


def test_fuzzed_files_give_a_picture_or_a_reason(tmp_path):
    """FUZZ_FILES=20000 pytest -s tests/data/test_dicom.py -k fuzzed: the same with more files."""
    random = np.random.default_rng(1337)
    seeds = fuzz_seeds()
    assert len(seeds) > 100
    path = tmp_path / "a.dcm"
    pictures = rejected = 0
    for number in range(int(os.environ.get("FUZZ_FILES", "1000"))):
        path.write_bytes(damaged(seeds[number % len(seeds)], random))
        try:
            picture = read_picture(path, "triple", 32)
        except UnreadableDicom as error:
            assert "\n" not in str(error)
            rejected += 1
        else:
            assert picture.image.shape == (32, 32, 3) and picture.image.dtype == np.uint8
            pictures += 1
    print(f"{pictures} pictures, {rejected} rejected")
    assert pictures > 0 and rejected > pictures
