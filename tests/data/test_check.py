"""What --dry_run finds out: classes, headers of all images, shared patients, disk space."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloaders.federated import check_data
from dataloaders.table import ImageTable, read_table
from utils.errors import UserError


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


def table(folder: Path, name: str, rows: str, header: str = "ImageID,PatientID,a,b") -> ImageTable:
    path = folder / f"{name}.csv"
    path.write_text(f"{header}\n{rows}")
    return read_table(path)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "images"
    for name in ("1.png", "2.png", "3.png"):
        picture(root / name)
    picture(root / "4.jpg", (10, 10), "RGB")
    tables = {
        "train": table(tmp_path, "training", "1.png,p1,1,0\n2.png,p2,0,1\n"),
        "val": table(tmp_path, "validation", "3.png,p3,1,0\n"),
        "test": table(tmp_path, "testing", "4.jpg,p4,0,1\n"),
    }
    return root, tables


def refusal(tables: dict[str, ImageTable], root: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        check_data(tables, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_data_is_described(data, tmp_path):
    root, tables = data
    text = "\n".join(check_data(tables, root, {tmp_path / "runs" / "new": 10**6}))
    assert "train: 2 images" in text and "val: 1 images" in text
    assert "image sizes: 8x6 (3), 10x10 (1); modes: L (3), RGB (1)" in text
    assert "0 of 1 val patients were in training; 0 of 1 val images by name" in text
    assert "0 of 1 test patients were in training; 0 of 1 test images by name" in text
    assert "0 of 1 test patients were in validation" in text
    assert "about 0.0 GB needed" in text
    assert "warning: val has no image of b" in text and "warning: train has" not in text
    assert not (tmp_path / "runs").exists()


def test_shared_patients_and_images_are_stated(data, tmp_path):
    root, tables = data
    tables["val"] = table(tmp_path, "leaky", "3.png,p1,1,0\n2.png,p9,0,1\n")
    tables["test"] = table(tmp_path, "anonymous", "4.jpg,0,1\n", "ImageID,a,b")
    text = "\n".join(check_data(tables, root))
    assert "warning: 1 of 2 val patients were in training; 1 of 2 val images by name" in text
    assert "whether test patients were in training is not known; 0 of 1 test images by" in text


def test_deep_pictures_are_refused_as_training_refuses_them(data):
    root, tables = data
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(root / "3.png")
    message = refusal(tables, root)
    assert "3.png: pixels of mode I;16: convert it to 8-bit grey or RGB" in message


@pytest.mark.parametrize("header", ["ImageID,PatientID,b,a", "ImageID,PatientID,a,c"])
def test_class_columns_must_agree(data, tmp_path, header):
    root, tables = data
    tables["test"] = table(tmp_path, "other", "4.jpg,p4,0,1\n", header)
    message = refusal(tables, root)
    assert "other.csv" in message and "training.csv" in message and "same order" in message


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "jpeg")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (huge_png(8, 8)[:20], "damaged"),
        (jpeg()[:40], "damaged"),
        (b"ImageID,a,b\n", "damaged"),
        (bytes(128) + b"DICM" + bytes(50), "damaged"),
        (huge_png(4001, 4000), "4001 x 4000"),
        (huge_png(12_000, 9_000), "12000 x 9000"),
        (huge_png(30_000, 30_000), "16 million"),
        (huge_png(0, 5), "damaged"),
    ],
)
def test_a_bad_image_is_named_with_its_line(data, content, expected, recwarn):
    root, tables = data
    (root / "2.png").write_bytes(content)
    message = refusal(tables, root)
    assert "training.csv line 3" in message and str(root / "2.png") in message
    assert expected in message and not recwarn.list


def test_bad_images_are_counted(data):
    root, tables = data
    for name in ("1.png", "2.png"):
        (root / name).write_bytes(b"x")
    message = refusal(tables, root)
    assert "line 2" in message and "1 more such" in message


def test_largest_allowed_picture_passes(data):
    root, tables = data
    (root / "2.png").write_bytes(huge_png(4000, 4000))
    assert any("4000x4000 (1)" in line for line in check_data(tables, root))


def test_folders_on_one_disk_are_added_up(data, tmp_path):
    root, tables = data
    lines = check_data(tables, root, {tmp_path / "a": 2 * 10**9, tmp_path / "b": 10**9})
    assert sum("about 3.0 GB needed" in line for line in lines) == 1
    message = refusal(tables, root, needed_bytes={tmp_path / "a" / "b": 10**18})
    assert "disk is too small" in message and "1000000000.0 GB" in message


def test_a_missing_image_is_refused(data):
    root, tables = data
    (root / "4.jpg").unlink()
    assert "testing.csv line 2" in refusal(tables, root)
