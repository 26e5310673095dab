"""Runs on volumes, summed up: Dice by row and seed, and row against row over the test volumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from paper.comparison import SWEPT_TITLES, SettingRuns, duration, made_on, overlaps_of
from paper.published import METHOD_TITLES, Item, Setting, gap_closed
from utils.errors import UserError
from utils.files import write_text
from utils.metrics.volumes import VOLUME_METRICS, VolumeScores
from utils.plots.comparison import (
    CurvePanel,
    Spread,
    draw_bars,
    draw_spread_curves,
    draw_sweep,
    spread_of,
)
from utils.plots.runs import read_environment
from utils.report.volumes import SCORES_FILE, read_scores
from utils.table_files import NOT_AVAILABLE, to_csv, to_latex, to_markdown
from utils.tables.tables import mean_and_spread

PERCENT = ("dice", "jaccard")


class SegmentedRuns(NamedTuple):
    """A row and, by seed, what its finished runs' last weights score on the test volumes."""

    setting: Setting
    runs: SettingRuns
    scores: dict[int, VolumeScores]

    def means(self, metric: str) -> dict[int, float]:
        """By seed the mean over structures; in per cent where it is a share."""
        factor = 100 if metric in PERCENT else 1
        return {seed: factor * scores.macro(metric) for seed, scores in self.scores.items()}


def write_volume_item(
    item: Item, groups: Sequence[SettingRuns], preset: str, stem: Path
) -> tuple[str, list[Path]]:
    """Write STEM.md, .csv, .tex, STEM_runs.csv, STEM_pairs.csv and the figures.

    Returns the Markdown and the files written. Rows without a finished run are left out. Raises
    UserError where runs of one seed were tested on different volumes.
    """
    rows = [_segmented(group) for group in groups]
    rows = [row for row in rows if row.scores]
    if not rows:
        raise UserError(f"{stem.parent.parent}: no run has {SCORES_FILE} yet")
    header, cells = score_table(rows)
    pair_header, pair_cells = pair_table(rows)
    over = "mean ± sd over seeds" if any(len(row.scores) > 1 for row in rows) else "one seed"
    caption = f"{item.title}. Preset {preset}; the last round's weights, {over}."
    folders = [folder for row in rows for folder in row.runs.folders.values()]
    notes = [made_on(folders), *overlaps_of(folders)]
    notes += [*gap_notes(rows), PAIRS_NOTE]
    text = (
        f"{caption}\n\n{to_markdown(header, cells)}\n{to_markdown(pair_header, pair_cells)}\n"
        + "".join(f"- {note}\n" for note in notes)
    )
    contents = {
        ".md": text,
        ".csv": to_csv(header, cells),
        ".tex": f"% {caption}\n{to_latex(header, cells)}",
        "_runs.csv": to_csv(*run_rows(rows)),
        "_pairs.csv": to_csv(pair_header, pair_cells),
    }
    for suffix, content in contents.items():
        write_text(stem.with_name(stem.name + suffix), content)
    written = [stem.with_name(stem.name + suffix) for suffix in contents]
    return text, written + _draw(item, rows, stem)


PAIRS_NOTE = (
    "Wilcoxon's signed-rank test, two-sided, over the test volumes of one seed, on each volume's "
    "mean Dice of its structures; it takes volumes as independent, which two of one patient are "
    "not, and says nothing about other seeds."
)


def _segmented(group: SettingRuns) -> SegmentedRuns:
    scores = {
        seed: read_scores(folder / SCORES_FILE)
        for seed, folder in group.folders.items()
        if (folder / SCORES_FILE).exists()
    }
    kept = {seed: group.folders[seed] for seed in scores}
    return SegmentedRuns(group.setting, SettingRuns(group.setting, kept), scores)


def score_table(rows: Sequence[SegmentedRuns]) -> tuple[list[str], list[list[str]]]:
    """Per row Dice, of each structure too, Jaccard and distances; time and memory of a run."""
    structures = next(iter(rows[0].scores.values())).class_names
    header = ["row", "runs", "Dice", *(f"Dice {name}" for name in structures)]
    header += [title for name, title in VOLUME_METRICS.items() if name != "dice"]
    header += ["wall time", "peak memory"]
    cells = []
    for row in rows:
        each = [100 * scores.of_class("dice") for scores in row.scores.values()]
        values = [list(row.means("dice").values()), *map(list, zip(*each, strict=True))]
        values += [list(row.means(name).values()) for name in VOLUME_METRICS if name != "dice"]
        said = [mean_and_spread(found, digits=2) for found in values]
        seconds = np.mean([float(frame["seconds_round"].sum()) for frame in row.runs.metrics()])
        cells.append([row.setting.label, str(len(row.scores)), *said, duration(seconds)])
        cells[-1].append(_peak(list(row.runs.folders.values())))
    return header, cells


def _peak(folders: Sequence[Path]) -> str:
    """The largest peak of main memory among runs, as they recorded it."""
    peaks = [read_environment(folder).get("peak_memory_mb") for folder in folders]
    known = [peak for peak in peaks if peak is not None]
    return f"{max(known) / 1000:.1f} GB" if known else NOT_AVAILABLE


