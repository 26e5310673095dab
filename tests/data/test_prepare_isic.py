"""`prepare isic` as a user types it, on HAM10000 in small."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dataloaders.pixels import decode_image
from dataloaders.prepare.isic import CLASSES, convert_photograph, read_isic_labels
from tests.helpers.prepare_command import one_line_error, prepare
from utils.errors import UserError

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


def test_ids_with_suffix_tabs_and_capital_suffixes(clinic):
    """HAM10000_metadata.tab, ids as somebody's script wrote them, files as a camera named them."""
    text = (clinic / "metadata.csv").read_text()
    for image in DIAGNOSES:
        text = text.replace(f"{image},", f"{image}.jpg,")
    (clinic / "metadata.tab").write_text(text.replace(",", "\t"))
    (clinic / "semicolons.csv").write_text(text.replace(",", ";"))
    (clinic / "part_1" / "ISIC_1.jpg").rename(clinic / "part_1" / "ISIC_1.JPG")
    done = isic(clinic, "metadata.tab")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(clinic / "out" / "labels.csv")
    assert list(table["ImageID"]) == [f"{image}.png" for image in DIAGNOSES]
    for name in ("metadata.tab", "semicolons.csv"):
        pd.testing.assert_frame_equal(
            read_isic_labels(clinic / name, None), read_isic_labels(clinic / "metadata.csv", None)
        )


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:, :30] = 255  # its left half; the camera lay on its side
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the left is above then
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    picture, _ = convert_photograph(str(tmp_path / "a.jpg"), 32)
    assert picture[:12].min() > 200 and picture[20:].max() < 60
    pixels = decode_image(tmp_path / "a.jpg", 32, grey=True)
    assert pixels[:12].min() > 200 and pixels[20:].max() < 60


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
