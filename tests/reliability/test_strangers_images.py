"""Image files of strangers: opened by this process alone, and in bounded memory."""

import io
import os
import resource
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

import dataloaders.pixels as pixels_module
from dataloaders.dataset import ImageDataset
from dataloaders.pixels import IMAGE_FORMATS, images_at_once, load_pixels, open_image, read_header
from dataloaders.prepare.isic import convert_photograph
from utils.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def picture():
    return Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def load(folder, paths, image_size=8):
    said = []
    array, _ = load_pixels(
        paths, image_size, folder / "cache", lambda i: f"line {i + 2}: {paths[i].name}", said.append
    )
    return array, said


# ---- which decoders


@pytest.fixture
def no_programs(monkeypatch):
    def refuse(*command, **_):
        raise AssertionError(f"a program was started: {command}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "system", refuse)


@pytest.mark.parametrize("open_file", [read_header, lambda path: convert_photograph(path, 8)])
def test_a_program_in_a_picture_is_not_run(tmp_path, no_programs, open_file):
    path = tmp_path / "x.png"
    path.write_bytes(POSTSCRIPT)
    assert Image.open(path).format == "EPS"  # what Pillow makes of it when asked for anything
    with pytest.raises(ValueError, match="damaged"):
        open_file(path)


def test_the_usual_formats_are_read(tmp_path, picture):
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM"):
        assert kind in IMAGE_FORMATS
        file = io.BytesIO()
        picture.save(file, kind)
        file.seek(0)
        with open_image(file) as read:
            assert read.size == (8, 8)


def test_no_other_format_is(tmp_path):
    Image.init()
    header = tmp_path / "x.png"
    header.write_bytes(b"8BPS" + bytes(40))  # Photoshop's mark
    assert {"EPS", "PSD", "WMF", "FITS", "PDF"}.isdisjoint(IMAGE_FORMATS)
    with pytest.raises(ValueError, match="no image .none of PNG, JPEG"):
        read_header(header)


@pytest.mark.parametrize("name", ["pages.tif", "pages.gif", "pages.webp", "pages.png"])
def test_a_file_of_several_pages_is_named(tmp_path, picture, name):
    other = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(tmp_path / "one.tif")
    picture.save(tmp_path / name, save_all=True, append_images=[other])
    paths = [tmp_path / "one.tif", tmp_path / name]
    _, said = load(tmp_path, paths)
    assert (
        f"1 image files hold several pages, page 1 of each is used; the first is line 3: {name}"
        in said
    )


def test_one_page_is_not_spoken_of(tmp_path, picture):
    picture.save(tmp_path / "one.tif")
    _, said = load(tmp_path, [tmp_path / "one.tif"])
    assert not any("pages" in line for line in said)


# ---- how much memory


def data_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux alone")
def test_a_cache_larger_than_memory_is_opened(tmp_path, picture):
    picture.save(tmp_path / "x.png")
    paths = [tmp_path / "x.png"] * 16
    load(tmp_path, paths, 2048)  # 64 MB
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + 24 * 2**20, hard))
    try:
        array, said = load(tmp_path, paths, 2048)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = ImageDataset(array, np.zeros(16), ["x"] * 16, ["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert said == []  # not decoded again
    assert images.pixels.nbytes == 64 * 2**20 and not array.flags.writeable


def test_no_room_for_a_mapping_is_no_damage(tmp_path, picture, monkeypatch):
    picture.save(tmp_path / "x.png")
    load(tmp_path, [tmp_path / "x.png"])

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(UserError, match="no address space for"):
        load(tmp_path, [tmp_path / "x.png"])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_images_in_memory_are_bounded_by_bytes():
    assert images_at_once(32 * 32) == 256
    assert images_at_once(4096 * 4096 * 3) == 1
    assert images_at_once(224 * 224 * 3) * 224 * 224 * 3 <= pixels_module.CHUNK_BYTES


def test_blocks_of_images_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels_module, "CHUNK_BYTES", 3 * 64)  # three images at once
    for i in range(8):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    array, _ = load(tmp_path, [tmp_path / f"{i}.png" for i in range(8)])
    assert array[:, 0, 0, 0].tolist() == list(range(8))


def test_a_truncated_picture_stays_refused(tmp_path, picture):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
