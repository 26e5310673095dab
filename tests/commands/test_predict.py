"""Prediction for anything: files, folders, lists and arrays of every kind, as in training."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dataloaders.dataset import load_dataset
from dataloaders.likeness import describe_pictures, find_unlike
from dataloaders.table import read_table
from networks.kinds import build_network
from networks.saved import find_checkpoint, model_content
from predict import load
from predict.gradcam import picture_beside_heat
from predict.inference import predict
from tests.helpers.dicom_files import head, write_ct
from tests.helpers.used_run import run_test_py
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

CLASSES = ("a", "b", "c")
ARCHITECTURE = {"network": "densenet121", "mode": "U-Ones", "drop_rate": 0.2, "attention": "none"}
SCANS = {"image_size": 32, "dicom": {"window": "triple", "size": 40}}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_network(ARCHITECTURE, CLASSES).eval()


def checkpoint(net, path, preprocessing, round=7):
    content = model_content(net.state_dict(), CLASSES, ARCHITECTURE, preprocessing, "paper", round)
    save_checkpoint(path, content)
    return path


def skin(count: int, seed: int = 0) -> np.ndarray:
    """Photographs (N, 48, 60, 3) uint8 in the colours of HAM10000's."""
    generator = np.random.default_rng(seed)
    tone = generator.normal((190, 140, 130), 15, (count, 1, 1, 3))
    return np.clip(tone + generator.normal(0, 20, (count, 48, 60, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def skin_model(net, tmp_path_factory):
    pictures = describe_pictures(torch.from_numpy(skin(60)))
    path = tmp_path_factory.mktemp("skin") / "epoch_7.pth"
    return load(checkpoint(net, path, {"image_size": 32, "pictures": pictures}), device="cpu")


@pytest.fixture(scope="module")
def scan_model(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "epoch_7.pth"
    plain = load(checkpoint(net, path, SCANS), device="cpu")
    files = plain.open([head(48, 48, seed) for seed in range(30)])
    pixels = np.stack([files[row][0][1] for row in range(30)]).transpose(0, 2, 3, 1)
    pictures = describe_pictures(torch.from_numpy(np.ascontiguousarray(pixels)))
    return load(checkpoint(net, path, SCANS | {"pictures": pictures}), device="cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with a PNG and a JPEG in a folder of its own, and things that are no images."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "more").mkdir()
    first, second = skin(2, seed=5)
    Image.fromarray(first).save(folder / "a.png")
    Image.fromarray(second).save(folder / "more" / "b.jpg")
    (folder / "notes.txt").write_text("left arm")
    (folder / ".DS_Store").write_text("x")
    return folder


def test_pictures_are_predicted_as_if_loaded_for_training(skin_model, photographs, tmp_path):
    table = skin_model.predict(photographs)
    assert list(table.columns) == ["ImageID", "prediction", *CLASSES, "note"]
    assert list(table["ImageID"]) == ["a.png", "more/b.jpg", "notes.txt"]
    (tmp_path / "labels.csv").write_text("ImageID,a,b,c\na.png,1,0,0\nmore/b.jpg,1,0,0\n")
    images = load_dataset(
        read_table(tmp_path / "labels.csv"), photographs, 32, "auto", tmp_path, print
    )
    expected = predict(skin_model.net, images, 2)
    np.testing.assert_allclose(table.loc[:1, list(CLASSES)], expected, atol=2e-6)
    assert list(table.loc[:1, "prediction"]) == [CLASSES[at] for at in expected.argmax(axis=1)]
    assert table.loc[2, ["prediction", *CLASSES]].isna().all()
    assert "no image" in table.loc[2, "note"] and not table.loc[0, "note"]


def test_a_list_of_files_and_a_csv_of_names_alone_say_the_same(skin_model, photographs, tmp_path):
    whole = skin_model.predict(photographs)
    files = skin_model.predict([str(photographs / "more" / "b.jpg"), photographs / "a.png"])
    assert list(files["ImageID"]) == [str(photographs / name) for name in ("more/b.jpg", "a.png")]
    (tmp_path / "list.csv").write_text("ImageID\nmore/b\na.png\n")
    listed = skin_model.predict(tmp_path / "list.csv", root=photographs)
    assert list(listed["ImageID"]) == ["more/b", "a.png"]
    for table in (files, listed):
        np.testing.assert_allclose(
            table[list(CLASSES)], whole.loc[[1, 0], list(CLASSES)], atol=2e-6
        )
    with pytest.raises(UserError, match="a.png is named twice"):
        skin_model.predict([photographs / "a.png", photographs / "a.png"])


def test_a_scan_says_the_same_as_dicom_as_nifti_and_as_an_array(scan_model, tmp_path):
    slices = [head(48, 64, seed) for seed in (1, 2)]
    for number, hounsfield in enumerate(slices):
        write_ct(tmp_path / f"{number}", hounsfield + np.int16(1024))
    expected = scan_model.predict([tmp_path / "0", tmp_path / "1"])[list(CLASSES)]
    assert np.ptp(expected.to_numpy(), axis=0).max() > 1e-6
    arrays = scan_model.predict(slices)
    assert list(arrays["ImageID"]) == ["0", "1"]
    np.testing.assert_allclose(arrays[list(CLASSES)], expected, atol=2e-6)
    nibabel = pytest.importorskip("nibabel")
    # RAS: x grows to the patient's right, which is a picture's left; y to the face, its top.
    volume = np.stack(slices, axis=-1).transpose(1, 0, 2)[::-1, ::-1]
    tilted = np.eye(4)
    tilted[1, 2] = 0.3  # a gantry's tilt: slices are looked at one by one
    nibabel.save(nibabel.Nifti1Image(volume, tilted), tmp_path / "head.nii.gz")
    told = scan_model.predict(tmp_path / "head.nii.gz")
    assert list(told["ImageID"]) == [f"{tmp_path}/head.nii.gz[{at}]" for at in (0, 1)]
    np.testing.assert_allclose(told[list(CLASSES)], expected, atol=2e-6)


def test_skin_refuses_head_ct_and_head_ct_refuses_skin(skin_model, scan_model, photographs):
    ct_picture = scan_model.open([head(48, 48, 9)])[0][0][1].transpose(1, 2, 0)
    with pytest.raises(UserError, match=r"nothing like the images .*\(darkness 0") as caught:
        skin_model.predict(ct_picture)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"a.png: nothing like .*\(\w+ \d+ where those have"):
        scan_model.predict(photographs)
    forced = scan_model.predict(photographs, unlike="predict")
    assert forced.loc[0, "note"].startswith("nothing like the training images: ")
    assert forced.loc[0, list(CLASSES)].notna().all()


def test_a_skin_model_reads_no_scan_and_says_what_it_misses(skin_model, tmp_path):
    write_ct(tmp_path / "scan.dcm")
    table = skin_model.predict(tmp_path / "scan.dcm")
    assert "the model does not say how scans became" in table.loc[0, "note"]
    with pytest.raises(UserError, match="scan.dcm: nothing like"):
        load(skin_model.path, device="cpu", window="brain", size=40).predict(tmp_path / "scan.dcm")


def test_one_odd_image_among_many_is_predicted_and_noted(skin_model):
    images = [*skin(3, seed=8), np.zeros((40, 40), np.uint8)]
    table = skin_model.predict(images)
    assert [bool(note) for note in table["note"]] == [False, False, False, True]
    assert table[list(CLASSES)].notna().all(axis=None)


def test_likeness_is_of_the_range_and_its_width():
    described = describe_pictures(torch.from_numpy(skin(60)))
    assert find_unlike(skin(60, seed=1).transpose(0, 3, 1, 2), described) == [""] * 60
    low, high = described["red"]
    for red, unlike in ((high + 40, False), (low - (high - low) - 30, True)):
        picture = np.empty((1, 3, 8, 8), np.uint8)
        picture[0] = np.array([min(red, 255), 140, 130])[:, None, None]
        assert ("red" in find_unlike(picture, described)[0]) is unlike
    assert find_unlike(skin(1).transpose(0, 3, 1, 2), None) == [""]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((4, 4, 3)), "give pictures as uint8"),
        (np.full((4, 4), np.nan), "not finite"),
    ],
)
def test_an_array_that_could_mean_several_things_is_not_guessed_at(scan_model, array, reason):
    (note,) = scan_model.predict([array])["note"]
    assert re.search(reason, note)


