"""Three sets from one CSV: disjoint patients, kept proportions; and the command for it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from dataloaders.partition import (
    split_table,
)
from dataloaders.split import (
    shared_values,
)
from dataloaders.table import ImageTable, read_table
from tests.helpers import PROJECT
from tests.helpers.image_tables import CLASSES, groups_shared, is_partition, make_table
from utils.errors import UserError


def write_csv(path: Path, table: ImageTable, extra: str = "StudyInstanceUID") -> Path:
    """A CSV with a quoted cell, a float and spaces: text that a rewrite would change."""
    lines = [",".join(["ImageID", "PatientID", extra, *table.class_names])]
    for row, name in enumerate(table.names):
        labels = [" 1" if c == table.labels[row] else "0.0" for c in range(3)]
        lines.append(",".join([name, table.groups[row], f'"{row % 2},0"', *labels]))
    path.write_text("\n".join(lines) + "\n")
    return path


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
