"""What sets of images share: by name, by patient or lesion, by pixels."""

import json

import numpy as np
import pytest

from dataloaders.dataset import ImageDataset
from dataloaders.overlap import (
    Listed,
    compare_all,
    members,
    members_of,
    overlaps_with_run,
    plain_group,
    save_seen,
    warning_line,
)
from paper.comparison import overlaps_of


def images(names, groups=None, column="PatientID", first_pixel=0) -> ImageDataset:
    """One image for each name, all of different pixels unless `first_pixel` makes them meet."""
    pixels = np.zeros((len(names), 8, 8, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(first_pixel, first_pixel + len(names))
    return ImageDataset(
        pixels, np.zeros(len(names)), names, ("a", "b"), groups, group_column=column
    )


def test_every_pair_is_compared_in_three_ways():
    sets = {
        "train": images(["1.png", "2.png", "3.png"], ["p1", "p1", "p2"]),
        "val": images(["2.jpg", "4.png"], ["p3", "p4"], first_pixel=10),
        "test": images(["5.png", "6.png"], ["p2", "p4"], first_pixel=2),
    }
    val, train_test, val_test = compare_all(members_of(sets))
    # 2.png and 2.jpg are one name; pixels 2 stand in train and in test under other names.
    assert val[:5] == ("train", "val", (1, 2), (0, 2), (0, 2))
    assert train_test[:5] == ("train", "test", (0, 2), (1, 2), (1, 2))
    assert val_test[:5] == ("val", "test", (0, 2), (0, 2), (1, 2))
    assert train_test.images == 1 and val_test.images == 0 and val_test.found
    assert train_test.words() == (
        "1 of 2 test patients were in training; 0 of 2 test images by name, 1 by their pixels"
    )
    line = warning_line([val, train_test, val_test])
    assert line.startswith("warning: the sets overlap: ") and line.count(" | ") == 2
    assert "\n" not in line


def test_disjoint_sets_give_no_warning():
    sets = {
        "train": images(["1"], ["p1"], "lesion_id"),
        "test": images(["2"], ["p2"], "lesion_id", 5),
    }
    (overlap,) = compare_all(members_of(sets))
    assert not overlap.found and warning_line([overlap]) is None
    assert overlap.words().startswith("0 of 1 test lesions were in training")


@pytest.mark.parametrize(
    ("left", "right"),
    [("3.0", "3"), ("3.000", "3"), (" 3", "3"), ("caf\u00e9", "cafe\u0301"), ("P.0", "P.0")],
)
def test_one_patient_written_in_two_ways(left, right):
    assert plain_group(left) == plain_group(right)


@pytest.mark.parametrize(("left", "right"), [("3.5", "3"), ("03", "3"), ("P3.0", "P3"), ("a", "A")])
def test_two_patients_stay_two(left, right):
    assert plain_group(left) != plain_group(right)


def test_unknown_patients_are_said_to_be_unknown():
    known, unknown = images(["1"], ["p"]), images(["2"], first_pixel=5)
    (overlap,) = compare_all(members_of({"train": known, "test": unknown}))
    assert overlap.groups is None and not overlap.found
    assert overlap.words().startswith("whether test patients were in training is not known")


def test_a_run_remembers_what_it_saw_without_an_id(tmp_path):
    train = images(["secret_name_1.png", "b.png"], ["patient_77", "patient_8"])
    save_seen(tmp_path, members_of({"train": train, "val": None, "test": train}))
    stored = (tmp_path / "seen.json").read_text()
    assert "secret" not in stored and "patient_77" not in stored and '"test"' not in stored
    tested = images(["b.png", "c.png"], ["patient_9", "patient_77"], first_pixel=1)
    (overlap,) = overlaps_with_run(tmp_path, tested)
    assert overlap[:5] == ("train", "test", (1, 2), (1, 2), (1, 2))
    assert overlaps_with_run(tmp_path / "other", tested) == []


def test_a_list_without_pixels_is_compared_as_far_as_it_goes():
    listed = members(Listed(["1.png"], ["p1"], "PatientID"))
    (overlap,) = compare_all({"train": members(images(["1.png"], ["p1"])), "test": listed})
    assert overlap.pixels is None and overlap.names == (1, 1) and overlap.groups == (1, 1)
    assert overlap.words().endswith("1 of 1 test images by name")


def test_a_table_says_what_the_sets_of_its_runs_share(tmp_path):
    facts = {"overlap of the sets": "0 of 76 test patients were in training"}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"facts": facts}))
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "without"]
    assert overlaps_of(folders) == ["Overlap of the sets: 0 of 76 test patients were in training."]
