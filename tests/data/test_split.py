"""Who holds what: equal parts, Dirichlet, sites, labelled clients, split files."""

import json

import numpy as np
import pytest

from dataloaders.partition import (
    labelled_clients,
    labelled_fraction,
    split,
    split_by_column,
    split_by_site,
    split_dirichlet,
)
from dataloaders.split import (
    Split,
    absent_class_warnings,
    class_client_table,
    class_set_table,
    load_split,
    missing_class_warnings,
    save_split,
)
from tests.helpers.image_tables import CLASSES, is_partition, make_table
from utils.errors import UserError


@pytest.mark.parametrize("length, num_users", [(100, 10), (103, 10), (7, 7), (5, 1)])
def test_iid_parts_are_equal(length, num_users):
    parts = split(range(length), num_users, seed=3)
    assert is_partition(parts, length)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    again = split(length, num_users, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_more_clients_than_images():
    for make in (
        lambda: split(9, 10),
        lambda: split(9, 0),
        lambda: split_dirichlet(np.zeros(19, int), 10, 0.5),
        lambda: split_by_site(["a", "b"], 3),
    ):
        with pytest.raises(UserError, match="--num_users"):
            make()


@pytest.mark.parametrize("alpha", [1e-9, 0.05, 0.5, 5.0, 1e9])
def test_dirichlet_parts_cover_everything_and_none_is_empty(alpha):
    labels = make_table(400, 50).labels
    for seed in range(10):
        parts = split_dirichlet(labels, 10, alpha, seed)
        assert is_partition(parts, 400)
        assert min(len(part) for part in parts) >= 2
    tight = split_dirichlet(labels[:20], 10, alpha)
    assert [len(part) for part in tight] == [2] * 10


def test_alpha_decides_how_skewed_the_clients_are():
    labels = np.repeat([0, 1, 2, 3], 1000)

    def spread(alpha):
        parts = split_dirichlet(labels, 10, alpha, seed=0)
        return np.mean([np.bincount(labels[part], minlength=4).std() for part in parts])

    even = split_dirichlet(labels, 10, 1e7, seed=0)
    assert all(np.abs(np.bincount(labels[part]) - 100).max() <= 2 for part in even)
    assert spread(0.1) > 2 * spread(2.0) > 4 * spread(100.0)


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    """A share of Dirichlet(alpha, ..., alpha) over K has variance (K-1) / (K^2 (K alpha + 1))."""
    labels = np.zeros(20_000, dtype=np.int64)
    shares = [
        [len(part) / 20_000 for part in split_dirichlet(labels, 5, 1.0, seed)]
        for seed in range(300)
    ]
    assert np.var(shares) == pytest.approx(4 / (25 * 6), rel=0.1)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf"), 1e308])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match="alpha"):
        split_dirichlet(np.zeros(100, int), 10, alpha)


def test_sites_become_clients_and_stay_whole():
    sites = ["b"] * 5 + ["a"] * 9 + ["c"] * 2 + ["d"] * 3
    assert [len(part) for part in split_by_site(sites, 4)] == [9, 5, 3, 2]
    parts = split_by_site(sites, 2)
    assert is_partition(parts, 19)
    assert [sorted({sites[row] for row in part}) for part in parts] == [["a"], ["b", "c", "d"]]
    with pytest.raises(UserError, match="no site column"):
        split_by_site(None, 2)


def test_the_column_client_is_obeyed():
    parts = split_by_column(np.array([2, 0, 1, 0]), 3)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0]]
    for clients, num_users in (([0, 1, 3], 3), ([0, 1], 3), ([0, 1, 2], 2)):
        with pytest.raises(UserError, match="column client must hold"):
            split_by_column(np.array(clients), num_users)
    with pytest.raises(UserError, match="no column client"):
        split_by_column(None, 2)


def test_which_clients_are_labelled():
    assert labelled_clients(10, 2) == (0, 1)
    assert labelled_clients(10, ids=[7, 3]) == (3, 7)
    for arguments in ((10, 0), (10, 11), (10, None), (10, None, []), (10, None, [10])):
        with pytest.raises(UserError):
            labelled_clients(*arguments)
    for arguments in ((10, None, [1, 1]), (10, None, [-1]), (10, 2, [1])):
        with pytest.raises(UserError):
            labelled_clients(*arguments)


def test_a_labelled_fraction_of_each_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 1 + [0] * 50)
    mine = np.arange(31)
    labelled, rest = labelled_fraction(mine, labels, 0.2, seed=1)
    assert np.bincount(labels[labelled]).tolist() == [4, 2, 1]
    assert is_partition([labelled, rest], 31)
    everything, nothing = labelled_fraction(mine, labels, 1.0)
    assert np.array_equal(everything, mine) and len(nothing) == 0
    for fraction in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="fraction"):
            labelled_fraction(mine, labels, fraction)


