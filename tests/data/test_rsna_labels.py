"""RSNA's long label file: one row per image, or refused by line or image."""

import numpy as np
import pytest

from dataloaders.prepare.rsna import SUBTYPES, read_rsna_labels
from tests.helpers.dicom_files import long_label_rows
from tests.helpers.prepare_command import write_labels
from utils.errors import UserError

IMAGES = {"ID_b": (0, 1, 0, 0, 0), "ID_a": (0, 0, 0, 0, 0), "ID_c": (1, 0, 0, 0, 1)}


def test_long_labels_become_one_row_per_image(tmp_path):
    lines = long_label_rows(IMAGES)
    labels = read_rsna_labels(write_labels(tmp_path / "a.csv", lines + lines[:3] + lines[:1]))
    assert (labels.rows, labels.duplicates) == (22, 4)
    assert list(labels.table.index) == ["ID_b", "ID_a", "ID_c"]
    assert tuple(labels.table.columns) == SUBTYPES
    assert labels.table.to_numpy().tolist() == [list(row) for row in IMAGES.values()]


def test_rows_in_any_order_and_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("dataloaders.prepare.rsna.ROWS_AT_ONCE", 5)
    lines = long_label_rows(IMAGES)
    np.random.default_rng(0).shuffle(lines)
    table = read_rsna_labels(write_labels(tmp_path / "a.csv", lines)).table
    assert table.loc[list(IMAGES)].to_numpy().tolist() == [list(row) for row in IMAGES.values()]


def test_only_the_last_underscore_splits_an_id(tmp_path):
    lines = long_label_rows({"stage_1_ID_x": (0, 0, 1, 0, 0)})
    table = read_rsna_labels(write_labels(tmp_path / "a.csv", lines)).table
    assert list(table.index) == ["stage_1_ID_x"]


LINES = long_label_rows(IMAGES)
BAD_LABELS = {
    "conflict": ([*LINES, "ID_a_epidural,1"], "ID_a_epidural is both 0 and 1"),
    "missing subtype": (LINES[:-2] + LINES[-1:], "ID_c_subdural is missing"),
    "missing any": (LINES[:-1], "ID_c_any is missing"),
    "any too low": ([*LINES[:-1], "ID_c_any,0"], "ID_c_any does not agree"),
    "any too high": ([*LINES[:11], "ID_a_any,1", *LINES[12:]], "ID_a_any does not agree"),
    "subtype": ([*LINES, "ID_a_subgaleal,0"], "line 20: ID 'ID_a_subgaleal' is not"),
    "no image": ([*LINES, "_any,0"], "line 20: ID '_any' is not"),
    "no underscore": (["any,0", *LINES], "line 2: ID 'any' is not"),
    "label 2": ([*LINES, "ID_a_any,2"], "line 20: Label '2' is neither 0 nor 1"),
    "label word": ([*LINES, "ID_a_any,yes"], "line 20: Label 'yes' is neither 0 nor 1"),
    "label empty": ([*LINES, "ID_a_any,"], "line 20: Label '' is neither 0 nor 1"),
    "long": ([*LINES, "x" * 5000 + "_any,0"], "line 20: the ID is too long"),
    "empty": ([], "has no rows below its header"),
    "quote": ([*LINES, '"ID_a'], "cannot be read as CSV"),
    "not ASCII": ([*LINES, "ID_ä_any,0"], "cannot be read as CSV"),
}


@pytest.mark.parametrize("fault", BAD_LABELS)
def test_bad_long_labels_are_refused_by_line_or_id(tmp_path, fault):
    lines, message = BAD_LABELS[fault]
    with pytest.raises(UserError) as error:
        read_rsna_labels(write_labels(tmp_path / "a.csv", lines))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_wide_file_has_a_row_per_image(tmp_path):
    header = "ImageID," + ",".join(SUBTYPES)
    rows = ["ID_a.png,0,0,0,0,1", "ID_b,1,0,0,0,0", "ID_b,1,0,0,0,0"]
    found = read_rsna_labels(write_labels(tmp_path / "wide.csv", rows, header))
    assert list(found.table.index) == ["ID_a", "ID_b"] and (found.rows, found.duplicates) == (3, 1)
    assert found.table.loc["ID_a"].tolist() == [0, 0, 0, 0, 1]
    for row, message in (
        ("ID_b,0,0,0,0,0", "ID_b has two rows that contradict"),
        ("ID_c,0,0,2,0,0", "line 5, column intraventricular: '2' is neither 0 nor 1"),
    ):
        with pytest.raises(UserError, match=message):
            read_rsna_labels(write_labels(tmp_path / "wrong.csv", [*rows, row], header))


def test_label_files_that_are_none(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="not a CSV file with the columns ID,Label"):
        read_rsna_labels(tmp_path / "empty.csv")
    with pytest.raises(UserError, match="No such file"):
        read_rsna_labels(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="no columns ID and Label"):
        read_rsna_labels(write_labels(tmp_path / "a.csv", ["1,2"], "x,y"))
