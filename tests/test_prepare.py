"""`prepare rsna|isic|medmnist` as a user types them, on small data sets with planted faults."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from dataloaders.conversion import Conversion, Source
from dataloaders.dicom import Preprocessing, read_hounsfield, read_picture
from dataloaders.isic import CLASSES, convert_photograph, read_isic_labels
from dataloaders.labelled_files import Options
from dataloaders.medmnist import class_names, read_medmnist
from dataloaders.phantom import generate, write_dicom
from dataloaders.rsna import prepare_rsna
from dataloaders.rsna_labels import SUBTYPES, read_rsna_labels
from dataloaders.worker_pool import Task, WorkerPool
from tests.dicom_files import (
    BIRTH_DATE,
    PATIENT_NAME,
    ct_dataset,
    head,
    long_label_rows,
    write_ct,
    write_deflated,
)
from utils.errors import UserError
from utils.locks import FolderLock

REPOSITORY = Path(__file__).parents[1]
PREPARE = [sys.executable, "-m", "dataloaders.prepare"]


def prepare(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PREPARE, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line_error(done: subprocess.CompletedProcess) -> str:
    """The error of a command that the user can mend: exit status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


# --- the long label file ---------------------------------------------------------------------


def write_labels(path: Path, lines: list[str], header: str = "ID,Label") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


IMAGES = {"ID_b": (0, 1, 0, 0, 0), "ID_a": (0, 0, 0, 0, 0), "ID_c": (1, 0, 0, 0, 1)}


def test_long_labels_become_one_row_per_image(tmp_path):
    lines = long_label_rows(IMAGES)
    labels = read_rsna_labels(write_labels(tmp_path / "a.csv", lines + lines[:3] + lines[:1]))
    assert (labels.rows, labels.duplicates) == (22, 4)
    assert list(labels.table.index) == ["ID_b", "ID_a", "ID_c"]
    assert tuple(labels.table.columns) == SUBTYPES
    assert labels.table.to_numpy().tolist() == [list(row) for row in IMAGES.values()]


def test_rows_in_any_order_and_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("dataloaders.rsna_labels.ROWS_AT_ONCE", 5)
    lines = long_label_rows(IMAGES)
    np.random.default_rng(0).shuffle(lines)
    table = read_rsna_labels(write_labels(tmp_path / "a.csv", lines)).table
    assert table.loc[list(IMAGES)].to_numpy().tolist() == [list(row) for row in IMAGES.values()]


def test_only_the_last_underscore_splits_an_id(tmp_path):
    lines = long_label_rows({"stage_1_ID_x": (0, 0, 1, 0, 0)})
    table = read_rsna_labels(write_labels(tmp_path / "a.csv", lines)).table
    assert list(table.index) == ["stage_1_ID_x"]


LINES = long_label_rows(IMAGES)
BAD_LABELS = {
    "conflict": ([*LINES, "ID_a_epidural,1"], "ID_a_epidural is both 0 and 1"),
    "missing subtype": (LINES[:-2] + LINES[-1:], "ID_c_subdural is missing"),
    "missing any": (LINES[:-1], "ID_c_any is missing"),
    "any too low": ([*LINES[:-1], "ID_c_any,0"], "ID_c_any does not agree"),
    "any too high": ([*LINES[:11], "ID_a_any,1", *LINES[12:]], "ID_a_any does not agree"),
    "subtype": ([*LINES, "ID_a_subgaleal,0"], "line 20: ID 'ID_a_subgaleal' is not"),
    "no image": ([*LINES, "_any,0"], "line 20: ID '_any' is not"),
    "no underscore": (["any,0", *LINES], "line 2: ID 'any' is not"),
    "label 2": ([*LINES, "ID_a_any,2"], "line 20: Label '2' is neither 0 nor 1"),
    "label word": ([*LINES, "ID_a_any,yes"], "line 20: Label 'yes' is neither 0 nor 1"),
    "label empty": ([*LINES, "ID_a_any,"], "line 20: Label '' is neither 0 nor 1"),
    "long": ([*LINES, "x" * 5000 + "_any,0"], "line 20: the ID is too long"),
    "empty": ([], "has no rows below its header"),
    "quote": ([*LINES, '"ID_a'], "cannot be read as CSV"),
    "not ASCII": ([*LINES, "ID_ä_any,0"], "cannot be read as CSV"),
}