def test_a_set_without_a_class_is_told():
    labels = {"train": np.array([0, 1, 2]), "test": np.array([0, 0])}
    (line,) = absent_class_warnings(["a", "b", "c"], labels)
    assert line == "warning: test has no image of b, c"


def test_clients_made_of_sites_are_named_by_them():
    labels, clients = np.array([0, 1, 1]), [np.array([0, 1]), np.array([2])]
    table = class_client_table(labels, clients, ["a", "b"], (0,), [["north", "east"], ["south"]])
    assert [line.split()[-1] for line in table.splitlines()] == ["sites", "east", "south", "3"]
    assert "north, east" in table


def test_split_file_gives_the_same_clients_back(tmp_path):
    table = make_table(90, 12)
    clients = split_dirichlet(table.labels, 5, 0.5, seed=4)
    sites = [["north"], ["south", "east"], ["west"], ["a"], ["b"]]
    dealt = Split(clients, (0, 3), 4, "dirichlet alpha 0.5", sites)
    save_split(tmp_path / "split.json", table, dealt)
    again = load_split(tmp_path / "split.json", table)
    assert again.sites == sites
    assert all(np.array_equal(a, b) for a, b in zip(clients, again.clients, strict=True))
    assert (again.labelled, again.seed, again.how) == ((0, 3), 4, "dirichlet alpha 0.5")
    assert str(tmp_path) not in (tmp_path / "split.json").read_text()
    order = np.random.default_rng(0).permutation(90)
    shuffled = table.select(order)
    for rows, expected in zip(
        load_split(tmp_path / "split.json", shuffled).clients, clients, strict=True
    ):
        assert {shuffled.names[row] for row in rows} == {table.names[row] for row in expected}


def test_split_files_that_do_not_fit_are_refused(tmp_path):
    table = make_table(30, 6)
    path = tmp_path / "split.json"
    save_split(path, table, Split(split(30, 3), (0,), 1, "iid"))
    good = json.loads(path.read_text())

    def refusal(**changes) -> str:
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(UserError) as caught:
            load_split(path, table)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'gone.png'" in refusal(clients=[["gone.png"], ["00001.png"]])
    assert "'00001.png'" in refusal(clients=[["00001.png"], ["00001.png"]])
    assert "holds no image" in refusal(clients=[["00001.png"], []])
    assert "labelled_clients" in refusal(labelled_clients=[3])
    assert "labelled_clients" in refusal(labelled_clients=[])
    assert "labelled_clients" in refusal(labelled_clients=["0"])
    assert "clients" in refusal(clients={"0": []})
    assert "clients" in refusal(clients=[[1, 2]])
    assert "seed" in refusal(seed="x")
    assert "format is 7" in refusal(format=7)
    for content in ("", "[]", "null", "{", "[" * 100_000, "\ufeff{}"):
        path.write_text(content)
        with pytest.raises(UserError, match="not a split.json"):
            load_split(path, table)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a split.json"):
        load_split(path, table)
    with pytest.raises(UserError, match="no such file"):
        load_split(tmp_path / "nothing.json", table)


def test_tables_of_counts():
    labels = np.array([0, 0, 1, 2, 2, 2])
    clients = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    rows = [line.split() for line in class_client_table(labels, clients, CLASSES, (0,)).split("\n")]
    assert rows[0] == ["client", "labels", *CLASSES, "all"]
    assert rows[1] == ["0", "yes", "2", "1", "0", "3"]
    assert rows[2] == ["1", "no", "0", "0", "3", "3"]
    assert rows[3] == ["all", "1", "yes", "2", "1", "3", "6"]
    lines = class_set_table(CLASSES, {"train": labels, "test": labels[:1]}).split("\n")
    assert [line.split() for line in lines[1:]] == [
        ["epidural", "2", "1", "3"],
        ["subdural", "1", "0", "1"],
        ["other", "3", "0", "3"],
        ["all", "6", "1", "7"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_labelled_client_without_a_class_is_warned_of():
    labels = np.array([0, 0, 1, 2, 2, 2])
    clients = [np.array([0, 1, 2]), np.array([3, 4, 5])]
    (line,) = missing_class_warnings(labels, clients, CLASSES, (0,))
    assert "client 0" in line and "no image of other:" in line
    assert "2 epidural, 1 subdural, 0 other" in line
    assert len(missing_class_warnings(labels, clients, CLASSES, (0, 1))) == 2
    assert missing_class_warnings(labels, [np.arange(6)], CLASSES, (0,)) == []
