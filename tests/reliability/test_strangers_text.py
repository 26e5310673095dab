"""A stranger's text, class names, ids and paths, stays text wherever it is shown."""

import csv
import io
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import PROJECT
from utils.logger import GrowingTable
from utils.metrics.predictions import Predictions, read_predictions, write_predictions
from utils.plots.runs import read_matrices
from utils.table_files import to_csv, to_latex, to_markdown
from utils.text import (
    PlainOutput,
    csv_cell,
    from_csv_cell,
    latex_text,
    markdown_text,
    printable,
)

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", " =1"]
HARMLESS = ["-0.5", "+1e-05", "nan", "-inf", "3 %", "-12%", "epidural", "a-b", "", "'quoted"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_sees_no_formula(text):
    assert csv_cell(text) == f"'{text}" and from_csv_cell(csv_cell(text)) == text
    table = to_csv([text], [[text]])
    assert all(cell[0].startswith("'") for cell in csv.reader(io.StringIO(table)))
    assert next(csv.reader(io.StringIO(to_csv([text], [], exact=True)))) == [text]


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_and_words_stay_as_they_are(text):
    assert csv_cell(text) == text and from_csv_cell(text) == text


def test_predictions_and_matrices_come_back_as_they_were(tmp_path):
    classes = ("=evil()", "'=odd", "plain")
    predictions = Predictions(
        ["@a.png", "-1.png"],
        np.array([0, 2]),
        np.full((2, 3), 1 / 3),
        classes,
        np.array(["+P1", "P2"]),
    )
    write_predictions(tmp_path / "p.csv", *predictions)
    found = read_predictions(tmp_path / "p.csv")
    assert list(found.names) == ["@a.png", "-1.png"] and found.class_names == classes
    assert list(found.groups) == ["+P1", "P2"] and list(found.labels) == [0, 2]
    assert ",=" not in (tmp_path / "p.csv").read_text()
    cells = [
        {"round": 0, "source": "labeled_mean", "row": a, "column": b, "value": 0.5}
        for a in classes[:2]
        for b in classes[:2]
    ]
    GrowingTable(tmp_path / "m.csv").write(cells)
    assert read_matrices(tmp_path / "m.csv")[1] == ["=evil()", "'=odd"]
    assert ",=" not in (tmp_path / "m.csv").read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        ("*bold* `code`", r"\*bold\* \`code\`"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("test_auroc", "test_auroc"),
        ("_under_", r"\_under\_"),
        ("two\nlines", r"two\\nlines"),
        ("AT&T &amp; $5$", r"AT&T &amp;amp; \$5\$"),
    ],
)
def test_markdown_has_no_markup_in_it(text, expected):
    assert markdown_text(text) == expected
    assert to_markdown([text], [[text]]).count("\n") == 3


def test_latex_has_no_commands_in_it():
    row = to_latex(["x"], [[r"\input{/etc/passwd} 50% a_b <c> | ~"]]).splitlines()[4]
    assert r"\input" not in row and row.startswith(r"\textbackslash{}input\{")
    assert latex_text("a\nb") == r"a\textbackslash{}nb"


def test_escape_sequences_are_shown_and_not_obeyed():
    assert printable("\x1b[2Jgone\a\r") == r"\x1b[2Jgone\x07\r"
    assert printable("a\u202eb") == r"a\u202eb"  # turns the writing's direction
    assert printable("caf\u00e9 \u8840") == "caf\u00e9 \u8840"
    assert printable("\ud800") == r"\ud800"
    assert printable("a\tb\nc", kept="\n\t") == "a\tb\nc"


def test_an_ascii_terminal_gets_escapes_instead_of_an_error():
    raw = io.BytesIO()
    output = PlainOutput(io.TextIOWrapper(raw, encoding="ascii"))
    print("h\u00e4morrhage \x1b[31m", file=output)
    output.flush()
    assert raw.getvalue() == b"h\\xe4morrhage \\x1b[31m\n"


SAY = """
import sys
from utils.errors import UserError, run_command
def main():
    if len(sys.argv) > 1:
        raise UserError(sys.argv[1])
    for number in range(100_000):
        print(number, "\\u8840")
run_command(main)
"""


def test_a_reader_that_has_gone_ends_a_command_quietly():
    shell = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{SAY}' | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=PROJECT, capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert shell.stdout == "0 \u8840\n" and shell.stderr == "" and shell.returncode == 141


def test_an_error_is_one_line_whatever_is_in_it():
    result = subprocess.run(
        [sys.executable, "-c", SAY, "no \x1b[31m such\nfile caf\u00e9"],
        cwd=PROJECT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert result.stderr == b"error: no \\x1b[31m such\\nfile caf\\xe9\n" and result.returncode == 2


def test_a_terminal_that_was_closed_ends_nothing():
    primary, secondary = pty.openpty()
    terminal = os.fdopen(secondary, "w")
    output = PlainOutput(terminal)
    print("seen", file=output, flush=True)
    assert os.read(primary, 100) == b"seen\r\n"
    os.close(primary)
    print("not seen", file=output, flush=True)
    with pytest.raises(OSError, match="Input/output error"):
        terminal.close()


@pytest.mark.parametrize("backend", ["no-such-backend", "module://no_such_module", "TkAgg"])
def test_figures_need_no_backend(backend, tmp_path):
    program = (
        "from utils.plots.style import save_figure\n"
        "from matplotlib.figure import Figure\n"
        f"save_figure(Figure(), {str(tmp_path / 'a.png')!r})\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT, check=True, env=os.environ | {"MPLBACKEND": backend, "DISPLAY": ""},
    )  # fmt: skip
    assert (tmp_path / "a.png").stat().st_size > 100


def test_windows_is_told_in_one_line():
    program = "import sys; sys.modules['fcntl'] = None\nimport utils.files"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True
    )
    assert result.stderr.startswith("error: this program locks its folders with fcntl")
    assert result.stderr.count("\n") == 1 and "WSL" in result.stderr
