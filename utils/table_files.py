"""One table, three formats: CSV for programs, Markdown for pages, LaTeX for papers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from utils.files import write_text
from utils.text import csv_cell, latex_text, markdown_text

NOT_AVAILABLE = "NA"


def to_csv(header: Sequence[str], rows: Sequence[Sequence[str]], exact: bool = False) -> str:
    """The table as CSV text with Unix line ends.

    exact: for a program, which must read the very same text; else a spreadsheet may open it, and
    nothing in it is taken for a formula.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    lines = [header, *rows]
    writer.writerows(lines if exact else ([csv_cell(str(cell)) for cell in line] for line in lines))
    return buffer.getvalue()


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as a GitHub-flavoured Markdown table."""
    lines = [_markdown_row(header), "|" + "---|" * len(header)]
    lines += [_markdown_row(row) for row in rows]
    return "\n".join(lines) + "\n"


def to_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as a LaTeX `tabular` with booktabs rules."""
    lines = [
        r"\begin{tabular}{" + "l" * len(header) + "}",
        r"\toprule",
        _latex_row(header),
        r"\midrule",
        *(_latex_row(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def write_table(stem: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write `stem`.csv, `stem`.md and `stem`.tex, each whole or not at all. Cells are strings."""
    for suffix, render in ((".csv", to_csv), (".md", to_markdown), (".tex", to_latex)):
        write_text(stem.with_name(stem.name + suffix), render(header, rows))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(str(cell)) for cell in cells) + " |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_text(str(cell)) for cell in cells) + r" \\"
