"""What gets in: nothing that leads out of a folder, no network. What gets out: no patient."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from PIL import Image

from dataloaders.dataset import load_dataset
from dataloaders.phantom.files import write_dicom
from dataloaders.phantom.patients import generate
from dataloaders.table import read_table
from tests.helpers import PROJECT
from utils.errors import UserError

# Runs commands of this project, one after the other, in a process in which whatever a socket could
# reach anybody by is refused and told of. A socket alone reaches nobody: urllib3, where some other
# package has brought it along, makes one at import and binds it to this machine's own address.
WITHOUT_NETWORK = """
import json, os, runpy, socket, sys

def refuse(event, arguments):
    harmless = ("socket.__new__", "socket.gethostname")
    if event.startswith("socket.") and event not in harmless:
        if event != "socket.bind" or arguments[1] != ("::1", 0):
            print("OPENED", event, arguments[1:], file=sys.stderr, flush=True)
            raise OSError("no network here")

if __name__ == "__main__":
    sys.addaudithook(refuse)
    home = sys.argv[1]
    sys.path.insert(0, home)
    for program, *flags in json.loads(sys.argv[2]):
        sys.argv = [program, *flags]
        try:
            if program.endswith(".py"):
                runpy.run_path(os.path.join(home, program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                sys.exit(stop.code)
"""


def run_without_network(commands: list[list], cwd: Path, home: Path = PROJECT):
    """Commands like ["train_main.py", "--preset", "demo"], run without network in `cwd`."""
    words = json.dumps([list(map(str, command)) for command in commands])
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, str(home), words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_the_hook_sees_a_socket(tmp_path):
    (tmp_path / "call.py").write_text("import socket; socket.create_connection(('::1', 9))")
    ended = run_without_network([["call.py"]], tmp_path, home=tmp_path)
    assert ended.returncode == 1 and "OPENED socket." in ended.stderr


# ---- scans with planted identities


class Scans(NamedTuple):
    """raw: DICOM files with planted identities. made: all that was made from them (and the demo,
    in runs/). said: the terminal's output of prepare, partition, train, test and the demo."""

    raw: Path
    made: Path
    said: str


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Scans:
    raw, made = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("made")
    phantom = generate(16, 32, 5, slices_per_patient=3, with_bleed_rows_only=True, difficulty=0.1)
    labels = write_dicom(phantom, raw)
    dicom_dir = raw / "stage_2_train"
    prepare = ["dataloaders.prepare", "rsna", "--dicom_dir", dicom_dir, "--labels", labels]
    partition = ["dataloaders.partition", "data/labels.csv", "--out", "data"]
    sets = ["--root_path", "data/images", "--csv_file_test", "data/testing.csv"]
    train = ["train_main.py", "--preset", "paper", "--pretrained", 0, *sets]
    train += ["--csv_file_train", "data/training.csv", "--csv_file_val", "data/validation.csv"]
    clients = ["--num_users", 2, "--num_labeled", 1, "--join_epoch", -1, "--rounds", 1]
    small = ["--image_size", 32, "--batch_size", 8, "--gpu", "cpu", *clients]
    checkpoint = "run/checkpoints/epoch_0.pth"
    ended = run_without_network(
        [
            [*prepare, "--out", "data", "--size", 32, "--workers", 1],
            [*partition, "--single_label", "--sizes", 0.5, 0.2, 0.3],
            [*train, *small, "--run_dir", "run"],
            ["test.py", "--resume", checkpoint, "--dicom", dicom_dir, "--out", "scans"],
            ["train_main.py", "--preset", "demo", "--phantom_patients", 20, *small],
        ],
        made,
    )
    assert ended.returncode == 0 and "OPENED" not in ended.stderr, ended.stdout + ended.stderr
    return Scans(raw, made, ended.stdout + ended.stderr)


def planted(raw: Path) -> set[str]:
    """Names, dates, addresses and the like of every header."""
    found = set()
    for path in raw.rglob("*.dcm"):
        scan = pydicom.dcmread(path, stop_before_pixels=True)
        found |= set(str(scan.PatientName).split("^")) | {str(scan.PatientAddress)}
        found |= {str(scan.PatientBirthDate), str(scan.StudyDate), str(scan.AccessionNumber)}
        found |= {str(scan.InstitutionName), *str(scan.ReferringPhysicianName).split("^")}
    return found


def leaks(secrets: set[str], content: bytes) -> list[str]:
    """Secrets in `content`, in any case; digits count only where no further digit is beside."""
    content = content.lower()
    found = [secret for secret in secrets if secret.lower().encode() in content]
    alone = {secret: rf"(?<!\d){re.escape(secret.lower())}(?!\d)" for secret in found}
    return [secret for secret in found if re.search(alone[secret].encode(), content)]


def content_of(path: Path) -> bytes:
    """A file's name and bytes; of a checkpoint all but the numbers of its tensors."""
    if path.suffix != ".pth":
        return path.name.encode() + path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/data/" not in name]
        return path.name.encode() + b"".join(archive.read(name) for name in names)


def test_no_planted_name_or_date_is_in_any_output(scans):
    secrets = planted(scans.raw)
    assert len(secrets) > 40 and "Planted General Hospital" in secrets
    assert leaks(secrets, next(scans.raw.rglob("*.dcm")).read_bytes())  # they can be found
    files = [path for path in scans.made.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".png", ".csv", ".json", ".txt", ".pth", ".md", ".npy"} and len(files) > 60
    for path in files:
        assert not leaks(secrets, content_of(path)), path
        if path.suffix == ".png":
            texts = json.dumps({k: str(v) for k, v in Image.open(path).info.items()})
            assert not leaks(secrets, texts.encode()), path
    assert not leaks(secrets, scans.said.encode())
    assert {"slices.csv", "predictions_test.csv", "epoch_0.pth"} <= {path.name for path in files}


def test_the_demo_and_everything_before_it_opened_no_socket(scans):
    """The fixture would have failed; the demo made its own data and a whole report."""
    (run,) = (scans.made / "runs").iterdir()
    assert (run / "REPORT.md").exists() and "generating head CT of 20" in scans.said


# ---- images named in a CSV


def csv_of(folder: Path, *names: str) -> Path:
    rows = [f"{name},{i % 2},{(i + 1) % 2}" for i, name in enumerate(names)]
    (folder / "x.csv").write_text("\n".join(["ImageID,cat,dog", *rows]) + "\n")
    return folder / "x.csv"


@pytest.fixture
def images(tmp_path) -> Path:
    """images/fine.png, and secret.png beside that folder."""
    (tmp_path / "images").mkdir()
    for name in ("images/fine.png", "secret.png"):
        Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / name)
    return tmp_path / "images"


def load(images: Path, *names: str):
    table = read_table(csv_of(images.parent, "fine.png", *names))
    return load_dataset(table, images, 16, "auto", images.parent / "cache", str)


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "a/../../secret.png", "{parent}/secret.png", "link.png", "door/secret.png"],
)
def test_a_name_never_leads_out_of_the_folder(images, name):
    (images / "link.png").symlink_to(images.parent / "secret.png")
    (images / "door").symlink_to(images.parent)
    (images / "a").mkdir()
    with pytest.raises(UserError, match="x.csv line 3: .*leads out of --root_path"):
        load(images, name.format(parent=images.parent))


def test_a_nul_byte_in_a_name_is_one_line(images):
    with pytest.raises(UserError, match="x.csv"):
        load(images, "fine\0.png")


def test_a_link_within_the_folder_is_fine(images):
    Image.new("L", (64, 64)).save(images / "other.png")
    (images / "link.png").symlink_to(images / "other.png")
    assert len(load(images, "link.png")) == 2


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_image_is_refused_by_name(images, suffix, kept):
    path = images / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=f"x.csv line 3: cut{suffix}: .*replace the file"):
        load(images, path.name)


def test_more_than_16_megapixels_are_refused_unread(images):
    Image.new("1", (4001, 4000)).save(images / "huge.png")
    with pytest.raises(UserError, match="x.csv line 3: huge.png: 4001 x 4000 pixels"):
        load(images, "huge.png")


def test_an_empty_label_is_never_a_number(images):
    path = csv_of(images.parent, "fine.png", "b.png")
    path.write_text(path.read_text().replace("b.png,1,0", "b.png,,0"))
    with pytest.raises(UserError, match="x.csv line 3, column 'cat': the label is missing"):
        read_table(path)
