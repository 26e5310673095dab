"""Which learning rate: chosen on validation data, with the labelled clients alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from paper.comparison import SettingRuns, made_on
from paper.published import METRIC_TITLES, Item
from tasks import TASKS
from utils.errors import UserError
from utils.files import write_text
from utils.metrics.volumes import VOLUME_METRICS
from utils.plots.runs import every_argument, read_metrics
from utils.table_files import to_csv, to_markdown
from utils.tables.tables import mean_and_spread

LAST = 4  # evaluated rounds whose mean is a phase's score
PHASES = ("until the join", "from the join on")


def validated(flags: Mapping[str, object]) -> str:
    """What a run of these flags is judged by on validation: the task's first headline."""
    return TASKS[flags["task"]].headline[0]


def phase_scores(folder: Path) -> tuple[float, float]:
    """The mean score on validation of the last four evaluated rounds of either phase of a run.

    The phases are those in which the unlabelled clients would not, and would, have joined; NaN
    where a phase was never evaluated. `UserError` where there are no validation data.
    """
    flags, metrics = every_argument(folder), read_metrics(folder / "metrics.csv")
    column = f"val_{validated(flags)}"
    if column not in metrics or metrics[column].isna().all():
        raise UserError(f"{folder}/metrics.csv: no round has {column}; give --csv_file_val")
    joined = metrics["round"] * flags["local_ep"] > flags["join_epoch"]
    first, second = (
        float(metrics.loc[rows, column].dropna().tail(LAST).mean()) for rows in (~joined, joined)
    )
    return first, second


def write_rates(
    item: Item, groups: Sequence[SettingRuns], preset: str, stem: Path
) -> tuple[str, list[Path]]:
    """Write STEM.md and .csv: a row per rate with its phase's score; the best of each is named."""
    score = validated(every_argument(next(iter(groups[0].folders.values()))))
    title = METRIC_TITLES.get(f"test_{score}") or VOLUME_METRICS[score]
    header = ["phase", "flag", "value", "runs", f"validation {title}"]
    rows, means = [], {}
    for group in groups:
        (flag, value), *_ = group.setting.extra
        phase = 0 if flag == "base_lr" else 1
        scores = [100 * phase_scores(folder)[phase] for folder in group.folders.values()]
        means.setdefault(flag, {})[value] = pd.Series(scores).mean()
        cells = [PHASES[phase], f"--{flag}", f"{value:g}", str(len(scores))]
        rows.append([*cells, mean_and_spread(scores, digits=2)])
    notes = [made_on([folder for group in groups for folder in group.folders.values()])]
    notes += [
        f"Best: --{flag} {max(found, key=found.get):g}"
        + (" (the unlabelled clients' --unlabeled_lr goes with it)" if flag != "base_lr" else "")
        + "."
        for flag, found in means.items()
    ]
    caption = f"{item.title}. Preset {preset}; mean of the last {LAST} evaluated rounds of a phase."
    text = f"{caption}\n\n{to_markdown(header, rows)}\n" + "".join(f"- {note}\n" for note in notes)
    contents = {".md": text, ".csv": to_csv(header, rows)}
    for suffix, content in contents.items():
        write_text(stem.with_name(stem.name + suffix), content)
    return text, [stem.with_name(stem.name + suffix) for suffix in contents]
