"""Tables made of logs: seeds averaged, what differs named, the paper's form."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROJECT
from tests.helpers.log_texts import stamp, write_run
from utils.errors import UserError
from utils.table_files import to_latex
from utils.tables.latex import paper_form
from utils.tables.log_lines import (
    NOTE_MARK,
    own_flags_note,
    own_flags_of,
)
from utils.tables.tables import groups_table, mean_and_spread, read_logs


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1.0, 2.0, 4.0], digits=2) == "2.33 ± 1.53"
    assert mean_and_spread([0.5]) == "0.5000"
    assert mean_and_spread([0.5, None, 0.7, math.nan], digits=1) == "0.6 ± 0.1 (2 of 4)"
    assert mean_and_spread([None]) == "NA"


def groups_of(folder: Path, *texts: str) -> tuple[list[dict[str, str]], list[str]]:
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    logs = [folder / f"{number}.txt" for number in range(len(texts))]
    table, notes = groups_table(read_logs(logs))
    return [dict(zip(table.header, row, strict=True)) for row in table.rows], notes


def test_groups_collapse_seeds_and_name_what_differs(tmp_path):
    texts = [write_run(seed, method="fedirm", auroc=0.6 + seed / 50) for seed in (1, 2)]
    old = write_run(3, auroc=0.5)
    rows, notes = groups_of(tmp_path, *texts, old)
    assert [row["arguments that differ"] for row in rows[::2]] == ["method=fedirm", "method=-"]
    assert [row["runs"] for row in rows] == ["2", "2", "1", "1"]
    # The last round has 0.62 + 0.02 and 0.64 + 0.02: mean 0.65, sample sd 0.02 / sqrt(2).
    assert rows[0]["AUROC"] == "0.6500 ± 0.0141"
    assert (rows[2]["AUROC"], rows[2]["sensitivity"], notes) == ("0.5200", "NA", [])


def test_seeds_that_came_less_far_are_left_out_and_named(tmp_path):
    rows, notes = groups_of(tmp_path, write_run(1), write_run(2, rounds=range(2), auroc=0.9))
    assert (rows[0]["runs"], rows[0]["rounds done"], rows[0]["AUROC"]) == ("1", "3", "0.6200")
    assert notes == [f"{tmp_path}/1.txt: not in the means, 2 of 3 rounds done"]


def test_a_run_that_patience_ended_is_in_the_means(tmp_path):
    ended = write_run(2, rounds=range(2), auroc=0.9)
    ended += f"{stamp(36900.0)}{NOTE_MARK}--patience 1: ended after 2 of 3 rounds, the best auroc\n"
    rows, notes = groups_of(tmp_path, write_run(1), ended)
    assert (rows[0]["runs"], rows[0]["rounds done"], notes) == ("2", "2 to 3", [])
    # 0.6 + 0.02 after three rounds and 0.9 + 0.01 after two
    assert rows[0]["AUROC"].startswith("0.76")


def test_weights_to_start_from_are_a_difference_and_a_folder_to_go_on_in_is_none(tmp_path):
    started = [write_run(seed, resume=f"{seed}/epoch_9.pth") for seed in (1, 2)]
    rows, _ = groups_of(tmp_path, write_run(1, resume=None), write_run(2, resume="a"), *started)
    assert [row["arguments that differ"] for row in rows[::2]] == [
        "resume=-",
        "resume=1/epoch_9.pth",
        "resume=2/epoch_9.pth",
    ]
    assert [row["runs"] for row in rows[::2]] == ["2", "1", "1"]


def test_latex_cells_are_escaped():
    row = to_latex(["a"], [["1_2%{x}\\y^~±#$&"]]).splitlines()[4]
    assert row == r"1\_2\%\{x\}\textbackslash{}y\textasciicircum{}\textasciitilde{}$\pm$\#\$\& \\"


def test_out_that_names_a_folder_is_refused_before_anything_is_printed(tmp_path):
    (tmp_path / "a.txt").write_text(write_run())
    for out in (".", tmp_path):
        done = run_tables(tmp_path / "a.txt", "--out", out)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
        assert f"--out {out}: a folder" in done.stderr


def test_a_seed_that_ran_twice_counts_once(tmp_path):
    rows, notes = groups_of(
        tmp_path, write_run(1), write_run(1, rounds=range(1), auroc=0.9), write_run(2)
    )
    assert (rows[0]["runs"], rows[0]["AUROC"]) == ("2", "0.6200 ± 0.0000")
    assert notes == [f"{tmp_path}/1.txt: not in the means, its seed was run again"]


def test_best_round_is_the_first_with_the_highest_auroc(tmp_path):
    text = write_run().replace("AUROC: 0.620000", "AUROC: nan")
    (tmp_path / "a.txt").write_text(text)
    (named,) = read_logs([tmp_path / "a.txt"])
    assert (named.chosen_round("best").number, named.chosen_round("last").number) == (1, 2)


def run_tables(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "utils.tables", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_command_prints_and_writes_tables_whose_cells_stand_in_the_log(tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(write_run(full=True) + "what is this\n")
    (tmp_path / "b.txt").write_text(write_run(seed=2, full=True, auroc=0.7)[:-9])
    done = run_tables(folder, tmp_path / "b.txt", "--out", tmp_path / "out" / "bench")
    assert done.returncode == 0, done.stderr
    assert "2 line(s) not understood." in done.stdout
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    tables = [
        f"{name}.{kind}" for name in ("runs", "rounds", "groups") for kind in ("csv", "md", "tex")
    ]
    assert written == sorted(f"bench_{name}" for name in [*tables, "paper.tex"])
    with open(tmp_path / "out" / "bench_rounds.csv", newline="") as file:
        last, best, cut, _ = csv.DictReader(file)
    assert last["round"] == best["round"] == cut["round"] == "2"
    assert (last["AUROC"], last["specificity"]) == ("0.620000", "0.900000")
    assert (cut["AUROC"], cut["sensitivity"], cut["specificity"]) == ("0.720000", "0.400000", "NA")
    with open(tmp_path / "out" / "bench_runs.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["s per labelled client"] == "10.00"
    assert row["s per unlabelled client"] == "30.00"
    assert (row["wall time"], row["client trainings"]) == ("0:04:15", "12")
    assert (tmp_path / "out" / "bench_runs.md").read_text() in done.stdout


@pytest.mark.parametrize("content", [None, "", "nothing of ours\n"])
def test_no_log_is_one_line_and_status_2(tmp_path, content):
    log = tmp_path / "x.txt"
    if content is not None:
        log.write_text(content)
    done = run_tables(log, "--out", tmp_path / "t")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {log}: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("t_*"))


def test_a_folder_without_a_log_is_named():
    with pytest.raises(UserError, match="log.txt"):
        read_logs([PROJECT / "tests"])


def write_logs(tmp_path, **logs):
    paths = []
    for name, text in logs.items():
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text(text)
    return read_logs(paths)


def with_own_flags(text, preset, *names):
    return text.replace(
        "Begin:", f"{stamp(36000.0)}{NOTE_MARK}{own_flags_note(preset, names)}\nBegin:", 1
    )


def test_what_a_preset_explains_is_said_by_its_name(tmp_path):
    flags = {"preset": "paper", "base_lr": 2e-4, "method": "fedirm"}
    other = {"preset": "slides", "base_lr": 1e-3, "method": "fedavg"}
    one, two = write_run(**flags), write_run(**other)
    runs = write_logs(tmp_path, a=one, b=two)
    assert groups_table(runs)[0].rows[0][0] == "preset=paper, base_lr=0.0002, method=fedirm"
    own = with_own_flags(one, "paper"), with_own_flags(two, "slides", "method")
    runs = write_logs(tmp_path, a=own[0], b=own[1])
    assert runs[1].run.own_flags == {"method"} and runs[0].run.lines_not_understood == 0
    settings = [row[0] for row in groups_table(runs)[0].rows[::2]]
    assert settings == ["preset=paper, method=fedirm", "preset=slides, method=fedavg"]
    assert own_flags_of(f"{NOTE_MARK}clients: by site") is None


def test_runs_tested_on_other_images_are_marked_and_never_averaged(tmp_path):
    same = [write_run(seed=seed, csv_file_test="a/testing.csv") for seed in (1, 2)]
    table, notes = groups_table(write_logs(tmp_path, a=same[0], b=same[1]))
    assert len(table.rows) == 2 and not notes
    other = write_run(seed=2, csv_file_test="b/testing.csv")
    table, notes = groups_table(write_logs(tmp_path, a=same[0], b=other))
    assert [row[0] for row in table.rows[::2]] == [
        "the same [test data A]",
        "the same [test data B]",
    ]
    assert "NOT to be compared" in notes[0] and f"{tmp_path}/a.txt" in notes[0]
    # in runs' folders the images themselves are looked at, wherever they lay
    for name, images in (("one", "xy"), ("two", "yx"), ("three", "xz")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").write_text(write_run(seed=ord(name[1]), csv_file_test=name))
        rows = "".join(f"{image},l,0.5,0.5\n" for image in images)
        (tmp_path / name / "predictions_test.csv").write_text(f"ImageID,label,l,r\n{rows}")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    assert not groups_table(read_logs(folders[:2]))[1]
    assert groups_table(read_logs(folders))[1][0].startswith("test data A: ")


def test_the_papers_form_is_percent_with_booktabs():
    header = ["arguments that differ", "which", "runs", "rounds done", "AUROC", "F1", "HD95 (mm)"]
    rows = [
        ["method=fed_irm", "last", "3", "100", "0.8756 ± 0.0056", "0.5986 (2 of 3)", "1.5 ± 0.25"],
        ["method=fed_irm", "best", "3", "100", "0.9 ± 0.1", "0.6", "1.0"],
        ["method=x", "last", "1", "100", "NA", "0.5", "2.0"],
    ]
    assert paper_form(header, rows) == (
        "\\begin{tabular}{lcccc}\n\\toprule\nSetting & Runs & AUC & F1 & HD95 (mm) \\\\\n"
        "\\midrule\n"
        "method=fed\\_irm & 3 & $87.56 \\pm 0.56$ & $59.86$ (2 of 3) & $1.50 \\pm 0.25$ \\\\\n"
        "method=x & 1 & -- & $50.00$ & $2.00$ \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
