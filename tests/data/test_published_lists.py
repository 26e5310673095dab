"""`--split` on the lists that other studies publish: three CSVs and train_clients.json."""

import json
from pathlib import Path

import pytest

from dataloaders.federated import deal_clients
from dataloaders.split import load_published
from dataloaders.table import read_table
from options import args_parser
from tests.helpers import PROJECT
from utils.errors import UserError

PUBLISHED = PROJECT.parent / "shared" / "data" / "published_splits"


def write_lists(folder: Path, clients: dict[str, list[int]], labels: str = "01012") -> Path:
    """A folder of lists; training image i is of the class `labels[i]`, "-" of none."""
    folder.mkdir()
    for file in ("train.csv", "validation.csv", "test.csv"):
        cells = (",".join("01"[label == str(c)] for c in range(3)) for label in labels)
        rows = [f"{file[:2]}{row},{cell}" for row, cell in enumerate(cells)]
        (folder / file).write_text("\n".join(["ImageID,a,b,c", *rows]) + "\n")
    (folder / "train_clients.json").write_text(json.dumps(clients))
    return folder


def dealt(folder: Path, *flags: str):
    args = args_parser(["--root_path", str(folder), "--split", str(folder), *flags])
    assert args.csv_file_val == folder / "validation.csv"
    return deal_clients(args, read_table(args.csv_file_train, "U-Ones", args.multi_label))


def test_rows_of_the_training_list_become_clients_and_the_servers_go_to_nobody(tmp_path):
    lists = write_lists(tmp_path / "field", {"1": [4, 0], "0": [1, 2], "server": [3]})
    found = dealt(lists, "--num_labeled", "1")
    assert [rows.tolist() for rows in found.clients] == [[1, 2], [0, 4]]
    assert found.labelled == (0,)
    assert found.how == "the lists of field, 1 images of their server left out"


def test_rows_count_those_that_are_left_out(tmp_path):
    lists = write_lists(tmp_path / "field", {"0": [0, 1, 2], "1": [3, 4]}, "0-012")
    found = dealt(lists, "--num_labeled", "1", "--multi_label", "drop")
    # The second row has no class; its successors are rows 1, 2, 3 of those that are left.
    assert [rows.tolist() for rows in found.clients] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("clients", "words"),
    [
        ({"0": [0, 1], "1": [1, 2]}, r"row 1 \(line 3 of .*train.csv\) stands in the lists of 0"),
        ({"0": [0, 1], "1": [5]}, "client 1 holds row 5, and .*train.csv has rows 0 to 4"),
        ({"0": [0, 1], "2": [2]}, "the clients are 0, 2; number them from 0"),
        ({"server": [0]}, "number them from 0"),
        ({"0": [-1]}, "not the field's lists"),
        ([[0]], "not the field's lists"),
    ],
)
def test_other_lists_are_one_line(tmp_path, clients, words):
    lists = write_lists(tmp_path / "field", clients)
    with pytest.raises(UserError, match=words):
        dealt(lists, "--num_labeled", "1")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published lists beside this checkout")
@pytest.mark.parametrize(
    ("name", "images", "clients"), [("skin_split", 6942, 754), ("brain_split", 17428, 1931)]
)
def test_the_published_lists_are_read(name, images, clients):
    folder = PUBLISHED / name
    table = read_table(folder / "train.csv", "U-Ones", "refuse")
    found, how = load_published(folder / "train_clients.json", table)
    assert len(found) == 10 and len(found[0]) == clients
    assert sum(map(len, found)) == images and "of their server left out" in how


def test_lists_say_who_holds_what_and_a_fraction_may_say_which_labels(tmp_path):
    held = {"0": [0, 2, 4, 6], "1": [1, 3, 5, 7]}
    lists = write_lists(tmp_path / "field", held, labels="00000000")
    split = dealt(lists, "--labeled_fraction", "0.5")
    assert [len(rows) for rows in split.clients] == [2, 2, 2, 2] and split.labelled == (0, 1)
    with pytest.raises(UserError, match="--partition: --split says who holds what"):
        dealt(lists, "--partition", "iid")
