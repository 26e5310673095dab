"""What is wrong with flags or data ends a run in one line, before anything is written."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dataloaders.dataset
import networks.densenet
import reproduce
import train_main
from networks.models import DenseNet121
from networks.saved import model_content
from utils.checkpoint import save_checkpoint
from utils.errors import UserError, run_command

CLASSES = ["bleed", "none"]
HEADER = "ImageID,PatientID,bleed,none"


class Data:
    """Twelve grey images and three CSVs in a folder, and the flags that name them."""

    def __init__(self, folder):
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir()
        generator = np.random.default_rng(0)
        self.rows = []
        for i in range(12):
            pixels = generator.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{i}.png")
            self.rows.append(f"{i}.png,P{i},{i % 2},{1 - i % 2}")
        self.write("train.csv", self.rows[:8])
        self.write("test.csv", self.rows[8:])

    def write(self, name: str, rows: list[str], header: str = HEADER):
        (self.folder / name).write_text("\n".join([header, *rows]) + "\n")

    def replace_row(self, line: int, row: str):
        """Put `row` in a line of train.csv; the header is line 1."""
        rows = self.rows[:8]
        rows[line - 2] = row
        self.write("train.csv", rows)

    def flags(self) -> list[str]:
        named = {
            "root_path": "images",
            "csv_file_train": "train.csv",
            "csv_file_test": "test.csv",
            "run_dir": "run",
            "cache_dir": "cache",
            "num_users": "3",
            "image_size": "32",
            "batch_size": "4",
            "pretrained": "0",
            "rounds": "1",
            "gpu": "cpu",
        }
        return [word for flag, value in named.items() for word in (f"--{flag}", value)]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Data:
    monkeypatch.chdir(tmp_path)
    return Data(tmp_path)


@pytest.fixture
def end(data, monkeypatch, capsys):
    """Runs `train_main.py` with the data's flags and some more: (status, stdout, stderr)."""

    def run(*flags: str):
        monkeypatch.setattr(sys, "argv", ["train_main.py", *data.flags(), *flags])
        with pytest.raises(SystemExit) as stopped:
            run_command(train_main.main)
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    yield run


@pytest.fixture
def refused(data, end):
    """Like `end` for a mistake: its one line, after checking that nothing was left behind."""

    def run(*flags: str) -> str:
        status, _, stderr = end(*flags)
        assert status == 2
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert not (data.folder / "run").exists()
        assert not list(data.folder.rglob("*.partial"))
        return stderr.removeprefix("error: ").strip()

    return run


# ---- the label files


def test_missing_csv(refused):
    message = refused("--csv_file_train", "nowhere.csv")
    assert message == "nowhere.csv: no such file; check the path of the CSV"


def test_empty_csv(data, refused):
    (data.folder / "train.csv").write_text("")
    assert refused().startswith("train.csv: the file is empty")


def test_csv_without_images_column(data, refused):
    data.write("train.csv", data.rows[:8], header="Picture,PatientID,bleed,none")
    assert "train.csv line 1: no image column" in refused()


def test_kaggles_long_form(data, refused):
    data.write("train.csv", ["ID_1_any,0", "ID_1_subdural,1"], header="ID,Label")
    message = refused()
    assert "Kaggle's long label file" in message and "dataloaders.prepare rsna" in message


@pytest.mark.parametrize("label", ["2", "0.5", "yes", ""])
def test_label_that_is_none(data, refused, label):
    data.replace_row(4, f"2.png,P2,{label},1")
    assert "train.csv line 4, column 'bleed'" in refused()


@pytest.mark.parametrize(("labels", "what"), [("0,0", "no class"), ("1,1", "several classes")])
def test_row_without_exactly_one_class(data, refused, labels, what):
    data.replace_row(5, f"3.png,P3,{labels}")
    message = refused()
    assert f"train.csv line 5: image '3.png' has {what}" in message
    assert "--multi_label drop" in message


def test_such_rows_are_dropped_and_counted_if_asked(data, end):
    data.replace_row(5, "3.png,P3,1,1")
    status, stdout, _ = end("--multi_label", "drop", "--dry_run", "--num_users", "2")
    assert status == 0
    assert "7 images of train.csv, 1 rows left out" in stdout
    assert not (data.folder / "run").exists()


def test_classes_that_differ_between_files(data, refused):
    data.write("test.csv", data.rows[8:], header="ImageID,PatientID,bleed,healthy")
    message = refused()
    assert "test.csv" in message and "healthy" in message and "train.csv" in message


# ---- the images


def test_missing_image(data, refused):
    data.replace_row(3, "gone.png,P1,1,0")
    assert "train.csv line 3: image 'gone.png' is not under images" in refused()


def test_truncated_image(data, refused):
    path = data.images / "1.png"
    path.write_bytes(path.read_bytes()[:300])
    assert refused().startswith("train.csv line 3: 1.png: damaged image")


@pytest.mark.parametrize("name", ["../train.png", "sub/../../x.png", "/etc/passwd", "C:\\x.png"])
def test_name_that_leads_out_of_the_folder(data, refused, name):
    data.replace_row(3, f"{name},P1,1,0")
    message = refused()
    assert message.startswith("train.csv line 3: image ") and "--root_path" in message


def test_link_that_leads_out_of_the_folder(data, refused):
    outside = data.folder / "outside.png"
    (data.images / "1.png").rename(outside)
    (data.images / "1.png").symlink_to(outside)
    message = refused()
    assert message.startswith("train.csv line 3: image '1.png' leads out of --root_path")