@pytest.mark.parametrize("fault", BAD_LABELS)
def test_bad_long_labels_are_refused_by_line_or_id(tmp_path, fault):
    lines, message = BAD_LABELS[fault]
    with pytest.raises(UserError) as error:
        read_rsna_labels(write_labels(tmp_path / "a.csv", lines))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_wide_file_is_sent_to_partition(tmp_path):
    header = "ImageID," + ",".join(SUBTYPES)
    path = write_labels(tmp_path / "wide.csv", ["ID_a.png,0,0,0,0,1"], header)
    with pytest.raises(UserError, match="python -m dataloaders.partition .*wide.csv"):
        read_rsna_labels(path)


def test_label_files_that_are_none(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="not a CSV file with the columns ID,Label"):
        read_rsna_labels(tmp_path / "empty.csv")
    with pytest.raises(UserError, match="No such file"):
        read_rsna_labels(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="no columns ID and Label"):
        read_rsna_labels(write_labels(tmp_path / "a.csv", ["1,2"], "x,y"))


# --- prepare rsna ----------------------------------------------------------------------------


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
    twelve = ((head(48, 40) + 1024 - 1000) % 4096).astype(np.uint16)
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


def rsna(hospital: Path, out: Path, *more: object) -> subprocess.CompletedProcess:
    return prepare(
        *("rsna", "--dicom_dir", hospital / "stage_2_train", "--labels", hospital / "labels.csv"),
        *("--out", out, "--size", 24, "--workers", 1),
        *more,
    )


