"""A folder of images as one cached array: built once, never stale, never quietly damaged."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as reference

from dataloaders import pixels as pixels_module
from dataloaders.pixels import decode_image, load_pixels
from utils.errors import UserError


class Folder:
    """Images on disk, a cache beside them, and what was said while loading."""

    def __init__(self, root):
        self.root, self.cache, self.said = root, root / "cache", []

    def add(self, name: str, pixels: np.ndarray):
        Image.fromarray(pixels).save(self.root / name)
        return self.root / name

    def load(self, paths, size=8):
        self.said = []
        return load_pixels(
            paths, size, self.cache, lambda i: f"train.csv line {i + 2}: {paths[i].name}", self.say
        )

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def paths(folder):
    return [folder.add(f"{i}.png", noise(i, 8, 8)) for i in range(3)]


def refused(folder, paths, size=8) -> str:
    with pytest.raises(UserError) as error:
        folder.load(paths, size)
    assert "\n" not in str(error.value)
    assert not list(folder.cache.glob("*.npy")) and not list(folder.cache.glob(".*"))
    return str(error.value)


# ---- what is read


def test_grey_images_have_one_channel(folder, paths):
    pixels, _ = folder.load(paths)
    assert pixels.shape == (3, 8, 8, 1) and pixels.dtype == np.uint8
    for i in range(3):
        assert np.array_equal(pixels[i, :, :, 0], noise(i, 8, 8))


def test_one_colour_image_makes_three_channels(folder, paths):
    colour = folder.add("colour.png", noise(9, 8, 8, 3))
    pixels, _ = folder.load([*paths, colour])
    assert pixels.shape == (4, 8, 8, 3)
    assert np.array_equal(pixels[3], noise(9, 8, 8, 3))
    for channel in range(3):
        assert np.array_equal(pixels[0, :, :, channel], noise(0, 8, 8))


def test_other_modes_become_grey_or_rgb(folder):
    rgba = np.dstack([noise(1, 8, 8, 3), np.full((8, 8), 255, np.uint8)])
    Image.fromarray(noise(2, 8, 8, 3)).convert("P").save(folder.root / "palette.png")
    paths = [folder.add("alpha.png", rgba), folder.root / "palette.png"]
    pixels, _ = folder.load(paths)
    assert np.array_equal(pixels[0], rgba[:, :, :3])
    assert np.array_equal(pixels[1], np.asarray(Image.open(paths[1]).convert("RGB")))


def test_resized_as_torchvision_resizes(folder):
    path = folder.add("big.png", noise(3, 50, 50, 3))
    expected = reference.resize(Image.open(path), [24, 24])  # bilinear with antialiasing
    assert np.array_equal(decode_image(path, 24, grey=False), np.asarray(expected))
    assert folder.load([path], 24)[0].shape == (1, 24, 24, 3)


def test_size_zero_keeps_the_files_own(folder):
    paths = [folder.add(f"{i}.png", noise(i, 13, 13)) for i in range(2)]
    assert folder.load(paths, 0)[0].shape == (2, 13, 13, 1)


# ---- the cache


def test_cache_is_built_once_and_mapped(folder, paths, monkeypatch):
    first, fingerprint = folder.load(paths)
    assert len(folder.said) == 1 and "first use" in folder.said[0]
    monkeypatch.setattr(
        pixels_module, "contents_of_files", lambda _: pytest.fail("files were read")
    )
    second, again = folder.load(paths)
    assert folder.said == [] and again == fingerprint
    assert isinstance(second, np.memmap) and np.array_equal(first, second)


def test_the_cache_cannot_be_written_to(folder, paths):
    pixels, _ = folder.load(paths)
    with pytest.raises(ValueError, match="read-only"):
        pixels[:] = 0


def test_a_folder_that_was_copied_or_touched_is_not_decoded_again(folder, paths, monkeypatch):
    folder.load(paths)
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert folder.load(paths)[0].shape == (3, 8, 8, 1) and folder.said == []
    # What was found out stays known.
    monkeypatch.setattr(
        pixels_module, "contents_of_files", lambda _: pytest.fail("files were read")
    )
    assert folder.load(paths)[0].shape == (3, 8, 8, 1)


@pytest.mark.parametrize("keep_size", [True, False])
def test_replaced_image_is_noticed(folder, paths, keep_size):
    """Of the same size and time, too: archives and rsync bring their makers' times along."""
    _, before = folder.load(paths)
    status = paths[1].stat()
    folder.add("1.png", noise(77, 8, 8) if keep_size else np.zeros((8, 8), np.uint8))
    if keep_size:  # noise compresses to the same size
        assert paths[1].stat().st_size == status.st_size
    os.utime(paths[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    found, after = folder.load(paths)
    assert "have changed" in folder.said[0] and after != before
    assert np.array_equal(found[1, :, :, 0], np.asarray(Image.open(paths[1])))


def test_other_images_sizes_and_orders_are_other_caches(folder, paths):
    fingerprints = {folder.load(paths)[1]}
    for chosen, size in ((paths[:2], 8), (paths[::-1], 8), (paths, 16)):
        pixels, fingerprint = folder.load(chosen, size)
        assert fingerprint not in fingerprints
        fingerprints.add(fingerprint)
        assert len(pixels) == len(chosen)
    assert np.array_equal(folder.load(paths[::-1])[0][0, :, :, 0], noise(2, 8, 8))
    assert folder.said == []


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "note", "no note", "odd note"])
def test_damaged_cache_is_built_again(folder, paths, damage):
    expected = folder.load(paths)[0].copy()
    (array,) = folder.cache.glob("*.npy")
    note = array.with_suffix(".json")
    raw = bytearray(array.read_bytes())
    if damage == "bit":
        raw[-5] ^= 1
        array.write_bytes(raw)
    elif damage == "cut":
        array.write_bytes(raw[:-40])
    elif damage == "empty":
        array.write_bytes(b"")
    elif damage == "note":
        note.write_text("{")
    elif damage == "odd note":
        note.write_text("[1]")
    else:
        note.unlink()
    pixels, _ = folder.load(paths)
    assert len(folder.said) == 1 and ("damaged" in folder.said[0] or damage == "no note")
    assert np.array_equal(pixels, expected)
    folder.load(paths)
    assert folder.said == []