def test_missing_folder(refused):
    assert "nowhere: no such folder of images" in refused("--root_path", "nowhere")


def test_images_too_small_for_the_network(data, end):
    status, _, stderr = end("--image_size", "16")
    assert status == 2 and stderr.startswith("error: --image_size 16:")
    assert not (data.folder / "run").exists()


# ---- the clients


@pytest.mark.parametrize("users", ["5", "9"])
def test_fewer_images_than_clients_need(refused, users):
    message = refused("--num_users", users)
    assert f"--num_users {users}: " in message and "8" in message


def test_labelled_client_without_a_class_is_warned_of(data, end):
    data.write("train.csv", [f"{i}.png,P{i},{int(i == 0)},{int(i != 0)}" for i in range(8)])
    status, stdout, _ = end("--dry_run")
    assert status == 0
    warnings = [line for line in stdout.splitlines() if line.startswith("warning")]
    assert warnings and "no image of bleed" in warnings[0] and "0 bleed" in warnings[0]


# ---- weights to start from


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint of this project."""

    def write(class_names=CLASSES, attention="none", **changes):
        torch.manual_seed(0)
        net = DenseNet121(len(class_names), attention=attention)
        architecture = {
            "network": "densenet121",
            "mode": "U-Ones",
            "drop_rate": 0.2,
            "attention": attention,
        }
        weights = net.state_dict() | changes
        content = model_content(
            weights, tuple(class_names), architecture, {"image_size": 32}, "slides", 3
        )
        save_checkpoint(tmp_path / "start.pth", content)

    return write


def test_checkpoint_of_other_classes(refused, checkpoint):
    checkpoint(["a", "b", "c"])
    message = refused("--resume", "start.pth")
    assert message == "start.pth: made for the classes a, b, c, not bleed, none"


def test_checkpoint_of_another_architecture(refused, checkpoint):
    checkpoint(attention="self")
    assert "start.pth: made with --attention self" in refused("--resume", "start.pth")


def test_checkpoint_of_another_network(refused, checkpoint):
    name = "densenet121.features.conv0.weight"
    checkpoint(**{name: torch.zeros(3, 3)})
    message = refused("--resume", "start.pth")
    assert message.startswith("start.pth: weights of another network") and name in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 damaged"])
def test_file_that_is_no_checkpoint(data, refused, content):
    (data.folder / "start.pth").write_bytes(content)
    assert refused("--resume", "start.pth").startswith("start.pth: ")


def test_no_imagenet_weights(data, end, refused, monkeypatch):
    empty = data.folder / "checkpoints"
    monkeypatch.setattr(
        networks.densenet.find_imagenet_weights, "__defaults__", (empty, "densenet121")
    )
    # Before anything is decoded, and in a rehearsal as in the run.
    monkeypatch.setattr(dataloaders.dataset, "load_pixels", lambda *_: pytest.fail("decoded"))
    for more in ([], ["--dry_run"]):
        message = refused("--pretrained", "1", *more)
        assert f"no ImageNet weights in {empty}" in message and "--pretrained 0" in message
        assert "densenet121-a639ec97.pth" in message and 'python -c "from torchvision' in message
    _, said, _ = end("--pretrained", "1", "--dry_run")
    assert "client  labels" in said and "time: about" in said  # everything else is told first
    for i in range(12, 24):  # enough for the items' ten clients
        shutil.copy(data.images / "0.png", data.images / f"{i}.png")
    data.write("train.csv", [f"{i}.png,P{i},{i % 2},{1 - i % 2}" for i in range(24)])
    named = [
        "--root_path",
        "images",
        "--csv_file_train",
        "train.csv",
        "--csv_file_test",
        "test.csv",
    ]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "table1", "--preset", "paper", *named])
    sys.argv += ["--dry_run", "--runs", "runs"]
    with pytest.raises(UserError, match="no ImageNet weights in"):
        reproduce.main()
    sys.argv[-2:] = ["--runs", "runs", "--pretrained", "0"]
    (data.images / "3.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="3.png: damaged"):
        reproduce.main()


# ---- the run folder and the flags


def test_folder_that_holds_a_run(data, end):
    (data.folder / "run").mkdir()
    (data.folder / "run" / "args.json").write_text("{}")
    status, _, stderr = end()
    assert status == 2 and stderr.startswith("error: --run_dir run: holds a run already")
    assert sorted(
        path.name for path in (data.folder / "run").iterdir() if path.name != ".lock"
    ) == ["args.json"]


def test_run_folder_that_is_a_file(data, end):
    (data.folder / "run").write_text("mine")
    status, _, stderr = end()
    assert status == 2 and stderr.count("\n") == 1 and "run" in stderr
    assert (data.folder / "run").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "nowhere"], "--resume nowhere: no such run folder or checkpoint"),
        (["--resume", "images"], "--resume images: not the folder of a run"),
        (["--batch_size", "1"], "--batch_size 1: must lie between 2 and"),
        (["--gpu", "first"], "--gpu 'first': give device numbers"),
        (["--image_size", "-5"], "--image_size -5"),
    ],
)
def test_flags(refused, flags, message):
    assert refused(*flags).startswith(message)


def test_a_flag_that_decides_what_is_computed_cannot_change(data, end):
    (data.folder / "old").mkdir()
    (data.folder / "old" / "args.json").write_text('{"seed": 1, "rounds": 1, "batch_size": 4}')
    status, _, stderr = end("--resume", "old", "--seed", "2")
    assert status == 2 and stderr.count("\n") == 1
    assert "--seed 2 (was 1)" in stderr and "--rounds" not in stderr