def volume_means(scores: VolumeScores) -> dict[str, float]:
    """Each volume's mean Dice over the structures that have one; by VolumeID."""
    dice = scores.values["dice"]
    known = ~np.isnan(dice)
    sums = np.where(known, dice, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return {
        name: float(mean)
        for name, mean, any_known in zip(scores.names, sums, known.any(axis=1), strict=True)
        if any_known
    }


def pair_table(rows: Sequence[SegmentedRuns]) -> tuple[list[str], list[list[str]]]:
    """FedIRM less every other row of the same flags, seed by seed and over the seeds."""
    header = ["seed", "row", "less", "volumes", "mean difference in Dice", "better on", "p"]
    cells = []
    for ours in rows:
        for theirs in rows:
            rival = theirs.setting.method != "fedirm" and theirs.setting.extra == ours.setting.extra
            if ours.setting.method != "fedirm" or not rival:
                continue
            seeds = sorted(ours.scores.keys() & theirs.scores.keys())
            names = [ours.setting.label, theirs.setting.label]
            cells += [[str(seed), *names, *_compared(ours, theirs, seed)] for seed in seeds]
            if len(seeds) > 1:
                cells.append(["all", *names, *_over_seeds(ours, theirs, seeds)])
    return header, cells


def _compared(ours: SegmentedRuns, theirs: SegmentedRuns, seed: int) -> list[str]:
    differences = _differences(ours, theirs, seed)
    return [
        str(len(differences)),
        f"{100 * differences.mean():+.2f}",
        f"{(differences > 0).sum()} of {len(differences)}",
        _p_value(differences),
    ]


def _differences(ours: SegmentedRuns, theirs: SegmentedRuns, seed: int) -> np.ndarray:
    """Of the mean Dice of each volume in which both rows have one; `UserError` where they were not
    tested on the same volumes."""
    scores = [row.scores[seed] for row in (ours, theirs)]
    if scores[0].names != scores[1].names:
        raise UserError(
            f"{ours.runs.folders[seed]} and {theirs.runs.folders[seed]}: tested on different "
            "volumes; run one of them again"
        )
    mine, their = map(volume_means, scores)
    return np.array([mine[name] - their[name] for name in mine if name in their])


def _over_seeds(ours: SegmentedRuns, theirs: SegmentedRuns, seeds: Sequence[int]) -> list[str]:
    """The seeds' mean differences: their mean, and on how many seeds ours is above."""
    differences = [100 * _differences(ours, theirs, seed).mean() for seed in seeds]
    better = sum(difference > 0 for difference in differences)
    mean = f"{np.mean(differences):+.2f}"
    return [NOT_AVAILABLE, mean, f"{better} of {len(seeds)} seeds", NOT_AVAILABLE]


def _p_value(differences: np.ndarray) -> str:
    if len(differences) < 2 or not differences.any():
        return NOT_AVAILABLE
    return f"{wilcoxon(differences).pvalue:.2g}"


def gap_notes(rows: Sequence[SegmentedRuns]) -> list[str]:
    """What share of the gap between FedAvg 2/0 and FedAvg 10/0 the other rows close, by seed."""
    known = {row.setting.label: row.means("dice") for row in rows}
    lower, upper = known.get("FedAvg 2/0"), known.get("FedAvg 10/0")
    if lower is None or upper is None:
        return []
    notes = []
    for label, means in known.items():
        shares = [
            f"{gap_closed(lower[seed], mean, upper[seed]):.0%} (seed {seed})"
            for seed, mean in means.items()
            if label not in ("FedAvg 2/0", "FedAvg 10/0")
            and seed in lower.keys() & upper.keys()
            and lower[seed] < upper[seed]
        ]
        if shares:
            notes.append(
                f"{label} closes {', '.join(shares)} of the Dice gap between FedAvg 2/0 and "
                "FedAvg 10/0."
            )
    return notes


def run_rows(rows: Sequence[SegmentedRuns]) -> tuple[list[str], list[list[str]]]:
    """One row per run: where each number of the table comes from."""
    structures = next(iter(rows[0].scores.values())).class_names
    header = ["row", "seed", "run", *VOLUME_METRICS, *(f"dice_{name}" for name in structures)]
    cells = [
        [
            row.setting.label,
            str(seed),
            str(row.runs.folders[seed]),
            *(repr(scores.macro(name)) for name in VOLUME_METRICS),
            *(repr(float(value)) for value in scores.of_class("dice")),
        ]
        for row in rows
        for seed, scores in row.scores.items()
    ]
    return header, cells


def _draw(item: Item, rows: Sequence[SegmentedRuns], stem: Path) -> list[Path]:
    figures = [stem.with_name(f"{stem.name}{ending}.png") for ending in ("", "_curves")]
    spreads = {
        name: {row.setting: spread_of(list(row.means(name).values())) for row in rows}
        for name in PERCENT
    }
    if item.swept:
        lines: dict[str, dict[float, Spread]] = {}
        for setting, spread in spreads["dice"].items():
            title = METHOD_TITLES[setting.method]
            lines.setdefault(title, {})[setting.number(item.swept)] = spread
        x_label = SWEPT_TITLES[item.swept]
        draw_sweep(x_label, lines, {}, {}, figures[0], y_label="test Dice (%), mean of structures")
    else:
        bars = {
            VOLUME_METRICS[name]: {setting.label: spread for setting, spread in found.items()}
            for name, found in spreads.items()
        }
        draw_bars(bars, {}, "", figures[0])
    runs = {row.setting: row.runs.metrics() for row in rows}
    panels = [
        CurvePanel(
            title,
            "test_dice",
            "test Dice",
            {setting.label: runs[setting] for setting in settings if setting in runs},
        )
        for title, settings in item.panels
    ]
    draw_spread_curves(panels, figures[1])
    return figures
