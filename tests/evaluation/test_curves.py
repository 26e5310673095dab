"""TensorBoard's curves: in groups, and matrices as pictures that can be read."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from utils.logger import Curves, curve_tag


def events_of(folder):
    """The events of a TensorBoard file: records of length, checksum, bytes, checksum."""
    (file,) = folder.iterdir()
    content, events = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        record = content[12 : 12 + size]
        assert int.from_bytes(content[12 + size : 16 + size], "little") == masked_crc32c(record)
        events.append(event_pb2.Event.FromString(record))
        content = content[16 + size :]
    return events


@pytest.mark.parametrize(
    ("column", "tag"),
    [
        ("test_auroc", "test/auroc"),
        ("val_balanced_accuracy", "val/balanced_accuracy"),
        ("loss", "loss/mean"),
        ("supervised_loss", "loss/supervised"),
        ("seconds_round", "time/round"),
        ("clients_unlabeled", "clients/unlabeled"),
        ("learning_rate_labeled", "learning_rate/labeled"),
        ("reliable_share", "method/reliable_share"),
    ],
)
def test_a_column_has_its_group(column, tag):
    assert curve_tag(column) == tag


def test_curves_and_matrices_are_in_the_file(tmp_path):
    curves = Curves(tmp_path / "tb", 3)
    curves.scalars({"round": 3, "phase": "all", "test_auroc": 0.75, "loss": float("nan")}, 3)
    matrix = np.array([[0.9, 0.1], [np.nan, np.nan]])
    curves.matrix("labeled_mean", matrix, ["bleed", "none"], 3)
    curves.close()
    values = [value for event in events_of(tmp_path / "tb") for value in event.summary.value]
    assert [value.tag for value in values] == ["test/auroc", "matrices/labeled_mean"]
    assert values[0].simple_value == 0.75
    picture = np.asarray(Image.open(io.BytesIO(values[1].image.encoded_image_string)))
    assert picture.shape[0] > 200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
