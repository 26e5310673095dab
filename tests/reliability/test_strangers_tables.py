"""MedMNIST files and logs of strangers: no number in them decides how much is done."""

import time

import numpy as np
import pytest

from dataloaders.medmnist import read_class_names
from utils.errors import UserError
from utils.tables.log_lines import RECORD
from utils.tables.log_reader import parse_namespace


def medmnist(path, label: int = 1, side: int = 4, count: int = 3):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((count, side, side), np.uint8)
        arrays[f"{split}_labels"] = np.full((count, 1), label, np.int64)
    np.savez_compressed(path, **arrays)
    return path


def test_a_label_does_not_decide_how_many_classes_there_are(tmp_path):
    assert read_class_names(medmnist(tmp_path / "few.npz")) == ["class_0", "class_1"]
    with pytest.raises(UserError, match="have the value 100000000: more than 1000 classes"):
        read_class_names(medmnist(tmp_path / "many.npz", 10**8))


def test_a_small_file_that_claims_much_is_refused(tmp_path):
    with pytest.raises(UserError, match="train_images claims 75000.* bytes in "):
        read_class_names(medmnist(tmp_path / "bomb.npz", side=5000))


def test_first_lines_that_never_close_are_read_in_one_pass():
    text = "Namespace(" * 30_000
    started = time.process_time()
    for start in range(0, len(text), len("Namespace(")):
        parse_namespace(text, start)
    assert time.process_time() - started < 5  # a scan to the end from each would take minutes


def test_a_value_that_python_cannot_read_stays_text():
    deep = "[" * 10_000 + "]" * 10_000
    assert parse_namespace(f"Namespace(a={deep}, b=2)")[0]["b"] == 2
    huge = "9" * 5000
    assert parse_namespace(f"Namespace(a={huge}, b=2)")[0] == {"a": huge, "b": 2}


def test_numbers_of_thousands_of_digits_are_no_records():
    for words in ("Begin: com_round = ", "Training Data Size: ", "Supervised Client: "):
        assert RECORD.search(words + "9" * 5000) is None
        assert RECORD.search(words + "17") is not None
