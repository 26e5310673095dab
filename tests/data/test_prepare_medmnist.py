"""`prepare medmnist` as a user types it, on arrays made here."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dataloaders.medmnist import class_names, read_medmnist
from tests.helpers.prepare_command import one_line_error, prepare
from utils.errors import UserError


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


def test_images_are_resized_as_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez(path, **medmnist_arrays())
    sizes = []
    real = np.empty

    def noted(shape, *arguments, **keywords):
        sizes.append(tuple(np.atleast_1d(shape)))
        return real(shape, *arguments, **keywords)

    monkeypatch.setattr(np, "empty", noted)
    (images, _) = read_medmnist(path, ["training"], 14)["training"]
    assert images.shape == (300, 14, 14, 3)
    assert (300, 28, 28, 3) not in sizes and (300, 14, 14, 3) in sizes
    whole = read_medmnist(path, ["training"])["training"][0]
    expected = Image.fromarray(whole[299]).resize((14, 14), Image.Resampling.BILINEAR)
    assert np.array_equal(images[299], np.asarray(expected))


def test_a_set_larger_than_the_memory_is_no_damaged_file(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    np.savez(path, **medmnist_arrays())
    monkeypatch.setattr(np, "empty", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="its 300 images of the training set need .* --image_size"):
        read_medmnist(path, ["training"])
