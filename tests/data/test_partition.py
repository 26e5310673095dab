"""Who gets what: disjoint patients, kept proportions, clients of every kind, split.json."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from dataloaders.partition import (
    labelled_clients,
    labelled_fraction,
    split,
    split_by_column,
    split_by_site,
    split_dirichlet,
    split_table,
)
from dataloaders.split import (
    Split,
    absent_class_warnings,
    class_client_table,
    class_set_table,
    load_split,
    missing_class_warnings,
    save_split,
    shared_values,
)
from dataloaders.table import ImageTable, read_table
from tests.helpers import PROJECT
from utils.errors import UserError

CLASSES = ("epidural", "subdural", "other")


def make_table(images: int, patients: int, seed: int = 0) -> ImageTable:
    """Patients with several slices each that lean to one class, as head CT does."""
    generator = np.random.default_rng(seed)
    patient = np.sort(generator.integers(0, patients, images))
    leaning = generator.choice(3, patients, p=(0.1, 0.3, 0.6))
    labels = np.where(
        generator.random(images) < 0.7, leaning[patient], generator.integers(0, 3, images)
    )
    return ImageTable(
        source=Path("labels.csv"),
        names=[f"{row:05d}.png" for row in range(images)],
        labels=labels,
        class_names=CLASSES,
        groups=[f"p{number}" for number in patient],
        sites=[f"s{number % 4}" for number in patient],
        clients=patient % 3,
        line_numbers=np.arange(2, images + 2),
        dropped=0,
    )


def write_csv(path: Path, table: ImageTable, extra: str = "StudyInstanceUID") -> Path:
    """A CSV with a quoted cell, a float and spaces: text that a rewrite would change."""
    lines = [",".join(["ImageID", "PatientID", extra, *table.class_names])]
    for row, name in enumerate(table.names):
        labels = [" 1" if c == table.labels[row] else "0.0" for c in range(3)]
        lines.append(",".join([name, table.groups[row], f'"{row % 2},0"', *labels]))
    path.write_text("\n".join(lines) + "\n")
    return path


def is_partition(parts: list[np.ndarray], length: int) -> bool:
    together = np.concatenate(parts)
    is_sorted = all((np.diff(part) > 0).all() for part in parts)
    return is_sorted and np.array_equal(np.sort(together), np.arange(length))


def groups_shared(table: ImageTable, parts) -> int:
    return shared_values([table.select(rows).groups for rows in parts])[0]


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_together_and_classes_keep_their_share(seed):
    table = make_table(3000, 400, seed)
    parts = split_table(table, seed=seed)
    assert is_partition(parts, 3000)
    assert groups_shared(table, parts) == 0
    for rows, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(rows) / 3000 - share) < 0.01
        counts = table.select(rows).class_counts()
        assert np.allclose(counts / table.class_counts(), share, atol=0.03)


def test_equal_thirds_are_as_even_as_those_of_scikit_learn():
    table = make_table(1200, 150)

    def unevenness(parts):
        counts = np.array([table.select(rows).class_counts() for rows in parts])
        return (counts / table.class_counts()).std(axis=0).max()

    splitter = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    reference = [
        rows for _, rows in splitter.split(np.zeros(1200), table.labels, groups=table.groups)
    ]
    assert unevenness(split_table(table, (1 / 3, 1 / 3, 1 / 3))) <= unevenness(reference) + 0.005


def test_by_image_the_sizes_are_exact():
    table = make_table(1000, 120)
    parts = split_table(table, (0.7, 0.1, 0.2), by="image")
    assert [len(rows) for rows in parts] == [700, 100, 200] and is_partition(parts, 1000)
    assert groups_shared(table, parts) > 0
    for rows, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert np.abs(table.select(rows).class_counts() - share * table.class_counts()).max() < 2


def test_counts_leave_the_rest_out():
    table = make_table(1000, 120)
    parts = split_table(table, (300, 100, 50), by="image")
    assert [len(rows) for rows in parts] == [300, 100, 50]
    assert len(np.unique(np.concatenate(parts))) == 450
    parts = split_table(table, (300, 100, 50))
    assert np.abs(np.array([len(rows) for rows in parts]) - (300, 100, 50)).max() <= 5
    assert groups_shared(table, parts) == 0


@pytest.mark.parametrize("patients", [3, 4, 5, 8])
def test_few_patients_leave_no_set_empty(patients):
    labels = np.repeat(np.arange(patients) % 3, 10)
    table = make_table(10 * patients, patients)
    table = ImageTable(
        **{**vars(table), "labels": labels, "groups": [f"p{n // 10}" for n in range(len(labels))]}
    )
    parts = split_table(table)
    assert min(len(rows) for rows in parts) >= 10
    assert is_partition(parts, len(table)) and groups_shared(table, parts) == 0


def test_the_seed_decides():
    table = make_table(600, 80)
    first, again, other = (split_table(table, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        (0.7, 0.1, 0.1),
        (0.7, 0.3, 0),
        (700, 200, 200),
        (-1, 1, 1),
        (float("nan"), 0.5, 0.5),
        (0.9999, 0.00005, 0.00005),
        (10.5, 10, 10),
    ],
)
def test_sizes_that_cannot_be_met(sizes):
    with pytest.raises(UserError, match="--sizes"):
        split_table(make_table(1000, 100), sizes)


def test_two_patients_cannot_fill_three_sets():
    with pytest.raises(UserError, match="only 2 patients"):
        split_table(make_table(100, 2))


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


def partition_command(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dataloaders.partition", *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_three_files_with_the_cells_as_they_were(tmp_path):
    table = make_table(400, 60)
    source = write_csv(tmp_path / "labels.csv", table)
    text = source.read_text()
    source.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    result = partition_command(source, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "shared between the sets: 0 of 60" in result.stdout
    written = []
    for name in ("training", "validation", "testing"):
        lines = (tmp_path / "out" / f"{name}.csv").read_text().splitlines()
        assert lines[0] == text.splitlines()[0]
        written += lines[1:]
        part = read_table(tmp_path / "out" / f"{name}.csv")
        assert re.search(rf"{name}.csv: {len(part)} images", result.stdout)
    assert sorted(written) == sorted(text.splitlines()[1:])
    counts = [re.search(rf"^{name}.* (\d+)$", result.stdout, re.M)[1] for name in CLASSES]
    assert list(map(int, counts)) == table.class_counts().tolist()


def test_the_command_states_leakage_and_limits(tmp_path):
    source = write_csv(tmp_path / "labels.csv", make_table(400, 40))
    result = partition_command(
        source, "--out", tmp_path, "--by", "image", "--limit", 200, "--sizes", 100, 50, 50
    )
    assert result.returncode == 0, result.stderr
    parts = [read_table(tmp_path / f"{name}.csv") for name in ("training", "validation", "testing")]
    assert [len(part) for part in parts] == [100, 50, 50]
    shared, total = shared_values([part.groups for part in parts])
    assert shared > 0 and f"LEAKAGE: {shared} of {total}" in result.stdout


def test_the_command_groups_by_a_named_column(tmp_path):
    source = write_csv(tmp_path / "labels.csv", make_table(60, 20), extra='"ward, floor"')
    result = partition_command(source, "--out", tmp_path / "out", "--group", "ward, floor")
    assert result.returncode == 2 and "only 2 patients" in result.stderr
    result = partition_command(source, "--out", tmp_path / "out")
    assert result.returncode == 2 and "column 'ward, floor'" in result.stderr


def test_what_was_grouped_by_a_named_column_is_what_training_reads(tmp_path):
    rows = [f"{n}.png;case {n // 2};{n % 2};{1 - n % 2}" for n in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(["ImageID;Case;a;b", *rows]) + "\n")
    out = tmp_path / "out"
    result = partition_command(tmp_path / "labels.csv", "--out", out, "--group", "Case")
    assert result.returncode == 0 and "column Case is called PatientID" in result.stdout
    table = read_table(out / "training.csv")
    assert table.class_names == ("a", "b") and table.group_column == "PatientID"
    assert table.groups[0].startswith("case ")
    rows = [f"{n}.png,case {n // 2},lesion {n},{n % 2},{1 - n % 2}" for n in range(60)]
    (tmp_path / "both.csv").write_text("\n".join(["ImageID,Case,lesion_id,a,b", *rows]) + "\n")
    refused = partition_command(tmp_path / "both.csv", "--out", out, "--group", "Case")
    assert refused.returncode == 2 and "lesion_id" in refused.stderr


def test_the_command_is_deterministic_and_drops_only_when_asked(tmp_path):
    source = tmp_path / "labels.csv"
    rows = "".join(f"{n}.png,{n % 2},{1 - n % 2}\n" for n in range(50))
    source.write_text("ImageID,a,b\n" + rows + "both.png,1,1\nnone.png,0,0\n")
    refused = partition_command(source, "--out", tmp_path / "none")
    assert refused.returncode == 2 and "line 52" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "none").exists()
    for folder in ("one", "two"):
        result = partition_command(source, "--out", tmp_path / folder, "--single_label")
        assert result.returncode == 0, result.stderr
        assert "50 images, 2 rows left out" in result.stdout
        assert "unknown" in result.stdout
    for name in ("training.csv", "validation.csv", "testing.csv"):
        text = (tmp_path / "one" / name).read_text()
        assert text == (tmp_path / "two" / name).read_text()
        assert "both.png" not in text and "none.png" not in text


def test_the_command_refuses_in_one_line(tmp_path):
    source = write_csv(tmp_path / "training.csv", make_table(60, 20))
    long_form = tmp_path / "long.csv"
    long_form.write_text("ID,Label\nID_00001_any,0\n")
    (tmp_path / "file").write_text("")
    for arguments, expected in (
        ((source, "--out", tmp_path), "overwrite the input"),
        ((source, "--out", tmp_path / "file"), "cannot write"),
        ((source, "--out", tmp_path / "o", "--limit", 0), "--limit 0"),
        ((source, "--out", tmp_path / "o", "--seed", -1), "--seed -1"),
        ((source, "--out", tmp_path / "o", "--sizes", 1, 2, "nan"), "--sizes"),
        ((long_form, "--out", tmp_path / "o"), "dataloaders.prepare rsna"),
    ):
        result = partition_command(*arguments)
        assert result.returncode == 2, result.stdout
        assert expected in result.stderr and result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ") and not (tmp_path / "o").exists()
