"""Runs of one table or figure, summed up beside the published numbers: tables, notes, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from options import EMBEDDED_PRESETS
from paper.published import (
    FIELD_WEIGHT,
    FIGURE_2A_ROUNDS,
    METHOD_TITLES,
    METRIC_TITLES,
    REPORTS,
    SLIDES_NOTES,
    SLIDES_WALL_TIME,
    Item,
    Setting,
    gap_closed,
)
from paper.rivals import write_closer
from utils.errors import UserError
from utils.files import write_text
from utils.json_files import read_json
from utils.plots.comparison import (
    CurvePanel,
    Spread,
    draw_bars,
    draw_relation_rounds,
    draw_spread_curves,
    draw_sweep,
    spread_of,
)
from utils.plots.runs import (
    SOURCES,
    every_argument,
    read_arguments,
    read_environment,
    read_matrices,
    read_metrics,
)
from utils.report.page import OVERLAP_FACT, SETTINGS_FILE
from utils.table_files import NOT_AVAILABLE, to_csv, to_latex, to_markdown
from utils.tables.tables import mean_and_spread

SWEPT_TITLES = {
    "num_labeled": "labelled clients",
    "num_unlabeled": "unlabelled clients",
    "labeled_weight": "a labelled client's share of the average, times",
    "labeled_volumes": "labelled volumes at each of the labelled clients",
}
REPORTED_MATRICES = "the rounds with both matrices that are nearest to 1, 30 and 60"


@dataclass(frozen=True)
class Score:
    """The test metrics of one run, as fractions: the mean over the reported rounds."""

    setting: Setting
    seed: int
    folder: Path
    rounds: tuple[int, ...]
    metrics: Mapping[str, float]
    wall_seconds: float


@dataclass(frozen=True)
class SettingRuns:
    """The finished runs of one row: {seed: run folder}."""

    setting: Setting
    folders: Mapping[int, Path]

    def metrics(self) -> list[pd.DataFrame]:
        """metrics.csv of every seed."""
        return [read_metrics(folder / "metrics.csv") for folder in self.folders.values()]

    def scores(self, report: str) -> list[Score]:
        """One score per seed, at the rounds that `report` names."""
        scores = []
        for (seed, folder), metrics in zip(self.folders.items(), self.metrics(), strict=True):
            rows = reported_rows(metrics, report, folder).reindex(columns=["round", *METRIC_TITLES])
            values = {name: float(rows[name].mean(skipna=False)) for name in METRIC_TITLES}
            rounds = tuple(map(int, rows["round"]))
            wall = float(metrics["seconds_round"].sum()) if "seconds_round" in metrics else np.nan
            scores.append(Score(self.setting, seed, folder, rounds, values, wall))
        return scores


def reported_rows(metrics: pd.DataFrame, report: str, folder: Path) -> pd.DataFrame:
    """The rows of metrics.csv whose test metrics are reported, in order; the earliest of equals.

    Of a run with fewer than four evaluated rounds `last4` takes those there are. Raises
    UserError where no round has what `report` asks for.
    """
    column = "val_auroc" if report == "best_val" else "test_auroc"
    known = metrics[column].dropna() if column in metrics else metrics["round"].head(0)
    if known.empty:
        remedy = "give --csv_file_val, or use --report last" if report == "best_val" else "run anew"
        raise UserError(f"{folder}/metrics.csv: no round has {column}; {remedy}")
    if report == "best_val":
        return metrics.loc[[known.idxmax()]]
    return metrics.loc[known.index[-4 if report == "last4" else -1 :]]


def write_item(
    item: Item, groups: Sequence[SettingRuns], report: str, task: str, preset: str, stem: Path
) -> tuple[str, list[Path]]:
    """Write STEM.md, .csv, .tex, STEM_runs.csv and the figures.

    Returns the Markdown and the files written. Every mean in the table is over the rows of
    STEM_runs.csv with its row's name, and those are cells of the runs' metrics.csv, or the mean of
    the cells of the rounds that stand beside them.
    """
    scores = [score for group in groups for score in group.scores(report)]
    if item.drawing == "matrices":
        header, rows, run_rows, figures = _matrix_table(groups, stem)
    else:
        header, rows = _score_table(groups, scores, task)
        run_rows = _run_rows(scores)
        figures = _draw(item, groups, scores, task, stem)
    figures.append(stem.with_name(f"{stem.name}_curves.png"))
    runs = {group.setting: group.metrics() for group in groups}
    panels = [
        CurvePanel(title, "test_auroc", "test AUROC", {row.label: runs[row] for row in settings})
        for title, settings in item.panels
    ]
    draw_spread_curves(panels, figures[-1])

    numbers = REPORTED_MATRICES if item.drawing == "matrices" else REPORTS[report]
    over = "mean ± sd over seeds" if any(len(group.folders) > 1 for group in groups) else "one seed"
    caption = f"{item.title}. Preset {preset}; ours: {numbers}, {over}."
    notes = _notes(item, groups, scores, task)
    text = f"{caption}\n\n{to_markdown(header, rows)}\n" + "".join(f"- {note}\n" for note in notes)
    if item.drawing == "rivals":
        named = [(group.setting.label, list(group.folders.values())) for group in groups]
        closer, written = write_closer(named, stem)
        text, figures = text + closer, figures + written
    latex = f"% {caption}\n{to_latex(header, rows)}"
    contents = {
        ".md": text,
        ".csv": to_csv(header, rows),
        ".tex": latex,
        "_runs.csv": to_csv(run_rows[0], run_rows[1:]),
    }
    for suffix, content in contents.items():
        write_text(stem.with_name(stem.name + suffix), content)
    return text, [stem.with_name(stem.name + suffix) for suffix in contents] + figures


def _score_table(
    groups: Sequence[SettingRuns], scores: Sequence[Score], task: str
) -> tuple[list[str], list[list[str]]]:
    """Per setting a row with our numbers and, where there are any, a row with the published."""
    header = ["row", "labelled/unlabelled", "whose", "runs", *METRIC_TITLES.values(), "wall time"]
    rows = []
    for group in groups:
        setting = group.setting
        mine = [score for score in scores if score.setting == setting]
        shares = [[100 * score.metrics[name] for score in mine] for name in METRIC_TITLES]
        wall = duration(np.mean([score.wall_seconds for score in mine]))
        start = [setting.label, f"{setting.labeled}/{setting.unlabeled}"]
        ours = [mean_and_spread(values, digits=2) for values in shares]
        rows.append([*start, mine_of(groups), str(len(mine)), *ours, wall])
        published = setting.published(task)
        if published:
            cells = [_published_cell(published.get(name)) for name in METRIC_TITLES]
            of_slides = setting.source == "slides"
            wall = SLIDES_WALL_TIME[setting.label] if of_slides else NOT_AVAILABLE
            rows.append([*start, _whose(setting, task), "1" if of_slides else "3", *cells, wall])
    return header, rows


def mine_of(groups: Sequence[SettingRuns]) -> str:
    """ "ours, DATA": wherever the paper's numbers stand beside ours, so does what ours are of."""
    folder = next(iter(groups[0].folders.values()))
    return f"ours, {data_name(read_arguments(folder))}"