def test_cache_folder_that_cannot_be_made(folder, paths):
    folder.cache.write_text("a file")
    with pytest.raises(UserError, match="--cache_dir .*cache"):
        folder.load(paths)


# ---- images that cannot be used


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_named_with_its_line(folder, paths, suffix):
    path = folder.add(f"cut.{suffix}", noise(5, 64, 64, 3))
    path.write_bytes(path.read_bytes()[:-2000])
    message = refused(folder, [*paths, path])
    assert message.startswith(f"train.csv line 5: cut.{suffix}: damaged image")
    assert "replace the file or remove the row" in message


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_file_that_is_no_image(folder, paths, content):
    path = folder.root / "odd.png"
    path.write_bytes(content)
    expected = "train.csv line 3: odd.png: damaged or no image"
    assert refused(folder, [paths[0], path]).startswith(expected)


def test_broken_checksum_inside_a_png(folder, paths):
    raw = bytearray(paths[1].read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    paths[1].write_bytes(raw)
    assert refused(folder, paths).startswith("train.csv line 3: 1.png: damaged image")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    empty = b"IDAT" + zlib.compress(b"")
    data = struct.pack(">I", len(empty) - 4) + empty + struct.pack(">I", zlib.crc32(empty))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


@pytest.mark.parametrize("side", [4001, 12_000, 60_000])
@pytest.mark.filterwarnings("error")
def test_huge_image_is_refused_from_its_header(folder, paths, side):
    path = folder.root / "huge.png"
    path.write_bytes(png_header(side, side))
    message = refused(folder, [*paths, path])
    assert message.startswith("train.csv line 5: huge.png: ")
    assert "16 million" in message


def test_sixteen_bit_image_is_refused(folder, paths):
    path = folder.root / "deep.png"
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(path)
    message = refused(folder, [*paths, path])
    assert "deep.png: pixels of mode I;16" in message and "8-bit" in message


@pytest.mark.parametrize("shape", [(8, 9), (9, 9)])
def test_size_zero_needs_square_images_of_one_size(folder, paths, shape):
    path = folder.add("odd.png", noise(1, *shape))
    message = refused(folder, [*paths, path], size=0)
    assert f"line 5: odd.png: {shape[1]} x {shape[0]} pixels" in message
    assert "--image_size" in message


@pytest.mark.parametrize("reads", ["decode_image", "contents_of_files"])
def test_an_image_that_may_not_be_read_is_no_fault_of_the_cache(tmp_path, monkeypatch, reads):
    """As for somebody without the right to: root may read everything."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(paths[1]))

    monkeypatch.setattr(pixels_module, reads, denied)
    with pytest.raises(UserError, match=r"line [12].*Permission denied") as caught:
        load_pixels(
            paths, 32, tmp_path / "cache", lambda i: f"t.csv line {i + 1}", lambda text: None
        )
    assert "--cache_dir" not in str(caught.value)