@pytest.fixture(scope="module")
def prepared(hospital, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    done = rsna(hospital, out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "6 of them exact duplicates, 22 images" in done.stdout
    assert "1 labelled images have no file, 1 files have no label" in done.stdout
    return out


GOOD = [f"ID_good{number:02}" for number in range(12)] + ["ID_inverse", "ID_repaired", "ID_rle"]


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


def test_every_bad_file_has_its_reason(prepared):
    with open(prepared / "rejected.csv", newline="") as file:
        reasons = {Path(row["file"]).stem: row["reason"] for row in csv.DictReader(file)}
    expected = {
        "ID_truncated": "600 bytes of pixels where 2048 are expected",
        "ID_constant": "constant image",
        "ID_nobody": "no PatientID",
        "ID_nostudy": "no StudyInstanceUID",
        "ID_text": "not a DICOM file",
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
    counts = {"images": 15, "rejected": 7, "duplicate_label_rows": 6, "images_without_file": 1}
    assert counts.items() <= manifest.items()


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
    assert done.returncode == 0 and "13 are done already" in done.stdout
    new = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert {name for name in old if old[name] != new[name]} == {"ID_good03.png", "ID_good05.png"}
    assert new.keys() == old.keys()
    assert (tmp_path / "labels.csv").read_bytes() == first


def test_other_parameters_are_refused_in_the_same_folder(hospital, prepared):
    error = one_line_error(rsna(hospital, prepared, "--window", "file"))
    assert "choose another --out" in error and "triple" in error


def test_more_than_max_bad_is_an_error_after_all_is_written(hospital, tmp_path):
    error = one_line_error(rsna(hospital, tmp_path, "--max_bad", "6"))
    assert "7 files rejected, more than --max_bad 6" in error
    assert len(pd.read_csv(tmp_path / "labels.csv")) == 15
    done = rsna(hospital, tmp_path, "--max_bad", "6", "--allow_missing")
    assert done.returncode == 0, "without the missing one there are 6"


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
        np.testing.assert_array_equal(read_hounsfield(scans / f"{image}.dcm"), hounsfield)
    out = tmp_path / "prepared"
    done = prepare("rsna", "--dicom_dir", scans, "--labels", labels, "--out", out, "--size", 32)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "labels.csv").set_index("ImageID")
    expected = [f"{image}.png" for image in phantom.image_ids]
    np.testing.assert_array_equal(table.loc[expected, list(SUBTYPES)], phantom.labels)
    assert list(table.loc[expected, "PatientID"]) == list(phantom.patient_ids)
    partition = [sys.executable, "-m", "dataloaders.partition", out / "labels.csv", "--out", out]
    done = subprocess.run(
        [*partition, "--single_label"], cwd=REPOSITORY, capture_output=True, text=True
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
    assert "1 of 22 labelled images have no file" in missing and "--allow_missing" in missing
    assert not (tmp_path / "out").exists()


# --- workers ---------------------------------------------------------------------------------


def die_on_request(path: str) -> tuple[np.ndarray, tuple[()]]:
    """A converter whose process is killed by one of the files."""
    if Path(path).name == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((4, 4), np.uint8), ()


def test_a_killed_worker_ends_the_run_at_once_and_names_its_file(tmp_path):
    sources = [Source(f"a{number}", str(tmp_path / f"a{number}"), 1) for number in range(200)]
    sources.insert(60, Source("killer", str(tmp_path / "killer"), 1))
    conversion = Conversion(tmp_path / "out", {}, ())
    start = time.monotonic()
    with pytest.raises(UserError, match=r"killer in hand was ended by signal 9"):
        conversion.run(sources, die_on_request, 2)
    assert time.monotonic() - start < 20
    sources.pop(60)
    table, rejected = conversion.run(sources, die_on_request, 2)
    assert list(table["ImageID"]) == [f"a{number}.png" for number in range(200)]
    assert not rejected


def test_two_conversions_into_one_folder_do_not_mix(tmp_path):
    sources = [Source("a", str(tmp_path / "a"), 1)]
    lock = FolderLock(tmp_path / "out")
    with pytest.raises(UserError, match=r"in use by another run .*--out"):
        Conversion(tmp_path / "out", {}, ()).run(sources, die_on_request, 1)
    lock.release(keep_folder=True)
    table, _ = Conversion(tmp_path / "out", {}, ()).run(sources, die_on_request, 1)
    assert list(table["ImageID"]) == ["a.png"]


def test_a_picture_that_cannot_be_written_ends_the_run(tmp_path):
    with WorkerPool(die_on_request, tmp_path / "absent", 1) as pool:
        with pytest.raises(UserError, match="a.png cannot be written: No such file"):
            list(pool.run([Task("a.png", "a")]))


@pytest.fixture(scope="module")
def slow_hospital(tmp_path_factory) -> Path:
    """Enough slow (RLE, decoded in Python) files to be interrupted in the middle."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "stage_2_train").mkdir()
    slow = ct_dataset(np.random.default_rng(0).integers(0, 2000, (256, 256), dtype=np.uint16))
    slow.compress(RLELossless, generate_instance_uid=False)
    slow.save_as(folder / "slow", enforce_file_format=True)
    images = {f"ID_{number:03}": (0, 0, 0, 0, 1) for number in range(150)}
    for image in images:
        os.link(folder / "slow", folder / "stage_2_train" / f"{image}.dcm")
    write_labels(folder / "labels.csv", long_label_rows(images))
    return folder


def start_and_wait_for_progress(hospital: Path, out: Path) -> subprocess.Popen:
    run = subprocess.Popen(
        [*PREPARE, "rsna", "--dicom_dir", hospital / "stage_2_train", "--workers", "2"]
        + ["--labels", hospital / "labels.csv", "--out", out],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress = out / "progress.csv"
    deadline = time.monotonic() + 60
    while not (progress.exists() and progress.stat().st_size > 1000):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    return run


def children(pid: int) -> list[int]:
    processes = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in processes
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_killing_a_worker_and_then_the_whole_run_loses_nothing(slow_hospital, tmp_path):
    run = start_and_wait_for_progress(slow_hospital, tmp_path)
    os.kill(children(run.pid)[0], signal.SIGKILL)
    stderr = run.communicate(timeout=20)[1]
    assert run.returncode == 2
    assert ".dcm in hand was ended by signal 9" in stderr.splitlines()[-1]

    (tmp_path / "progress.csv").unlink()
    run = start_and_wait_for_progress(slow_hospital, tmp_path)
    workers = children(run.pid)
    run.kill()
    run.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)

    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").glob("ID*")}
    done = rsna(slow_hospital, tmp_path, "--size", "128")
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "labels.csv")) == 150
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    remade = [name for name in before if before[name] != after[name]]
    # Nobody notes down what the orphaned workers still finish: 2 in hand, 3 that the pool has
    # queued for them, and what the killed run had received but not written on a busy machine.
    assert len(after) == 150 and len(remade) <= 10


# --- prepare isic ----------------------------------------------------------------------------

DIAGNOSES = {"ISIC_1": "nv", "ISIC_2": "mel", "ISIC_3": "vasc", "ISIC_4": "nv"}


@pytest.fixture
def clinic(tmp_path) -> Path:
    """HAM10000 in small: two folders, metadata, ground truth."""
    for part, images in (("part_1", ["ISIC_1", "ISIC_2"]), ("part_2", ["ISIC_3", "ISIC_4"])):
        (tmp_path / part).mkdir()
        for number, image in enumerate(images):
            pixels = np.full((450, 600, 3), (200, 100 + number, 50), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{image}.jpg", quality=95)
    metadata = ["lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"]
    truth = ["image," + ",".join(CLASSES)]
    for number, (image, diagnosis) in enumerate(DIAGNOSES.items()):
        metadata.append(f"HAM_{number // 2},{image},{diagnosis},histo,70.0,male,back,rosendahl")
        truth.append(
            ",".join([image, *(str(float(name == diagnosis.upper())) for name in CLASSES)])
        )
    (tmp_path / "metadata.csv").write_text("\n".join(metadata) + "\n")
    (tmp_path / "truth.csv").write_text("\n".join(truth) + "\n")
    return tmp_path


def isic(clinic: Path, labels: str, *more: object) -> subprocess.CompletedProcess:
    return prepare(
        *("isic", "--labels", clinic / labels, "--out", clinic / "out", "--size", 32),
        *("--image_dir", clinic / "part_1", clinic / "part_2", "--workers", 1, *more),
    )


def test_isic_from_the_metadata(clinic):
    done = isic(clinic, "metadata.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(clinic / "out" / "labels.csv")
    assert list(table.columns) == ["ImageID", "lesion_id", "dataset", *CLASSES]
    assert list(table["ImageID"]) == [f"{image}.png" for image in DIAGNOSES]
    assert list(table["lesion_id"]) == ["HAM_0", "HAM_0", "HAM_1", "HAM_1"]
    assert set(table["dataset"]) == {"rosendahl"}
    assert list(table[list(CLASSES)].idxmax(axis=1)) == ["NV", "MEL", "VASC", "NV"]
    assert (table[list(CLASSES)].sum(axis=1) == 1).all()
    picture = np.asarray(Image.open(clinic / "out" / "images" / "ISIC_2.png"))
    assert picture.shape == (32, 32, 3)
    assert np.abs(picture.astype(int) - (200, 101, 50)).max() <= 2
    assert "male" not in (clinic / "out" / "labels.csv").read_text()


def test_isic_from_the_ground_truth_with_and_without_lesions(clinic):
    done = isic(clinic, "truth.csv")
    assert done.returncode == 0, done.stderr
    assert "add --metadata HAM10000_metadata.csv" in done.stdout
    with_metadata = read_isic_labels(clinic / "truth.csv", clinic / "metadata.csv")
    pd.testing.assert_frame_equal(with_metadata, read_isic_labels(clinic / "metadata.csv", None))


def test_isic_damaged_photographs_are_rejected(clinic):
    photograph = clinic / "part_1" / "ISIC_1.jpg"
    photograph.write_bytes(photograph.read_bytes()[:1500])
    (clinic / "part_2" / "ISIC_3.jpg").write_text("no photograph")
    assert "2 files rejected" in one_line_error(isic(clinic, "truth.csv", "--max_bad", "1"))
    rejected = pd.read_csv(clinic / "out" / "rejected.csv")
    assert [Path(file).stem for file in rejected["file"]] == ["ISIC_1", "ISIC_3"]
    assert rejected["reason"].str.startswith("damaged or no photograph").all()


def test_a_photograph_of_absurd_size_is_not_decoded(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 50,000,000 pixels"):
        convert_photograph(str(tmp_path / "a.png"), 32)


ISIC_FAULTS = {
    "two classes": ("truth.csv", "ISIC_1,0.0,1.0", "ISIC_1,1.0,1.0", "ISIC_1 has not exactly one"),
    "no class": ("truth.csv", "ISIC_1,0.0,1.0", "ISIC_1,0.0,0.0", "ISIC_1 has not exactly one"),
    "a half": ("truth.csv", "ISIC_1,0.0,1.0", "ISIC_1,0.5,0.5", "ISIC_1 has not exactly one"),
    "a word": ("truth.csv", "ISIC_1,0.0", "ISIC_1,no", "ISIC_1 has not exactly one"),
    "conflict": ("metadata.csv", "ISIC_2", "ISIC_1", "ISIC_1 has two rows"),
    "diagnosis": ("metadata.csv", "vasc", "wart", "ISIC_3 has dx 'wart'"),
    "lesion": ("metadata.csv", "HAM_0,ISIC_2", ",ISIC_2", "has no lesion_id or dataset for ISIC_2"),
    "image column": ("truth.csv", "image,", "picture,", "no column image"),
    "class columns": ("truth.csv", "VASC", "OTHER", "neither the columns MEL,NV"),
}


@pytest.mark.parametrize("fault", ISIC_FAULTS)
def test_bad_isic_tables_are_refused_by_image(clinic, fault):
    name, old, new, message = ISIC_FAULTS[fault]
    path = clinic / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_isic_labels(path, None)
    assert message in str(error.value) and str(path) in str(error.value)


# --- prepare medmnist ------------------------------------------------------------------------


def medmnist_arrays(counts: tuple[int, ...] = (300, 7, 11), shape=(28, 28, 3)) -> dict:
    random = np.random.default_rng(0)
    arrays = {}
    for prefix, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{prefix}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{prefix}_labels"] = random.permutation(count).reshape(-1, 1).astype(np.uint8) % 7
    return arrays


@pytest.mark.parametrize("shape", [(28, 28, 3), (64, 64)])
def test_medmnist_arrays_come_back(tmp_path, shape):
    arrays = medmnist_arrays(shape=shape)
    np.savez_compressed(tmp_path / "dermamnist.npz", **arrays)
    splits = read_medmnist(tmp_path / "dermamnist.npz")
    assert list(splits) == ["training", "validation", "testing"]
    for (images, labels), prefix in zip(splits.values(), ("train", "val", "test"), strict=True):
        np.testing.assert_array_equal(images, arrays[f"{prefix}_images"])
        np.testing.assert_array_equal(labels, arrays[f"{prefix}_labels"][:, 0])
        assert images.dtype == np.uint8 and labels.dtype == np.int64


def test_medmnist_is_written_with_its_official_split(tmp_path):
    arrays = medmnist_arrays()
    np.savez_compressed(tmp_path / "dermamnist.npz", **arrays)
    done = prepare("medmnist", tmp_path / "dermamnist.npz", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for split, prefix in (("training", "train"), ("validation", "val"), ("testing", "test")):
        table = pd.read_csv(tmp_path / "out" / f"{split}.csv")
        assert list(table.columns) == ["ImageID", *class_names("dermamnist.npz", [np.array([6])])]
        labels = table.iloc[:, 1:].to_numpy()
        np.testing.assert_array_equal(labels.argmax(axis=1), arrays[f"{prefix}_labels"][:, 0])
        assert (labels.sum(axis=1) == 1).all()
        for name, image in zip(table["ImageID"], arrays[f"{prefix}_images"], strict=True):
            written = np.asarray(Image.open(tmp_path / "out" / "images" / name))
            np.testing.assert_array_equal(written, image)


def test_medmnist_class_names(tmp_path):
    labels = [np.array([0, 3])]
    assert class_names("octmnist_224.npz", labels)[3] == "normal"
    assert class_names("mine.npz", labels) == ["class_0", "class_1", "class_2", "class_3"]
    with pytest.raises(UserError, match="has a label 3, but the set of that name has 2 classes"):
        class_names("pneumoniamnist.npz", labels)


def change(name: str, function) -> partial:
    def apply(arrays: dict) -> None:
        arrays[name] = function(arrays[name])

    return apply


MEDMNIST_FAULTS = {
    "missing": (lambda arrays: arrays.pop("val_labels"), "no array val_labels"),
    "float": (change("train_images", lambda a: a / 255), "train_images are float64, not uint8"),
    "float labels": (change("test_labels", lambda a: a * 1.0), "test_labels are float64"),
    "multi-label": (change("val_labels", lambda a: np.repeat(a, 14, 1)), "a multi-label set"),
    "negative": (change("val_labels", lambda a: a.astype(int) - 1), "negative values"),
    "fewer labels": (change("val_labels", lambda a: a[1:]), "val_images are 7, their labels 6"),
    "3-D": (change("train_images", lambda a: a.repeat(10, 3)[..., :28]), "3-D volumes"),
    "flat": (change("train_images", lambda a: a.reshape(300, -1)), "not (N, H, W)"),
    "sizes": (change("test_images", lambda a: a[:, :20]), "have different sizes"),
    "objects": (change("train_labels", lambda a: a.astype(object)), "not a plain array"),
    "none": (change("train_images", lambda a: a[:0]), "not (N, H, W)"),
}


@pytest.mark.parametrize("fault", MEDMNIST_FAULTS)
def test_bad_medmnist_files_are_refused_in_words(tmp_path, fault):
    spoil, message = MEDMNIST_FAULTS[fault]
    arrays = medmnist_arrays()
    spoil(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError) as error:
        read_medmnist(tmp_path / "a.npz")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_damaged_medmnist_files_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", **medmnist_arrays())
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "a.npz"
    broken = bytearray(whole)
    broken[2000:2100] = bytes(100)
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.npz is no readable .npz file"):
            read_medmnist(path)
    error = one_line_error(prepare("medmnist", tmp_path / "absent.npz", "--out", tmp_path / "o"))
    assert "No such file" in error