def data_name(flags: Mapping[str, object]) -> str:
    """What a run's images are, in two or three words, from its flags."""
    if flags.get("preset") in EMBEDDED_PRESETS:
        return "synthetic head CT"
    if flags.get("medmnist"):
        return Path(str(flags["medmnist"])).stem
    root = Path(str(flags.get("root_path")))
    return root.parent.name if root.name == "images" else root.name


def _whose(setting: Setting, task: str) -> str:
    return "slides" if setting.source == "slides" else f"paper, {task}"


def _published_cell(number: tuple[float, float | None] | None) -> str:
    if number is None:
        return NOT_AVAILABLE
    mean, deviation = number
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss; NA where they are NaN."""
    return NOT_AVAILABLE if np.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def _run_rows(scores: Sequence[Score]) -> list[list[str]]:
    """Header and one row per run: where each number of the table comes from."""
    header = ["row", "seed", "run", "rounds", *METRIC_TITLES, "seconds"]
    rows = [
        [
            score.setting.label,
            str(score.seed),
            str(score.folder),
            " ".join(map(str, score.rounds)),
            *(str(score.metrics[name]) for name in METRIC_TITLES),
            str(score.wall_seconds),
        ]
        for score in scores
    ]
    return [header, *rows]


def _spreads(scores: Sequence[Score], name: str) -> dict[Setting, Spread]:
    """{setting: spread of a metric over its seeds}, in per cent."""
    values: dict[Setting, list[float]] = {}
    for score in scores:
        values.setdefault(score.setting, []).append(100 * score.metrics[name])
    return {setting: spread_of(found) for setting, found in values.items()}


def _draw(
    item: Item, groups: Sequence[SettingRuns], scores: Sequence[Score], task: str, stem: Path
) -> list[Path]:
    figure = stem.with_name(stem.name + ".png")
    published = {group.setting: group.setting.published(task) for group in groups}
    if item.drawing == "sweep":
        _draw_sweep(item, _spreads(scores, "test_auroc"), published, figure, mine_of(groups))
        return [figure]
    bars, references = {}, {}
    for name, title in METRIC_TITLES.items():
        spreads = _spreads(scores, name)
        bars[title] = {setting.label: spread for setting, spread in spreads.items()}
        references[title] = {
            setting.label: row[name][0] for setting, row in published.items() if name in row
        }
    draw_bars(bars, references, _whose(groups[0].setting, task), figure, mine_of(groups))
    return [figure]


def _draw_sweep(
    item: Item, spreads: Mapping[Setting, Spread], published: Mapping, figure: Path, ours: str
) -> None:
    lines: dict[str, dict[float, Spread]] = {}
    references: dict[str, dict[float, float]] = {}
    levels = {}
    for setting, spread in spreads.items():
        row = published[setting]
        if setting in item.levels:
            levels[f"{setting.label}, ours"] = spread.mean
            levels |= {f"{setting.label}, paper": row["test_auroc"][0]} if row else {}
            continue
        title = METHOD_TITLES[setting.method]
        x = setting.number(item.swept)
        lines.setdefault(title, {})[x] = spread
        if row:
            references.setdefault(title, {})[x] = row["test_auroc"][0]
    draw_sweep(SWEPT_TITLES[item.swept], lines, levels, references, figure, ours)


def _matrix_table(
    groups: Sequence[SettingRuns], stem: Path
) -> tuple[list[str], list[list[str]], list[list[str]], list[Path]]:
    """Figure 2(a): the mean absolute difference of the matrices per method and round."""
    header = ["row", "round", "runs", "mean absolute difference"]
    rows, run_rows, drawn = [], [["row", "seed", "run", "round", header[-1]]], {}
    for group in groups:
        label = group.setting.label
        differences: dict[int, list[float]] = {}
        for seed, folder in group.folders.items():
            rounds, class_names = read_matrices(folder / "matrices.csv")
            for number in nearest_rounds(rounds, folder):
                labeled, unlabeled = (rounds[number][source] for source in SOURCES)
                value = float(np.nanmean(np.abs(labeled - unlabeled)))
                differences.setdefault(number, []).append(value)
                run_rows.append([label, str(seed), str(folder), str(number), str(value)])
                if seed == next(iter(group.folders)):
                    drawn.setdefault(label, {})[number] = rounds[number]
        rows += [
            [label, str(number), str(len(values)), mean_and_spread(values)]
            for number, values in sorted(differences.items())
        ]
    figure = stem.with_name(stem.name + ".png")
    draw_relation_rounds(drawn, class_names, figure)
    return header, rows, run_rows, [figure]


def nearest_rounds(rounds: Mapping[int, Mapping], folder: Path) -> list[int]:
    """The rounds with both matrices that lie nearest to 1, 30 and 60, each once."""
    complete = np.array(sorted(number for number, found in rounds.items() if len(found) == 2))
    if not complete.size:
        raise UserError(f"{folder}/matrices.csv: no round has both matrices; train more rounds")
    return sorted({int(complete[np.abs(complete - r).argmin()]) for r in FIGURE_2A_ROUNDS})


def _notes(
    item: Item, groups: Sequence[SettingRuns], scores: Sequence[Score], task: str
) -> list[str]:
    """What a reader must know beside the numbers: where they were made, and the gap closed."""
    folders = [folder for group in groups for folder in group.folders.values()]
    notes = [made_on(folders), *overlaps_of(folders)]
    if groups[0].setting.source == "slides":
        notes += SLIDES_NOTES
    varied = dict.fromkeys(flag for group in groups for flag, _ in group.setting.extra)
    if varied:
        kept = every_argument(next(iter(groups[0].folders.values())))
        said = ", ".join(f"--{flag} {kept[flag]}" for flag in varied)
        notes.append(f"The row {groups[0].setting.label} has {said}.")
    means = {
        (setting.method, setting.labeled): spread.mean
        for setting, spread in _spreads(scores, "test_auroc").items()
        if setting.extra in ((), (FIELD_WEIGHT,))
    }
    wanted = [means.get(key) for key in (("fedavg", 2), ("fedirm", 2), ("fedavg", 10))]
    if item.drawing in ("bars", "rivals") and None not in wanted and wanted[0] < wanted[2]:
        share = gap_closed(*wanted)
        notes.append(
            f"FedIRM closes {share:.0%} of the AUROC gap between FedAvg 2/0 and FedAvg 10/0 "
            "(paper: 59% ICH, 43% skin)."
        )
    return notes


def overlaps_of(folders: Sequence[Path]) -> list[str]:
    """What the reports of the runs say of patients and images that their sets share, each once."""
    said = {}
    for folder in folders:
        path = folder / SETTINGS_FILE
        facts = read_json(path, advice="remove it").get("facts", {}) if path.exists() else {}
        if OVERLAP_FACT in facts:
            said[f"Overlap of the sets: {facts[OVERLAP_FACT]}."] = None
    return list(said)


def made_on(folders: Sequence[Path]) -> str:
    """Devices, commits and rounds of the runs, as their folders record them."""
    found: dict[str, set[str]] = {"devices": set(), "commit": set()}
    for folder in folders:
        environment = read_environment(folder)
        for key, values in found.items():
            values.add(_text(environment.get(key, NOT_AVAILABLE)))
    lengths = sorted({len(read_metrics(folder / "metrics.csv")) for folder in folders})
    said = {key: " / ".join(sorted(values)) for key, values in found.items()}
    rounds = ", ".join(map(str, lengths))
    return f"Made on {said['devices']}, commit {said['commit']}, {rounds} rounds a run."


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
