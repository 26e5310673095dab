"""What test.py writes about scans names nobody; the key does, for its owner alone."""

import csv
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.phantom.patients import CLASS_NAMES
from networks.kinds import build_network
from networks.saved import model_content
from predict.pseudonyms import KEY_FILE
from tests.helpers.dicom_files import head, write_ct
from tests.helpers.used_run import run_test_py
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

ARCHITECTURE = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}
RECORDED = {"image_size": 64, "dicom": {"window": "triple", "size": 64}}
TELLING = ("DOE", "JANE", "1950", "MR-771", "9.8.7", "lost")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = build_network(ARCHITECTURE, CLASS_NAMES)
    path = tmp_path_factory.mktemp("model") / "epoch_7.pth"
    content = model_content(net.state_dict(), CLASS_NAMES, ARCHITECTURE, RECORDED, "paper", 7)
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Two studies of one patient, a file that is no scan, and a link to one outside."""
    folder = tmp_path_factory.mktemp("scans") / "DOE_JANE_19500101"
    folder.mkdir()
    for number, study in enumerate(("9.8.7.1", "9.8.7.2", "9.8.7.1")):
        tags = {"PatientID": "MR-771", "StudyInstanceUID": study}
        write_ct(folder / f"DOE_{number}.dcm", head(48, 64, number) + np.int16(1024), **tags)
    (folder / "lost.txt").write_text("no scan")
    outside = write_ct(folder.parent / "other.dcm", head(48, 64, 9) + np.int16(1024))
    (folder / "DOE_linked.dcm").symlink_to(outside)
    return folder


@pytest.fixture
def resume(model, tmp_path) -> Path:
    """A checkpoint of the test's own: results come to lie beside it."""
    path = tmp_path / model.name
    path.write_bytes(model.read_bytes())
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def words_of(folder: Path) -> str:
    """Every path below the folder and every text in it, the key's aside."""
    paths = [path for path in folder.rglob("*") if path.name != KEY_FILE]
    texts = [path.read_text() for path in paths if path.suffix in (".csv", ".json")]
    return "\n".join([*map(str, paths), *texts])


def test_a_folder_of_scans_is_told_by_numbers(resume, scans, tmp_path):
    printed = run_test_py(*("--resume", resume, "--dicom", scans, "--workers", 0, "--gradcam"))
    out = tmp_path / "epoch_7-scans-1"
    assert f"names stay in {out / KEY_FILE}" in printed
    slices, studies = rows_of(out / "slices.csv"), rows_of(out / "studies.csv")
    assert [row["File"] for row in slices] == ["file-00001", "file-00002", "file-00003"]
    assert [row["StudyInstanceUID"] for row in slices] == ["study-001", "study-002", "study-001"]
    assert {row["PatientID"] for row in slices + studies} == {"patient-001"}
    assert len(studies) == 2 and len(list((out / "gradcam").iterdir())) == 3
    rejected = {row["file"]: row["reason"] for row in rows_of(out / "rejected.csv")}
    assert rejected.keys() == {"file-00004", "file-00005"}
    assert "a link that leads out of the folder" in rejected["file-00004"]
    assert not [word for word in TELLING if word in words_of(out)]

    key = {row["pseudonym"]: row["name"] for row in rows_of(out / KEY_FILE)}
    assert key["source"] == str(scans) and key["patient-001"] == "MR-771"
    assert (key["file-00003"], key["study-002"]) == ("DOE_2.dcm", "9.8.7.2")
    assert stat.S_IMODE((out / KEY_FILE).stat().st_mode) == 0o600


def test_the_same_scans_go_to_the_same_folder_and_others_to_the_next(resume, scans, tmp_path):
    other = tmp_path / "ROE"
    other.mkdir()
    (other / "a.dcm").write_bytes((scans / "DOE_0.dcm").read_bytes())
    for folder in (scans, other, scans):
        run_test_py(*("--resume", resume, "--dicom", folder, "--workers", 0))
    found = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert found == ["ROE", "epoch_7-scans-1", "epoch_7-scans-2"]


