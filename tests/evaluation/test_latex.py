"""What is printed as LaTeX compiles."""

import shutil
import subprocess

import pytest

from utils.table_files import to_latex
from utils.tables.latex import paper_form

PAGE = r"""\documentclass{article}
\usepackage[landscape,margin=1cm]{geometry}
\usepackage{booktabs}
\begin{document}
%s
\bigskip

%s
\end{document}
"""
HOSTILE = [
    r"100 % of A & B, #1, $x_i$ ^2 ~ {y} \input{/etc/passwd}",
    "naïve Müller, αβγ, 肝臓, Ω ≥ 3 µm, “quoted” – dash — … 😀",
    "a\nb\tc\x1b[31m",
    "[0.1, 0.2] <tag> |bar| `tick` 'it' \"said\"",
]
HEADER = ["arguments that differ", "which", "runs", "rounds done", "AUROC", "F1", "HD95 (mm)"]


def rows_of(settings):
    return [
        [setting, "last", "3", "28", "0.8756 ± 0.0056 (2 of 3)", "NA", "1.2500 ± 0.5000"]
        for setting in settings
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_both_forms_compile_whatever_the_names_are(tmp_path):
    tables = to_latex([*HEADER, HOSTILE[0]], [[*row, HOSTILE[1]] for row in rows_of(HOSTILE)])
    (tmp_path / "page.tex").write_text(PAGE % (paper_form(HEADER, rows_of(HOSTILE)), tables))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    ended = subprocess.run(
        [*command, "page.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert (tmp_path / "page.pdf").stat().st_size > 5000
    assert "Missing character" not in (tmp_path / "page.log").read_text(errors="replace")


def test_the_papers_form_is_in_percent_and_distances_are_not():
    text = paper_form(HEADER, rows_of(["FedIRM"]))
    assert r"FedIRM & 3 & $87.56 \pm 0.56$ (2 of 3) & -- & $1.25 \pm 0.50$ \\" in text
