"""The table of means in the form of the paper's Table 1."""

import re
from collections.abc import Sequence

from utils.text import latex_text

FIRST_METRIC = 4  # column of the table of means; before it: setting, which round, runs, rounds
TITLES = {"AUROC": "AUC", "accuracy": "Acc.", "sensitivity": "Sens.", "specificity": "Spec."}
_CELL = re.compile(r"(\d+\.\d+)(?: ± (\d+\.\d+))?( \(.*\))?")


def paper_form(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""The last rounds of `groups_table` as a LaTeX `tabular` (it needs \usepackage{booktabs}):
    mean and standard deviation in percent, distances in mm as they are."""
    metrics = header[FIRST_METRIC:]
    titles = ["Setting", "Runs", *(latex_text(TITLES.get(name, name)) for name in metrics)]
    lines = [
        r"\begin{tabular}{l" + "c" * (len(titles) - 1) + "}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
    ]
    for setting, which, runs, _, *cells in rows:
        if which == "last":
            numbers = [_number(cell, name) for cell, name in zip(cells, metrics, strict=True)]
            lines.append(" & ".join([latex_text(setting), runs, *numbers]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _number(cell: str, metric: str) -> str:
    r""" "0.8756 ± 0.0056 (2 of 3)" -> $87.56 \pm 0.56$ (2 of 3); a dash where there is none."""
    found = _CELL.fullmatch(cell)
    if found is None:
        return "--"
    scale = 1 if "(mm)" in metric else 100
    mean, spread, rest = found.groups()
    numbers = f"{scale * float(mean):.2f}"
    numbers += rf" \pm {scale * float(spread):.2f}" if spread else ""
    return f"${numbers}${rest or ''}"
