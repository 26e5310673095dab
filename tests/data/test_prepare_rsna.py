"""`prepare rsna` as a user types it, on a hospital with planted faults."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from dataloaders.dicom import Preprocessing, read_hounsfield, read_picture
from dataloaders.phantom.files import write_dicom
from dataloaders.phantom.patients import generate
from dataloaders.prepare.conversion import Options
from dataloaders.prepare.rsna import SUBTYPES, prepare_rsna, read_rsna_labels
from tests.helpers.dicom_files import (
    BIRTH_DATE,
    PATIENT_NAME,
    ct_dataset,
    head,
    long_label_rows,
    write_ct,
    write_deflated,
)
from tests.helpers.prepare_command import PROJECT, one_line_error, prepare, rsna, write_labels
from utils.errors import UserError


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    """A folder with DICOM files, good and bad, and labels.csv."""
    folder = tmp_path_factory.mktemp("hospital")
    scans = folder / "stage_2_train"
    scans.mkdir()
    stored = head() + np.int16(1024)
    for number in range(12):
        write_ct(
            scans / f"ID_good{number:02}.dcm",
            head(seed=number) + np.int16(1024),
            PatientID=f"ID_patient{number // 3}",
            StudyInstanceUID=f"1.2.{number // 2}",
        )
    twelve = (head(48, 40) % 4096).astype(np.uint16)
    write_ct(scans / "ID_repaired.dcm", twelve, 0, BitsStored=12, HighBit=11)
    write_ct(scans / "ID_inverse.dcm", PhotometricInterpretation="MONOCHROME1")
    rle = ct_dataset(stored)
    rle.compress(RLELossless, generate_instance_uid=False)
    rle.save_as(scans / "ID_rle.dcm", enforce_file_format=True)
    write_ct(scans / "ID_truncated.dcm", stored, PixelData=stored.tobytes()[:600])
    write_ct(scans / "ID_constant.dcm", np.zeros((16, 16), np.int16))
    write_ct(scans / "ID_nobody.dcm", PatientID=None)
    write_ct(scans / "ID_nostudy.dcm", StudyInstanceUID=None)
    (scans / "ID_text.dcm").write_text(f"{PATIENT_NAME} {BIRTH_DATE}" * 50)
    write_deflated(scans / "ID_bomb.dcm", ct_dataset(stored), zeros_appended=40 << 20)
    write_ct(scans / "ID_scout.dcm", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct(scans / "ID_burned.dcm", BurnedInAnnotation="YES")
    write_ct(scans / "ID_padded.dcm", stored, PixelData=stored.tobytes() + bytes(64))
    write_ct(scans / "ID_unlabelled.dcm")
    images = {
        path.stem: (0, number % 2, 0, number % 3 == 0, 0)
        for number, path in enumerate(sorted(scans.iterdir()))
        if path.stem != "ID_unlabelled"
    }
    images["ID_lost"] = (0, 0, 0, 0, 1)
    lines = long_label_rows({image: tuple(map(int, row)) for image, row in images.items()})
    write_labels(folder / "labels.csv", lines + lines[:6])
    return folder


@pytest.fixture(scope="module")
def prepared(hospital, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    done = rsna(hospital, out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "6 of them exact duplicates, 25 images" in done.stdout
    assert "1 labelled images have no file, 1 files have no label" in done.stdout
    return out


GOOD = [f"ID_good{number:02}" for number in range(12)] + [
    "ID_inverse",
    "ID_padded",
    "ID_repaired",
    "ID_rle",
]


def test_labels_and_pictures_of_the_good_files(hospital, prepared):
    table = pd.read_csv(prepared / "labels.csv")
    assert list(table.columns) == ["ImageID", "PatientID", "StudyInstanceUID", "site", *SUBTYPES]
    assert sorted(table["ImageID"]) == [f"{name}.png" for name in GOOD]
    assert sorted(path.name for path in (prepared / "images").iterdir()) == [
        f"{name}.png" for name in GOOD
    ]
    row = table.set_index("ImageID").loc["ID_good07.png"]
    assert (row["PatientID"], row["StudyInstanceUID"]) == ("ID_patient2", "1.2.3")
    assert row["site"] == "16bit-signed_intercept-1024_windows1"
    wanted = read_rsna_labels(hospital / "labels.csv").table.loc[GOOD]
    found = table.set_index(table["ImageID"].str.removesuffix(".png")).loc[GOOD, list(SUBTYPES)]
    np.testing.assert_array_equal(found, wanted)
    for name in GOOD:
        picture = np.asarray(Image.open(prepared / "images" / f"{name}.png"))
        scan = hospital / "stage_2_train" / f"{name}.dcm"
        np.testing.assert_array_equal(picture, read_picture(scan, "triple", 24).image)


@pytest.mark.parametrize("with_any", [True, False])
def test_a_wide_label_file_says_the_same(hospital, tmp_path, with_any):
    """One row per image, ids with their suffix, and the derived column `any` where it stands."""
    expected = read_rsna_labels(hospital / "labels.csv").table
    wide = expected.copy()
    if with_any:
        wide["any"] = wide.max(axis=1)
    wide.index = [f"{name}.dcm" for name in wide.index]
    wide.to_csv(tmp_path / "wide.csv", index_label="ImageID")
    found = read_rsna_labels(tmp_path / "wide.csv")
    pd.testing.assert_frame_equal(found.table, expected)
    assert (found.rows, found.duplicates) == (25, 0)
    if with_any:
        text = (tmp_path / "wide.csv").read_text().replace("0,0,0,0,0,0", "0,0,0,0,0,1", 1)
        (tmp_path / "wrong.csv").write_text(text)
        with pytest.raises(UserError, match="line .* any does not agree with the five"):
            read_rsna_labels(tmp_path / "wrong.csv")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_label_file_may_be_separated_as_a_spreadsheet_does(hospital, tmp_path, separator):
    text = (hospital / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(text.replace(",", separator))
    expected = read_rsna_labels(hospital / "labels.csv")
    found = read_rsna_labels(tmp_path / "labels.csv")
    pd.testing.assert_frame_equal(found.table, expected.table)


def test_every_bad_file_has_its_reason(prepared):
    with open(prepared / "rejected.csv", newline="") as file:
        reasons = {Path(row["file"]).stem: row["reason"] for row in csv.DictReader(file)}
    expected = {
        "ID_truncated": "600 bytes of pixels where 2048 are expected",
        "ID_constant": "constant image",
        "ID_nobody": "no PatientID",
        "ID_nostudy": "no StudyInstanceUID",
        "ID_text": "not a DICOM file",
        "ID_scout": "a localizer",
        "ID_burned": "BurnedInAnnotation",
        "ID_bomb": "inflates to more than",
        "ID_lost": "no file",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]


def test_manifest_holds_what_prediction_needs(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["preprocessing"] == {"window": "triple", "size": 24}
    assert manifest["classes"] == list(SUBTYPES)
    assert manifest["complete"] is True
    counts = {"images": 16, "rejected": 9, "duplicate_label_rows": 6, "images_without_file": 1}
    assert counts.items() <= manifest.items()
    assert manifest["notes"] == {"padding after the pixels": 1}


def test_nothing_but_the_ids_leaves_the_files(prepared):
    for path in prepared.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PATIENT_NAME.encode() not in content and b"Alice" not in content
            assert BIRTH_DATE.encode() not in content


def test_a_second_run_makes_only_what_is_missing(hospital, tmp_path):
    assert rsna(hospital, tmp_path).returncode == 0
    images = tmp_path / "images"
    first = (tmp_path / "labels.csv").read_bytes()
    old = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    (images / "ID_good03.png").unlink()
    (images / "ID_good05.png").write_bytes(b"half a pict")
    (images / ".ID_rle.png.partial").write_bytes(b"left by a kill")
    with open(tmp_path / "progress.csv", "a") as file:
        file.write("no,line,of,ours\nID_good05.png,3")
    done = rsna(hospital, tmp_path)
    assert done.returncode == 0 and "14 are done already" in done.stdout
    new = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert {name for name in old if old[name] != new[name]} == {"ID_good03.png", "ID_good05.png"}
    assert new.keys() == old.keys()
    assert (tmp_path / "labels.csv").read_bytes() == first


def test_other_parameters_are_refused_in_the_same_folder(hospital, prepared):
    error = one_line_error(rsna(hospital, prepared, "--window", "file"))
    assert "choose another --out" in error and "triple" in error


def test_more_than_max_bad_is_an_error_after_all_is_written(hospital, tmp_path):
    error = one_line_error(rsna(hospital, tmp_path, "--max_bad", "8"))
    assert "9 files rejected, more than --max_bad 8" in error
    assert len(pd.read_csv(tmp_path / "labels.csv")) == 16
    assert "ID_lost" in (tmp_path / "rejected.csv").read_text()
    done = rsna(hospital, tmp_path, "--max_bad", "8", "--allow_missing")
    assert done.returncode == 0, "without the missing one there are 8"
    assert "16 images in" in done.stdout and "8 rejected" in done.stdout
    # Half a set without its other half: those are counted, and nothing is wrong with them.
    assert "ID_lost" not in (tmp_path / "rejected.csv").read_text()
    assert json.loads((tmp_path / "manifest.json").read_text())["images_without_file"] == 1


def test_grey_windows_and_the_slides_own(hospital, tmp_path):
    assert rsna(hospital, tmp_path, "--window", "file").returncode == 0
    picture = Image.open(tmp_path / "images" / "ID_good00.png")
    assert picture.mode == "L" and picture.size == (24, 24)
    scan = hospital / "stage_2_train" / "ID_good00.dcm"
    np.testing.assert_array_equal(np.asarray(picture), read_picture(scan, "file", 24).image)


def test_a_folder_without_one_good_file(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "ID_a.dcm").write_text("no DICOM")
    labels = write_labels(tmp_path / "labels.csv", long_label_rows({"ID_a": (0, 0, 0, 0, 1)}))
    with pytest.raises(UserError, match="all there are .*1: not a DICOM file"):
        prepare_rsna(
            *(tmp_path / "scans", labels, tmp_path / "out", Preprocessing()),
            Options(max_bad=1, allow_missing=False, workers=1),
        )
    assert (tmp_path / "out" / "labels.csv").read_text().count("\n") == 1


def test_phantom_scans_become_training_and_test_sets(tmp_path):
    phantom = generate(num_patients=12, size=32, seed=5)
    labels = write_dicom(phantom, tmp_path)
    scans = tmp_path / "stage_2_train"
    for image, hounsfield in zip(phantom.image_ids, phantom.hounsfield, strict=True):
        found = read_hounsfield(scans / f"{image}.dcm")
        # One of the scanners stores nothing below air.
        np.testing.assert_array_equal(np.maximum(found, -1000), np.maximum(hounsfield, -1000))
    out = tmp_path / "prepared"
    done = prepare("rsna", "--dicom_dir", scans, "--labels", labels, "--out", out, "--size", 32)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "labels.csv").set_index("ImageID")
    expected = [f"{image}.png" for image in phantom.image_ids]
    np.testing.assert_array_equal(table.loc[expected, list(SUBTYPES)], phantom.labels)
    assert list(table.loc[expected, "PatientID"]) == list(phantom.patient_ids)
    partition = [sys.executable, "-m", "dataloaders.partition", out / "labels.csv", "--out", out]
    done = subprocess.run(
        [*partition, "--single_label"], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    patients = [
        set(pd.read_csv(out / f"{part}.csv")["PatientID"])
        for part in ("training", "validation", "testing")
    ]
    assert all(patients) and not patients[0] & patients[1] | patients[2] & (
        patients[0] | patients[1]
    )


def test_wrong_folders_and_flags_are_refused_in_one_line(hospital, tmp_path):
    labels = hospital / "labels.csv"
    common = ("--labels", labels, "--out", tmp_path / "out")
    parent = one_line_error(prepare("rsna", "--dicom_dir", hospital, *common))
    assert f"its subfolder {hospital / 'stage_2_train'} has" in parent
    absent = one_line_error(prepare("rsna", "--dicom_dir", tmp_path / "x", *common))
    assert "No such file" in absent
    size = one_line_error(rsna(hospital, tmp_path / "out", "--size", "5"))
    assert "--size 5: give a whole number from 16 to 1024" in size
    missing = one_line_error(rsna(hospital, tmp_path / "out", "--max_bad", "0"))
    assert "1 of 25 labelled images have no file" in missing and "--allow_missing" in missing
    assert not (tmp_path / "out").exists()