def test_predictions_of_files_with_a_scan_among_them_name_nobody_either(model, scans, tmp_path):
    flags = ("--resume", model, "--predict", scans, "--workers", 0, "--unlike", "predict")
    run_test_py(*flags, "--out", tmp_path / "out")
    assert not [word for word in TELLING if word in words_of(tmp_path / "out")]
    run_test_py(*flags, "--out", tmp_path / "kept", "--keep_names")
    assert "DOE_0.dcm" in words_of(tmp_path / "kept")
    assert not (tmp_path / "kept" / KEY_FILE).exists()


def test_what_was_typed_names_nobody_however_it_was_typed(resume, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(scans.parent)
    table = scans.parent / "files.csv"
    table.write_text("ImageID\nDOE_0.dcm\n")
    for number, typed in enumerate(
        (
            ("--dicom", f"{scans.name}/"),
            ("--dicom", f"./{scans.name}"),
            (f"--dicom={scans.name}",),
            (f"--predict={scans.name}/",),
            ("--predict", table, "--root_path", scans.name),
        )
    ):
        out = tmp_path / str(number)
        flags = ("--resume", resume, *typed, "--workers", 0, "--unlike", "predict", "--out", out)
        run_test_py(*flags)
        assert not [word for word in TELLING if word in words_of(out)]
        assert "--workers 0" in (out / "model.json").read_text()


def test_a_damaged_volume_is_named_by_its_number_alone(model, scans, tmp_path):
    folder = tmp_path / "DOE_JANE"
    folder.mkdir()
    (folder / "DOE_0.dcm").write_bytes((scans / "DOE_0.dcm").read_bytes())
    (folder / "DOE_1950.nii.gz").write_bytes(b"\x1f\x8b cut off")
    (folder / "DOE_JANE.nii").write_text("no volume")
    out = tmp_path / "out"
    run_test_py("--resume", model, "--predict", folder, "--workers", 0, "--out", out)
    assert not [word for word in TELLING if word in words_of(out)]
    assert [row["ImageID"] for row in rows_of(out / "predictions.csv")] == [
        "file-00001",
        "file-00002",
        "file-00003",
    ]


def test_a_number_stays_with_its_name_whatever_is_predicted_later(resume, scans, tmp_path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "b.dcm").write_bytes((scans / "DOE_1.dcm").read_bytes())
    (inbox / "a.txt").write_text("no scan")
    out = tmp_path / "epoch_7-scans-1"
    flags = ("--resume", resume, "--workers", 0, "--unlike", "predict")

    def key() -> dict[str, str]:
        return {row["name"]: row["pseudonym"] for row in rows_of(out / KEY_FILE)}

    run_test_py(*flags, "--dicom", inbox, "--gradcam")
    first = key()
    assert (first["a.txt"], first["b.dcm"]) == ("file-00001", "file-00002")
    (pictured,) = (out / "gradcam").iterdir()
    assert "file-00002" in pictured.name
    (inbox / "0.dcm").write_bytes((scans / "DOE_0.dcm").read_bytes())
    run_test_py(*flags, "--predict", inbox)
    second = key()
    assert second.items() >= first.items() and second["0.dcm"] == "file-00003"
    (inbox / "b.dcm").unlink()
    run_test_py(*flags, "--dicom", inbox)
    assert key() == second
    assert [row["File"] for row in rows_of(out / "slices.csv")] == ["file-00003"]


def test_a_folder_with_the_key_of_other_scans_is_not_written_to(model, scans, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "DOE_0.dcm").write_bytes((scans / "DOE_0.dcm").read_bytes())
    out = ("--workers", 0, "--out", tmp_path / "out")
    run_test_py("--resume", model, "--dicom", scans, *out)
    before = words_of(tmp_path / "out")
    with pytest.raises(UserError, match="has predictions of other scans"):
        run_test_py("--resume", model, "--dicom", other, *out)
    assert words_of(tmp_path / "out") == before