def test_a_runs_folder_is_its_last_checkpoint(net, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoints/epoch_N.pth yet; .* --finish"):
        load(tmp_path)
    for round in (9, 10):
        checkpoint(net, tmp_path / "checkpoints" / f"epoch_{round}.pth", SCANS, round)
    assert find_checkpoint(tmp_path).name == "epoch_10.pth"
    assert load(tmp_path, device="cpu").content["round"] == 10
    with pytest.raises(UserError, match="there is no device 7"):
        load(tmp_path, device="cuda:7")


def test_the_command_writes_the_same_table_and_the_evidence(skin_model, photographs, tmp_path):
    printed = run_test_py(
        *("--resume", skin_model.path, "--predict", photographs, "--workers", 0),
        *("--gradcam", "--out", tmp_path / "out"),
    )
    assert "2 images in " in printed and "files left out: 1, listed in predictions.csv" in printed
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    expected = skin_model.predict(photographs)
    np.testing.assert_array_equal(
        table.loc[:1, list(CLASSES)].astype(float), expected.loc[:1, list(CLASSES)]
    )
    assert list(table.loc[2, list(CLASSES)]) == [""] * 3
    pictures = sorted((tmp_path / "out" / "gradcam").iterdir())
    assert [path.name for path in pictures] == ["00000_a.png.png", "00001_more_b.jpg.png"]
    drawn = np.asarray(Image.open(pictures[0]))
    np.testing.assert_array_equal(drawn, skin_model.gradcam(photographs)[0])
    assert drawn.shape == (32, 64, 3)


def test_nothing_readable_is_an_error_that_says_why(skin_model, tmp_path):
    (tmp_path / "notes.txt").write_text("left arm")
    with pytest.raises(UserError, match="none of 1 files can be read, .*notes.txt: .*no image"):
        run_test_py(
            *("--resume", skin_model.path, "--predict", tmp_path / "notes.txt", "--workers", 0)
        )


def test_heat_is_yellow_over_grey():
    picture = np.full((1, 2, 2), 100, np.uint8)
    sheet = picture_beside_heat(picture, np.array([[0.0, 1.0], [0.0, 0.0]]))
    assert (sheet[:, :2] == 100).all() and (sheet[0, 2] == 100).all()
    np.testing.assert_array_equal(sheet[0, 3], np.round(35 + 0.65 * 255 * np.array([1, 0.75, 0])))
