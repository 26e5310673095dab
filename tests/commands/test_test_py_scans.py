"""test.py --dicom: a folder of scans -> probabilities per slice and per study."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.dataset import load_dataset
from dataloaders.dicom import Preprocessing
from dataloaders.phantom.patients import CLASS_NAMES
from dataloaders.prepare.rsna import convert_dicom
from dataloaders.table import read_table
from networks.kinds import build_network
from networks.saved import model_content
from predict.inference import _whole_batches, predict, predict_files
from predict.scans import scan_files, write_scan_predictions
from tests.helpers.dicom_files import PATIENT_NAME, head, write_ct
from tests.helpers.used_run import PROJECT, run_test_py
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.workers import write_png

ARCHITECTURE = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}
RECORDED = {"image_size": 32, "dicom": {"window": "triple", "size": 40}}
FAULTS = {
    "notes.txt": "not a DICOM file (no DICM mark at byte 128)",
    "part/cut.dcm": "bytes of pixels where",
    "part/MR": "Modality is not CT",
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_network(ARCHITECTURE, CLASS_NAMES).eval()


def checkpoint(net, path, preprocessing):
    content = model_content(net.state_dict(), CLASS_NAMES, ARCHITECTURE, preprocessing, "paper", 7)
    save_checkpoint(path, content)
    return path


def write_slice(path: Path, seed: int, **tags) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_ct(path, head(48, 64, seed) + np.int16(1024), **tags)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three studies of two patients in nested folders, some names without .dcm, and four faults."""
    folder = tmp_path_factory.mktemp("scans")
    write_slice(folder / "b" / "IM0001", 1, PatientID="P1", StudyInstanceUID="1.2.3")
    write_slice(folder / "b" / "IM0002", 2, PatientID="P1", StudyInstanceUID="1.2.3")
    write_slice(folder / "a" / "deep" / "x.dcm", 3, PatientID="P1", StudyInstanceUID="1.2.4")
    write_slice(
        folder / "a" / "y.DCM", 4, PatientID="P2", StudyInstanceUID="1.2.5",
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    write_slice(folder / "b" / "IM0003", 5, PatientID="P1", StudyInstanceUID="1.2.3")
    write_slice(folder / "c" / "lost.dcm", 6, StudyInstanceUID=None)
    (folder / "notes.txt").write_text("chest, no contrast")
    write_slice(folder / "part" / "MR", 7, Modality="MR")
    pixels = (head(48, 64) + np.int16(1024)).tobytes()
    write_slice(folder / "part" / "cut.dcm", 8, PixelData=pixels[:-100])
    return folder


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def probabilities(row):
    return np.array([float(row[name]) for name in CLASS_NAMES])


def test_slices_are_predicted_as_if_prepared_and_loaded_for_training(net, scans, tmp_path):
    resume = checkpoint(net, tmp_path / "runs" / "epoch_7.pth", RECORDED)
    command = [sys.executable, "test.py", "--resume", resume, "--dicom", scans, "--keep_names"]
    result = subprocess.run(
        [*map(str, command), "--workers", "2", "--batch_size", "4", "--out", tmp_path / "out"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "6 slices of 3 studies in " in result.stdout
    assert " slices/s, reading included" in result.stdout
    assert "1 slices name no StudyInstanceUID: in slices.csv alone" in result.stdout
    assert "files left out: 3, listed in rejected.csv" in result.stdout
    assert "not for clinical use" in result.stdout
    rows = read_rows(tmp_path / "out" / "slices.csv")
    files = ["a/deep/x.dcm", "a/y.DCM", "b/IM0001", "b/IM0002", "b/IM0003", "c/lost.dcm"]
    assert [row["File"] for row in rows] == files
    assert [row["PatientID"] for row in rows[:3]] == ["P1", "P2", "P1"]

    # the same files on the way that training images take: prepare's PNG, then the CSV
    (tmp_path / "images").mkdir()
    lines = ["ImageID," + ",".join(CLASS_NAMES)]
    for number, file in enumerate(files[:-1]):
        picture, _ = convert_dicom(str(scans / file), preprocessing=Preprocessing("triple", 40))
        write_png(picture, tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,1,0,0,0,0")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    images = load_dataset(
        read_table(tmp_path / "labels.csv"), tmp_path / "images", 32, "auto", tmp_path, print
    )
    found = np.array([probabilities(row) for row in rows])
    np.testing.assert_allclose(found[:-1], predict(net, images, 5), atol=2e-6)
    assert np.ptp(found, axis=0).max() > 1e-3

    studies = {row["StudyInstanceUID"]: row for row in read_rows(tmp_path / "out" / "studies.csv")}
    assert {study: row["slices"] for study, row in studies.items()} == {
        "1.2.3": "3",
        "1.2.4": "1",
        "1.2.5": "1",
    }
    np.testing.assert_array_equal(probabilities(studies["1.2.3"]), found[2:5].max(axis=0))
    np.testing.assert_array_equal(probabilities(studies["1.2.5"]), found[1])
    assert studies["1.2.5"]["PatientID"] == "P2"

    rejected = {row["file"]: row["reason"] for row in read_rows(tmp_path / "out" / "rejected.csv")}
    assert rejected.keys() == FAULTS.keys()
    assert all(reason in rejected[file] for file, reason in FAULTS.items())
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert PATIENT_NAME not in written
    model = json.loads((tmp_path / "out" / "model.json").read_text())
    assert model["preprocessing"].startswith("DICOM through the window 'triple' to 40 pixels")


def test_an_unknown_preprocessing_is_refused_until_flags_say_it(net, scans, tmp_path):
    source = ("--dicom", scans, "--workers", 0, "--keep_names")
    resume = ("--resume", checkpoint(net, tmp_path / "unknown.pth", {"image_size": 32}))
    with pytest.raises(UserError, match=r"unknown.pth: does not say how .* --window, .* triple"):
        run_test_py(*resume, *source)
    with pytest.raises(UserError, match=r"unknown.pth: does not say how .* --size, .* 128"):
        run_test_py(*resume, *source, "--window", "triple")
    assert not (tmp_path / f"unknown-{scans.name}").exists()
    run_test_py(*resume, *source, "--window", "triple", "--size", "40")
    told = read_rows(tmp_path / f"unknown-{scans.name}" / "slices.csv")

    resume = ("--resume", checkpoint(net, tmp_path / "known.pth", RECORDED))
    with pytest.raises(UserError, match="--window bone: .*known.pth was trained with triple"):
        run_test_py(*resume, *source, "--window", "bone")
    with pytest.raises(UserError, match="--size 128: .*known.pth was trained with 40"):
        run_test_py(*resume, *source, "--size", "128")
    run_test_py(*resume, *source)
    assert read_rows(tmp_path / f"known-{scans.name}" / "slices.csv") == told


@pytest.mark.parametrize("odd", ["triple", {"window": "lung", "size": 40}, {"window": "bone"}])
def test_an_odd_preprocessing_in_a_checkpoint_is_refused(net, scans, tmp_path, odd):
    path = checkpoint(net, tmp_path / "odd.pth", {"image_size": 32, "dicom": odd})
    with pytest.raises(UserError, match="odd.pth: .*(not know|preprocessing/dicom)"):
        run_test_py("--resume", path, "--dicom", scans, "--workers", 0)


def test_a_grey_window_predicts_grey_pictures(net, scans):
    grey = scan_files(scans, Preprocessing("brain", 40), 32)
    row = [file.name for file in grey.files].index("b/IM0001")
    assert grey[row][0][1].shape == (1, 32, 32)
    found = predict_files(net, grey, 3, 0)
    assert found.probabilities.shape == (6, 5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-12)


def test_a_folder_without_any_slice_says_so_and_still_lists_why(net, tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    resume = (
        "--resume",
        checkpoint(net, tmp_path / "known.pth", RECORDED),
        "--workers",
        0,
        "--keep_names",
    )
    with pytest.raises(UserError, match=f"--dicom {folder}: has no files"):
        run_test_py(*resume, "--dicom", folder)
    (folder / "letter.txt").write_text("dear colleague")
    with pytest.raises(UserError, match="none of its files is a CT slice"):
        run_test_py(*resume, "--dicom", folder)
    rejected = read_rows(tmp_path / "known-letters" / "rejected.csv")
    assert [row["file"] for row in rejected] == ["letter.txt"]


def test_names_that_are_no_utf8_and_links_in_circles_do_no_harm(net, tmp_path):
    write_slice(tmp_path / "in" / "ok.dcm", 1)
    os.rename(tmp_path / "in" / "ok.dcm", os.fsencode(tmp_path / "in") + b"/caf\xe9.dcm")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.dcm").symlink_to(tmp_path / "nowhere")
    scans = scan_files(tmp_path / "in", Preprocessing("brain", 32), 32)
    found = predict_files(net, scans, 8, 0)
    write_scan_predictions(tmp_path / "out", found, CLASS_NAMES)
    assert [row["File"] for row in read_rows(tmp_path / "out" / "slices.csv")] == ["caf\\xe9.dcm"]
    assert [row["file"] for row in read_rows(tmp_path / "out" / "rejected.csv")] == ["gone.dcm"]


def test_a_reading_process_that_is_killed_is_a_one_line_error():
    def killed():
        yield ["first"]
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore")

    batches = _whole_batches(killed())
    assert next(batches) == ["first"]
    with pytest.raises(UserError, match=r"killed by signal: Killed\.\); .* give --workers 0$"):
        next(batches)
