"""The embedded data set on disk: its PNGs and CSVs, its DICOM files, its command."""

import csv
import filecmp
import os
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image

from dataloaders.phantom.files import class_table, write_contact_sheet, write_dicom, write_png
from dataloaders.phantom.patients import CLASS_NAMES, generate
from dataloaders.windows import window_picture
from tests.helpers import PROJECT
from utils.errors import UserError

EQUAL = [1] * 5


@pytest.fixture(scope="module")
def phantom():
    """20 patients, every class, healthy ones too."""
    return generate(20, size=48, seed=3, class_proportions=EQUAL, healthy_fraction=0.2)


def run_command_line(*arguments):
    command = [sys.executable, "-m", "dataloaders.phantom", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_png_and_csv(phantom, tmp_path):
    path = write_png(phantom, tmp_path / "data", window="brain")
    header, *rows = read_rows(path)
    assert path == tmp_path / "data" / "labels.csv"
    assert header == ["ImageID", "PatientID", *CLASS_NAMES]
    labelled = np.flatnonzero(phantom.labels.sum(axis=1) == 1)
    assert [row[0] for row in rows] == [f"{phantom.image_ids[i]}.png" for i in labelled]
    assert {path.name for path in (tmp_path / "data/images").iterdir()} == {r[0] for r in rows}
    for row, index in zip(rows, labelled, strict=True):
        assert row[1] == phantom.patient_ids[index]
        assert row[2:] == [str(value) for value in phantom.labels[index]]
    with Image.open(tmp_path / "data/images" / rows[5][0]) as picture:
        assert picture.mode == "L"
        expected = window_picture(phantom.hounsfield[labelled[5]], "brain")
        assert np.array_equal(np.asarray(picture), expected)


def test_png_keeps_healthy_slices_when_asked_and_is_repeatable(phantom, tmp_path):
    for name in ("a", "b"):
        write_png(phantom, tmp_path / name, labelled_only=False)
    names = [f"{image_id}.png" for image_id in phantom.image_ids]
    assert len(read_rows(tmp_path / "a/labels.csv")) == len(names) + 1
    same, _, _ = filecmp.cmpfiles(tmp_path / "a/images", tmp_path / "b/images", names, False)
    assert same == names
    with Image.open(tmp_path / "a/images" / names[0]) as picture:
        assert picture.mode == "RGB"
        expected = window_picture(phantom.hounsfield[0], "triple")
        assert np.array_equal(np.asarray(picture), expected)
    write_png(phantom, tmp_path / "a", labelled_only=False)  # the same files again are no strangers


def test_png_refuses_a_folder_of_other_pictures(phantom, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"images holds 1 files .*holiday\.png"):
        write_png(phantom, tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["holiday.png"]


def repaired_hounsfield(scan):
    """The standard reading of a DICOM file, with the repair of the broken 12-bit header."""
    pixels = scan.pixel_array.astype(int)
    intercept = float(scan.RescaleIntercept)
    if scan.BitsStored == 12 and scan.PixelRepresentation == 0 and intercept > -100:
        pixels = pixels + 1000
        pixels[pixels >= 4096] -= 4096
        intercept = -1000
    return pixels * float(scan.RescaleSlope) + intercept


def test_dicom_reads_back_as_the_phantom(phantom, tmp_path):
    write_dicom(phantom, tmp_path)
    scans = [pydicom.dcmread(tmp_path / "stage_2_train" / f"{i}.dcm") for i in phantom.image_ids]
    for index, scan in enumerate(scans):
        lowest = -1024 if scan.RescaleIntercept == -1024 else -1000
        expected = np.maximum(phantom.hounsfield[index], lowest)
        assert np.array_equal(repaired_hounsfield(scan), expected)
        assert scan.SOPClassUID == pydicom.uid.CTImageStorage
        assert scan.PatientID == phantom.patient_ids[index]
        assert scan.StudyInstanceUID == phantom.study_ids[index]
        for uid in (scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.SOPInstanceUID):
            assert uid.is_valid
    assert len({scan.SOPInstanceUID for scan in scans}) == len(scans)
    assert len({scan.SeriesInstanceUID for scan in scans}) == 20
    headers = {(s.BitsStored, s.PixelRepresentation, int(s.RescaleIntercept)) for s in scans}
    assert headers == {(16, 1, -1024), (12, 0, -1024), (12, 0, 0)}
    assert {scan["WindowCenter"].VM for scan in scans} == {1, 2}
    assert len({str(scan.PatientName) for scan in scans}) == 20
    assert all(len(scan.PatientBirthDate) == 8 for scan in scans)


def test_dicom_labels_are_in_kaggle_s_long_form(phantom, tmp_path):
    header, *rows = read_rows(write_dicom(phantom, tmp_path))
    assert header == ["ID", "Label"]
    assert len(rows) == 6 * len(phantom.image_ids)
    labels = {name: int(label) for name, label in rows}
    for image_id, row in zip(phantom.image_ids, phantom.labels, strict=True):
        assert [labels[f"{image_id}_{name}"] for name in CLASS_NAMES] == row.tolist()
        assert labels[f"{image_id}_any"] == row.max()


def test_dicom_is_repeatable(tmp_path):
    few = generate(3, size=32, seed=9, slices_per_patient=2)
    for name in ("a", "b"):
        write_dicom(few, tmp_path / name)
    names = [f"{image_id}.dcm" for image_id in few.image_ids]
    folders = (tmp_path / "a/stage_2_train", tmp_path / "b/stage_2_train")
    assert filecmp.cmpfiles(*folders, names, shallow=False)[0] == names


def test_class_table_counts_slices_and_patients(phantom):
    table = {name: (int(slices), int(patients)) for name, slices, patients in class_table(phantom)}
    assert list(table) == [*CLASS_NAMES, "healthy", "total"]
    assert table["total"] == (120, 20)
    assert sum(slices for slices, _ in table.values()) == 240
    subdural = phantom.labels[:, 4] == 1
    assert table["subdural"][1] == len(set(np.array(phantom.patient_ids)[subdural]))


def test_contact_sheet_has_a_row_per_class(phantom, tmp_path):
    write_contact_sheet(phantom, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as picture:
        grey = np.asarray(picture.convert("L"))
    for row in np.array_split(grey, 6):
        left, right = np.array_split(row[:, 45:], 2, axis=1)
        assert (left > 60).mean() > 0.2 and (right > 60).mean() > 0.2, "a head in every cell"
        assert (row[:, :45] > 200).any(), "a name beside every row"


# The command


def test_command_writes_png_and_says_what_is_next(tmp_path):
    out, sheet = tmp_path / "my data", tmp_path / "sheet.png"
    done = run_command_line(
        "--out", out, "--patients", 5, "--size", 32, "--slices", 3, "--seed", 2,
        "--window", "subdural", "--contact_sheet", sheet,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = generate(5, size=32, seed=2, slices_per_patient=3)
    labelled = [i for i, row in zip(same.image_ids, same.labels, strict=True) if row.sum() == 1]
    assert [row[0][:-4] for row in read_rows(out / "labels.csv")[1:]] == labelled
    with Image.open(out / "images" / f"{labelled[0]}.png") as picture:
        index = same.image_ids.index(labelled[0])
        expected = window_picture(same.hounsfield[index], "subdural")
        assert np.array_equal(np.asarray(picture), expected)
    assert sheet.is_file()
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["class", "slices", "patients"] in lines
    assert ["total", "15", "5"] in lines
    assert "python train_main.py --preset paper --image_size 32" in done.stdout
    assert f"--root_path '{out}/images'" in done.stdout


def test_command_writes_dicom_and_says_what_is_next(tmp_path):
    done = run_command_line(
        "--out", tmp_path, "--patients", 2, "--size", 32, "--slices", 2, "--format", "dicom",
        "--proportions", 0, 0, 1, 0, 0, "--healthy", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "stage_2_train").glob("ID_*.dcm"))) == 4
    labels = dict(read_rows(tmp_path / "stage_2_train.csv")[1:])
    assert {name.split("_")[2] for name, label in labels.items() if label == "1"} == {
        "intraventricular",
        "any",
    }
    assert f"python -m dataloaders.prepare rsna --dicom_dir {tmp_path}/stage" in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--patients", "0"],
        ["--size", "7"],
        ["--slices", "99"],
        ["--seed", "-1"],
        ["--healthy", "1.2"],
        ["--mixed", "nan"],
        ["--difficulty", "2"],
        ["--proportions", "0", "0", "0", "0", "0"],
        ["--format", "dicom", "--keep_healthy"],
    ],
)
def test_command_refuses_flags_out_of_range_in_one_line(tmp_path, flags):
    from dataloaders.phantom.__main__ import main

    with pytest.raises(UserError) as caught:
        main(["--out", str(tmp_path / "new"), *flags])
    message = str(caught.value)
    assert "\n" not in message and any(flag in message for flag in flags if flag.startswith("--"))
    assert not (tmp_path / "new").exists()


def test_command_ends_in_one_line_when_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run_command_line("--out", tmp_path / "file", "--patients", 2, "--size", 16)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1


def test_runs_that_start_together_share_the_embedded_data(tmp_path):
    code = "from dataloaders.phantom.embedded import place_embedded_data\n"
    code += "from options import args_parser\n"
    code += "flags = '--preset demo --phantom_patients 40 --phantom_slices 2'.split()\n"
    code += "place_embedded_data(args_parser(flags), print)"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )

    together = [start(), start()]
    said = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert sorted(map(bool, said)) == [False, True]  # one of them made the images
    (folder,) = (tmp_path / "data").iterdir()
    before = sorted((folder / "images").iterdir())
    (folder / "testing.csv").unlink()  # as if killed in the middle, with a file half written
    (folder / "images" / ".ID_1.png.x.partial").touch()
    assert start().wait() == 0
    assert sorted((folder / "images").iterdir()) == before
    (folder / ".lock").unlink()
    assert start().wait() == 0
    assert not (folder / ".lock").exists()  # images that are there need no permission to write
