"""The predictions file: read back bit for bit, refused where it is wrong."""

import numpy as np
import pytest

from tests.helpers.examples import example_predictions
from utils.errors import UserError
from utils.metrics.predictions import read_predictions, write_predictions

GOOD = "ImageID,PatientID,label,left,right\na.png,007,left,0.75,0.25\nb.png,8,right,0.5,0.5\n"


def test_probabilities_come_back_bit_for_bit(tmp_path):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(3, 0.05), 500)
    probabilities[0] = [1.0, 0.0, 0.0]
    labels = generator.integers(3, size=500)
    names = [f"folder/scan, {index}.png" for index in range(500)]
    groups = np.array([f"{index // 3:05d}" for index in range(500)])
    path = tmp_path / "predictions_test.csv"
    write_predictions(path, names, labels, probabilities, ["one", "two", "three"], groups)
    read = read_predictions(path)
    assert np.array_equal(read.probabilities, probabilities)
    assert np.array_equal(read.labels, labels)
    assert list(read.names) == names
    assert read.groups.tolist() == groups.tolist()
    assert read.class_names == ("one", "two", "three")


def test_single_precision_is_widened_without_loss(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet([1, 1], 50).astype(np.float32)
    path = tmp_path / "p.csv"
    write_predictions(path, range(50), np.zeros(50, int), probabilities, ["0", "1"])
    read = read_predictions(path)
    assert np.array_equal(read.probabilities.astype(np.float32), probabilities)
    assert read.groups is None


def test_the_file_is_as_described(tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(
        path,
        ["a.png", "b.png"],
        np.array([0, 1]),
        np.array([[0.75, 0.25], [0.5, 0.5]]),
        ["left", "right"],
        ["007", "8"],
    )
    assert path.read_text() == GOOD
    assert read_predictions(path).groups.tolist() == ["007", "8"]
    lesions = tmp_path / "lesions.csv"
    lesions.write_text(GOOD.replace("PatientID", "lesion_id"))
    assert read_predictions(lesions).group_noun == "lesions"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", "", "empty"),
        ("ImageID,label,left,right\n", "", "no image"),
        ("Image,label,left,right\na,left,1,0\n", "line 1", "columns must be"),
        ("ImageID,left,right\na,1,0\n", "line 1", "columns must be"),
        ("ImageID\na\n", "line 1", "columns must be"),
        ("ImageID,label,left\na,left,1\n", "line 1", "two classes"),
        ("ImageID,label,left,left\na,left,1,0\n", "line 1", "own name"),
        (GOOD.replace("b.png", "a.png"), "line 3", "already on line 2"),
        (GOOD.replace("8,right", "8,middle"), "line 3", "'middle' is none of"),
        (GOOD.replace("0.75", "0.70"), "line 2", "add up to 1"),
        (GOOD.replace("0.75", "1.75").replace("0.25", "-0.75"), "line 2", "add up to 1"),
        (GOOD.replace("0.5,0.5", "nan,0.5"), "line 3", "add up to 1"),
        (GOOD.replace("0.5,0.5", "half,0.5"), "line 3", "half, 0.5"),
        (GOOD.replace(",0.5\n", "\n"), "line 3", "4 cells where the header has 5"),
        (GOOD.replace(",0.5\n", ",0.5,1\n"), "line 3", "6 cells"),
        (GOOD.replace("a.png", "\xff"), "", "UTF-8"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path, text, place, words):
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as refusal:
        read_predictions(path)
    message = str(refusal.value)
    assert str(path) in message
    assert place in message
    assert words in message
    assert "\n" not in message


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(UserError, match="give a file that test.py wrote"):
            read_predictions(path)


@pytest.mark.parametrize("with_patients", [True, False])
def test_sites_come_back(tmp_path, with_patients):
    predictions = example_predictions(with_patients=with_patients)
    sites = np.array(["north", "south, east"])[np.arange(len(predictions.labels)) % 2]
    write_predictions(tmp_path / "p.csv", *predictions._replace(sites=sites))
    found = read_predictions(tmp_path / "p.csv")
    assert list(found.sites) == list(sites) and found.class_names == predictions.class_names
    assert (found.groups is not None) is with_patients
    np.testing.assert_array_equal(found.probabilities, predictions.probabilities)
