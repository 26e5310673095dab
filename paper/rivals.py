"""Methods on one field, looked at closer: each class, the intervals of each run, and the cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.files import write_text
from utils.plots.runs import read_metrics
from utils.table_files import NOT_AVAILABLE, to_csv, to_markdown
from utils.tables.tables import mean_and_spread

MACRO, INTERVAL = "macro", "95% interval"
BALANCED = "balanced accuracy"
MEGABYTE = 10**6


class Closer(NamedTuple):
    """What the tables of one finished run say of its last round, and what a round cost.

    auroc: of each class, a fraction. interval: of their mean, as printed. balanced: accuracy of
    the most probable class, averaged over the classes. seconds: of a round with all its clients.
    sent: bytes of models, there and back. memory: bytes of the largest client's.
    """

    auroc: dict[str, float]
    macro: float
    interval: str
    balanced: float
    seconds: float
    sent: float
    memory: float

    @property
    def worst(self) -> float:
        """The AUROC of the class that is told worst."""
        return min(self.auroc.values())


def look_closer(folder: Path) -> Closer:
    """A finished run's report, its metrics.csv and the files of its model and clients."""
    classes = pd.read_csv(folder / "tables" / "per_class.csv").set_index("class")
    overall = pd.read_csv(folder / "tables" / "overall.csv").set_index("metric")["value"]
    names = list(classes.index[: classes.index.get_loc(MACRO)])
    metrics = read_metrics(folder / "metrics.csv")
    joined = metrics[metrics["clients_unlabeled"] > 0]
    rounds = metrics if joined.empty else joined
    clients = float((rounds["clients_labeled"] + rounds["clients_unlabeled"]).mean())
    model = max(path.stat().st_size for path in (folder / "checkpoints").glob("epoch_*.pth"))
    memories = [path.stat().st_size for path in folder.glob("checkpoints/clients/*.pth")]
    return Closer(
        {name: float(classes.loc[name, "AUROC"]) for name in names},
        float(classes.loc[MACRO, "AUROC"]),
        str(classes.loc[MACRO, INTERVAL]),
        float(overall[BALANCED]),
        float(rounds["seconds_round"].median()),
        2 * clients * model,
        max(memories, default=np.nan),
    )


def write_closer(rows: Sequence[tuple[str, Sequence[Path]]], stem: Path) -> tuple[str, list[Path]]:
    """Write STEM_classes.md, .csv and STEM_cost.md, .csv; their Markdown and the files.

    rows: the name of each row and the folders of its runs.
    """
    found = {label: [look_closer(folder) for folder in folders] for label, folders in rows}
    names = list(next(iter(found.values()))[0].auroc)
    classes_header = ["row", *names, "worst class", BALANCED, "mean AUROC [95%] of each run"]
    cost_header = ["row", "seconds a round", "MB sent a round", "MB a client remembers"]
    classes, costs = [], []
    for label, runs in found.items():
        shares = [[100 * run.auroc[name] for run in runs] for name in names]
        shares += [[100 * run.worst for run in runs], [100 * run.balanced for run in runs]]
        each = "; ".join(f"{run.macro:.3f} {run.interval}" for run in runs)
        classes.append([label, *(mean_and_spread(share, digits=1) for share in shares), each])
        seconds = mean_and_spread([run.seconds for run in runs], digits=1)
        sent, memory = (
            np.mean([value(run) / MEGABYTE for run in runs])
            for value in (lambda run: run.sent, lambda run: run.memory)
        )
        costs.append([label, seconds, _whole(sent), _whole(memory)])
    text, written = "", []
    for part, header, cells, title in (
        ("classes", classes_header, classes, "AUROC of each class in per cent, last round"),
        ("cost", cost_header, costs, "Cost of a round with all its clients (median of a run)"),
    ):
        table = to_markdown(header, cells)
        text += f"\n{title}:\n\n{table}"
        for suffix, content in ((".md", table), (".csv", to_csv(header, cells))):
            written.append(stem.with_name(f"{stem.name}_{part}{suffix}"))
            write_text(written[-1], content)
    return text, written


def _whole(number: float) -> str:
    return NOT_AVAILABLE if np.isnan(number) else f"{number:.0f}"
