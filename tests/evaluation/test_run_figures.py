"""Figures from the files of runs: read, drawn again byte for byte, and runs compared."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.helpers import PROJECT
from tests.helpers.drawn_runs import make_run, size_of_png, texts
from utils.errors import UserError
from utils.logger import GrowingTable
from utils.plots.runs import (
    compare_runs,
    last_value,
    read_arguments,
    read_environment,
    read_matrices,
    read_metrics,
    rebuild_figures,
)
from utils.plots.style import label, matrix_triple


def test_matrix_triple_by_hand():
    _, _, difference = matrix_triple({"labeled_mean": [[0.2]], "unlabeled_mean": [[0.5]]})
    np.testing.assert_allclose(difference, [[0.3]])


def test_matrices_are_read_back_exactly(tmp_path):
    values = np.random.default_rng(0).random((2, 2))
    rows = [f"3,labeled_mean,{r},{c},{values[r, c]!r}" for r in range(2) for c in range(2)]
    rows = [row.replace("np.float64(", "").replace(")", "") for row in rows]
    path = tmp_path / "matrices.csv"
    path.write_text("\n".join(["round,source,row,column,value", *rows, "4,labeled_mean,0,0,", ""]))
    rounds, class_names = read_matrices(path)
    assert class_names == ["0", "1"]
    np.testing.assert_array_equal(rounds[3]["labeled_mean"], values)
    assert np.isnan(rounds[4]["labeled_mean"]).all()


def test_of_a_cell_written_twice_the_later_counts_and_sources_stay_apart(tmp_path):
    rows = ["2,a,x,x,5", "1,b,x,y,.5", "1,a,x,x,.1", "1,a,y,x,.2", "1,a,x,x,.3", "1,a,y,z,9"]
    path = tmp_path / "matrices.csv"
    path.write_text("\n".join(["round,source,row,column,value", *rows, ""]))
    rounds, class_names = read_matrices(path)
    assert class_names == ["x", "y"] and list(rounds) == [1, 2] and list(rounds[1]) == ["a", "b"]
    nan = np.nan
    np.testing.assert_array_equal(rounds[1]["a"], [[0.3, nan], [0.2, nan]])
    np.testing.assert_array_equal(rounds[1]["b"], [[nan, 0.5], [nan, nan]])
    np.testing.assert_array_equal(rounds[2]["a"], [[5, nan], [nan, nan]])


def test_a_growing_table_makes_each_items_rows_once(tmp_path):
    made = []

    def rows(item: int) -> list[dict]:
        made.append(item)
        return [{"round": item, "value": cell} for cell in (0.1 + item, None, "=evil()")]

    path = tmp_path / "grown.csv"
    table = GrowingTable(path, ("round", "value"), rows)
    table.write([])
    assert path.read_text() == "round,value\n"
    for count in (1, 2, 5):
        table.write(range(count))
        lines = [
            f"{item},{cell}\n" for item in range(count) for cell in (item + 0.1, "", "'=evil()")
        ]
        assert path.read_text() == "round,value\n" + "".join(lines)
    assert made == [0, 1, 2, 3, 4]


def test_a_growing_table_takes_columns_that_come_later(tmp_path):
    """Where the row that brings them has them; what was written before is written anew."""
    path, rows = tmp_path / "grown.csv", [{"round": 0, "loss": 0.5}]
    table = GrowingTable(path)
    table.write(rows)
    rows.append({"round": 1, "test_auroc": 0.75, "loss": 0.25})
    table.write(rows)
    assert path.read_text() == "round,test_auroc,loss\n0,,0.5\n1,0.75,0.25\n"
    table.write([*rows, {"round": 2}])
    assert path.read_text() == "round,test_auroc,loss\n0,,0.5\n1,0.75,0.25\n2,,\n"


def test_the_later_row_of_a_round_counts(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,phase,loss\n1,all,5\n0,labeled,7\n1,all,6\n")
    metrics = read_metrics(path)
    assert (list(metrics["round"]), list(metrics["loss"])) == ([0, 1], [7.0, 6.0])
    assert last_value(metrics, "loss") == 6 and np.isnan(last_value(metrics, "test_auroc"))


@pytest.mark.parametrize("content", [None, "", "loss\n1\n", "round,loss\n", "round,loss\n0,high\n"])
def test_a_bad_metrics_file_is_named(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="metrics.csv: "):
        read_metrics(path)


def test_figures_rebuild_byte_for_byte_and_take_the_last_round_with_both(tmp_path, drawn):
    run = make_run(tmp_path / "a")
    rebuild_figures(run)
    assert "0.33" in texts(drawn["relation.png"].axes[0])
    # The last round (4) lacks the unlabelled matrix, so round 3 is shown.
    expected = read_matrices(run / "matrices.csv")[0][3]["unlabeled_mean"]
    assert texts(drawn["relation.png"].axes[1]) == [f"{cell:.2f}" for cell in expected.ravel()]


def test_runs_are_grouped_by_what_differs(tmp_path, drawn):
    runs = [
        make_run(tmp_path / "a1", seed=1, method="fedirm", gpu="0"),
        make_run(tmp_path / "a2", seed=2, method="fedirm", gpu="1"),
        make_run(tmp_path / "b1", seed=1, method="fedavg", gpu="0"),
    ]
    compare_runs(runs, tmp_path / "out")
    legend = drawn["curves.png"].legends[0].get_texts()
    assert [text.get_text() for text in legend] == [
        "method=fedirm (n = 2)",
        "method=fedavg (n = 1)",
    ]
    last = [100 * pd.read_csv(run / "metrics.csv")["test_auroc"].iloc[-1] for run in runs]
    bars = drawn["bars.png"].axes[0].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [np.mean(last[:2]), last[2]])


def test_a_group_too_long_to_tell_has_its_first_runs_name(tmp_path, drawn):
    long = {f"flag_number_{index}": "a value" for index in range(9)}
    runs = [make_run(tmp_path / f"a{seed}", seed=seed, **long) for seed in (1, 2)]
    runs.append(make_run(tmp_path / "b", seed=1, **dict.fromkeys(long, "another value")))
    compare_runs(runs, tmp_path / "out")
    legend = drawn["curves.png"].legends[0].get_texts()
    assert [text.get_text() for text in legend] == ["a1 (n = 2)", "b (n = 1)"]


def test_settings_whose_first_runs_have_one_name_stay_apart(tmp_path, drawn):
    long = {f"flag_number_{index}": "a value" for index in range(9)}
    runs = [make_run(tmp_path / "bench" / "a", seed=1, **long)]
    runs.append(make_run(tmp_path / "paper" / "a", seed=2, **dict.fromkeys(long, "another value")))
    compare_runs(runs, tmp_path / "out")
    legend = drawn["curves.png"].legends[0].get_texts()
    second = f"a ({tmp_path / 'paper'})"
    assert [text.get_text() for text in legend] == [
        "a (n = 1)",
        f"{label(second, 60)} (n = 1)",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("round,test_f1\n0,0.5\n1,0", "its last line is cut off"),
        ("round,test_f1\n,0.5\n", "a round that is no whole number"),
        ("round,test_f1\n2.5,0.5\n", "a round that is no whole number"),
    ],
)
def test_damaged_metrics_are_refused(tmp_path, content, fault):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=fault):
        read_metrics(tmp_path / "metrics.csv")


@pytest.mark.parametrize(("content", "fault"), [("[]", "not names and values"), ("{", "not JSON")])
@pytest.mark.parametrize(
    ("name", "read"), [("args.json", read_arguments), ("env.json", read_environment)]
)
def test_damaged_descriptions_are_refused(tmp_path, name, read, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: .*{fault}"):
        read(tmp_path)


def test_classes_may_be_called_none(tmp_path):
    rows = [f"0,labeled_mean,{r},{c},0.5" for r in ("None", "NA") for c in ("None", "NA")]
    path = tmp_path / "matrices.csv"
    path.write_text("\n".join(["round,source,row,column,value", *rows, ""]))
    assert read_matrices(path)[1] == ["None", "NA"]


def run_plots(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "utils.plots", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)


def test_command_rebuilds_deleted_figures_byte_for_byte(tmp_path):
    run = make_run(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in rebuild_figures(run)}
    for path in (run / "figures").iterdir():
        path.unlink()
    done = run_plots(run)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (run / "figures").iterdir()} == before
    assert size_of_png(run / "figures" / "curves.png") == (1800, 1000)
    assert done.stdout.split() == [
        str(run / "figures" / f"{n}.png") for n in ("curves", "relation")
    ]


def test_command_compares_runs_and_names_a_missing_one(tmp_path):
    runs = [make_run(tmp_path / name, seed, method=name) for seed, name in enumerate("ab")]
    done = run_plots(*runs, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bars.png", "curves.png"]
    missing = run_plots(tmp_path / "nowhere")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert f"error: {tmp_path}/nowhere/metrics.csv: not there" in missing.stderr


def test_a_seed_that_was_run_again_is_no_other_sample(tmp_path, drawn):
    runs = [make_run(tmp_path / name, seed=1, method="fedirm") for name in ("a", "again")]
    runs.append(make_run(tmp_path / "b", seed=1, method="fedavg"))
    compare_runs(runs, tmp_path / "out")
    legend = [text.get_text() for text in drawn["curves.png"].legends[0].get_texts()]
    assert legend == ["method=fedirm (n = 1)", "method=fedavg (n = 1)"]
    assert all(axes.get_legend() is None for axes in drawn["curves.png"].axes)
