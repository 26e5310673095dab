"""Figures from CSV files: a run's curves and relation matrices, and comparisons of runs.

`python -m utils.plots runs/A` rebuilds the run's figures/curves.png and figures/relation.png.
`python -m utils.plots runs/A runs/B ...` compares runs in curves.png and bars.png of the folder
--out: runs that differ in nothing but the seed become one line with their spread.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.errors import OneLineParser, UserError
from utils.flags import FLAGS
from utils.json_files import read_json
from utils.plots.comparison import (
    LONGEST_ROW,
    CurvePanel,
    draw_bars,
    draw_spread_curves,
    spread_of,
)
from utils.plots.style import (
    COLORS,
    GREY,
    LINE_STYLES,
    MATRIX_ROWS,
    draw_matrix,
    matrix_colors,
    matrix_page,
    matrix_triple,
    save_figure,
    styled,
)
from utils.tables.tables import (
    METRICS,
    VOLUME_METRICS,
    differing_arguments,
    notes_on_test_data,
    read_logs,
    setting_text,
)
from utils.text import from_csv_cell

SOURCES = ("labeled_mean", "unlabeled_mean")
TEXT_COLUMNS = frozenset({"phase", "source", "row", "column"})


def read_arguments(run_dir: str | os.PathLike) -> dict[str, object]:
    """The flags of a run; raises UserError where args.json is missing or damaged."""
    return read_json(Path(run_dir) / "args.json", advice="name a folder made by train_main.py")


def every_argument(run_dir: str | os.PathLike) -> dict[str, object]:
    """As `read_arguments`, with the flags that are newer than the run as it had them, unsaid."""
    return {name: flag.unsaid for name, flag in FLAGS.items()} | read_arguments(run_dir)


def read_environment(run_dir: str | os.PathLike) -> dict[str, object]:
    """env.json of a run: versions, commit, devices; empty where it is missing, else as above."""
    path = Path(run_dir) / "env.json"
    return read_json(path, advice="remove it") if path.exists() else {}


def read_metrics(path: str | os.PathLike) -> pd.DataFrame:
    """metrics.csv with one row per round, sorted; of a round written twice the later row counts.

    Empty cells are NaN. Raises UserError where the file is missing, damaged or has no rounds.
    """
    frame = _read_csv(Path(path), {"round"})
    frame = frame.drop_duplicates("round", keep="last").sort_values("round", ignore_index=True)
    if frame.empty:
        raise UserError(f"{path}: no finished round yet; resume the run first")
    return frame


def last_value(metrics: pd.DataFrame, column: str) -> float:
    """The last value that is not empty in a column of metrics.csv; NaN where there is none."""
    known = metrics[column].dropna() if column in metrics else metrics["round"].head(0)
    return float(known.iloc[-1]) if len(known) else float("nan")


def read_matrices(path: str | os.PathLike) -> tuple[dict[int, dict[str, np.ndarray]], list[str]]:
    """matrices.csv as {round: {source: (C, C) matrix}} and the C class names in their order.

    Rows and columns are classes; a source that a round lacks is absent from its dict.
    """
    frame = _read_csv(Path(path), {"round", "source", "row", "column", "value"})
    for column in ("row", "column"):
        frame[column] = frame[column].map(from_csv_cell)
    class_names = list(frame["row"].unique())
    frame = frame[frame["column"].isin(class_names)]
    groups = frame.groupby(["round", "source"], sort=True)
    cube = np.full((groups.ngroups, len(class_names), len(class_names)), np.nan)
    place = {name: number for number, name in enumerate(class_names)}
    rows, columns = (frame[side].map(place).to_numpy(int) for side in ("row", "column"))
    cube[groups.ngroup().to_numpy(), rows, columns] = frame["value"]  # the later of two stays
    matrices: dict[int, dict[str, np.ndarray]] = {}
    for (number, source), matrix in zip(groups.groups, cube, strict=True):
        matrices.setdefault(int(number), {})[source] = matrix
    return matrices, class_names


def _read_csv(path: Path, needed: set[str]) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8")
        # An empty cell alone is "not there": a class may be called None or NA.
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; name a folder made by train_main.py") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV ({error}); train the run again") from error
    if not text.endswith("\n"):
        raise UserError(f"{path}: its last line is cut off; train the run again")
    if missing := sorted(needed - set(frame.columns)):
        raise UserError(f"{path}: no column {', '.join(missing)}; train the run again")
    numbers = [column for column in frame if column not in TEXT_COLUMNS]
    try:
        # Python's own conversion gives back the very number that was written.
        frame[numbers] = frame[numbers].to_numpy(object).astype(float)
        if not (frame["round"] % 1 == 0).all():
            raise ValueError("a round that is no whole number")
    except ValueError as error:
        raise UserError(f"{path}: {error}; train the run again") from error
    return frame.astype({"round": int})


FEW_ROUNDS = 25
COMPARED = {"test_auroc": "test AUROC", "loss": "loss, mean of clients"}
OVERLAPS = {name: VOLUME_METRICS[name] for name in ("test_dice", "test_jaccard")}  # in per cent
COMPARED_VOLUMES = {"test_dice": "test Dice", "loss": "loss, mean of clients"}

# panel title, y label, {column of metrics.csv: legend}, y range
CURVES = (
    (
        "Training loss",
        "loss",
        {"loss": "mean of clients", "supervised_loss": "labelled clients"},
        None,
    ),
    (
        "Terms of the unlabelled clients' loss",
        "loss",
        {"consistency_loss": "consistency", "relation_loss": "relation"},
        None,
    ),
    ("AUROC", "AUROC", {"test_auroc": "test", "val_auroc": "validation"}, None),
    (
        "Pseudo labels and ramp-up",
        "share or weight",
        {
            "reliable_share": "reliable share",
            "kept_share": "share with a pseudo label",
            "consistency_weight": "ramp-up weight",
        },
        (-0.03, 1.03),
    ),
    (
        "Learning rate",
        "learning rate",
        {"learning_rate_labeled": "labelled", "learning_rate_unlabeled": "unlabelled"},
        (0, None),
    ),
    (
        "Time per client",
        "seconds",
        {"seconds_labeled": "labelled", "seconds_unlabeled": "unlabelled"},
        (0, None),
    ),
)


DICE = ("Dice", "Dice", {"test_dice": "test", "val_dice": "validation"}, None)


@styled
def draw_curves(metrics_csv: str | os.PathLike, out_png: str | os.PathLike) -> None:
    """Losses, AUROC or Dice, reliable share, learning rate and seconds against the round.

    A column that is missing or empty is left out; a panel without any says so.
    """
    metrics = read_metrics(metrics_csv)
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        of_volumes = panel[0] == "AUROC" and segments(metrics)
        _draw_panel(axes, metrics, *(DICE if of_volumes else panel))
    save_figure(figure, out_png)


def segments(metrics: pd.DataFrame) -> bool:
    """Whether metrics.csv is that of a segmentation."""
    return "test_dice" in metrics


def _draw_panel(
    axes: Axes,
    metrics: pd.DataFrame,
    title: str,
    y_label: str,
    columns: Mapping[str, str],
    limits: tuple[float, float | None] | None,
) -> None:
    axes.set(title=title, xlabel="round", ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    marker = "o" if len(metrics) <= FEW_ROUNDS else None
    drawn = 0
    for (column, legend), color, style in zip(columns.items(), COLORS, LINE_STYLES, strict=False):
        points = metrics[["round", column]].dropna() if column in metrics else metrics.head(0)
        if points.empty:
            continue
        axes.plot("round", column, data=points, label=legend, color=color, ls=style, marker=marker)
        drawn += 1
    if not drawn:
        alone = last_value(metrics, "clients_unlabeled") == 0
        said = "no unlabelled client yet" if alone else "not recorded"
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, said, ha="center", transform=axes.transAxes, color=GREY)
        return
    if len(columns) > 1:
        axes.legend()
    axes.set_xlim(metrics["round"].min() - 0.5, metrics["round"].max() + 0.5)
    if limits:
        low, high = limits
        axes.set_ylim(low, 1.08 * axes.dataLim.ymax if high is None else high)


@styled
def draw_relation(
    matrices: Mapping[str, Sequence[Sequence[float]]],
    class_names: Sequence[str],
    out_png: str | os.PathLike,
) -> None:
    """The mean matrices of labelled and unlabelled clients and their absolute difference.

    `matrices` has `labeled_mean` and `unlabeled_mean`, each C x C with rows that sum to 1; one
    that is missing or None is drawn as an empty panel, a NaN cell as a dash. The three panels
    share one colour scale.
    """
    figure = Figure(figsize=matrix_page(class_names, 1, 3), layout="constrained")
    row = figure.subplots(1, 3, sharey=True)
    panels = matrix_triple(matrices)
    colors = matrix_colors(panels)
    missing = dict.fromkeys(MATRIX_ROWS, "no unlabelled client yet")
    if panels[0] is None:
        missing = dict.fromkeys(MATRIX_ROWS, "no labelled client") | {MATRIX_ROWS[1]: "no matrix"}
    for axes, panel, title in zip(row, panels, MATRIX_ROWS, strict=True):
        axes.set_title(title)
        draw_matrix(axes, panel, class_names, colors, missing[title])
    row[0].set_ylabel("class of the samples")
    figure.supxlabel("class of the output", fontsize=8)
    figure.colorbar(colors, ax=list(row), label="probability", shrink=0.75)
    save_figure(figure, out_png)


def rebuild_figures(run_dir: Path) -> list[Path]:
    """Draw a run's curves and relation matrices anew from its CSV files; the files written.

    The matrices are those of the last round that has both, or else of the last round; of a method
    without any there is no such figure.
    """
    curves, relation = run_dir / "figures" / "curves.png", run_dir / "figures" / "relation.png"
    draw_curves(run_dir / "metrics.csv", curves)
    rounds, class_names = read_matrices(run_dir / "matrices.csv")
    if not rounds:
        return [curves]
    complete = [number for number, found in rounds.items() if len(found) == len(SOURCES)]
    draw_relation(rounds[max(complete or rounds)], class_names, relation)
    return [curves, relation]


def compare_runs(run_dirs: Sequence[Path], out_dir: Path) -> list[Path]:
    """Curves and bars of several runs, grouped by what differs in their flags; the files written.

    The bars are each run's last evaluated round.
    """
    arguments = [read_arguments(run_dir) for run_dir in run_dirs]
    names = differing_arguments(arguments)
    # Of each setting, by seed: the folder and its rounds.
    members: dict[str, dict[object, tuple[Path, pd.DataFrame]]] = {}
    for run_dir, flags in zip(run_dirs, arguments, strict=True):
        of_seed = members.setdefault(setting_text(flags, names), {})
        seed, rounds = flags.get("seed", run_dir), read_metrics(run_dir / "metrics.csv")
        # A seed that was run again is no other sample: the longer run counts, of equals the later.
        if seed not in of_seed or len(of_seed[seed][1]) <= len(rounds):
            of_seed[seed] = (run_dir, rounds)
    # Where too much differs to be told in a legend, every setting has the name of its first run.
    told = all(len(setting) <= LONGEST_ROW for setting in members)
    groups: dict[str, list[pd.DataFrame]] = {}
    for setting, of_seed in members.items():
        first, _ = next(iter(of_seed.values()))
        name = setting if told else first.name
        name = f"{name} ({first.parent})" if name in groups else name
        groups[name] = [rounds for _, rounds in of_seed.values()]
    curves, bars = out_dir / "curves.png", out_dir / "bars.png"
    runs = [run for members in groups.values() for run in members]
    of_volumes = all(map(segments, runs))
    compared = COMPARED_VOLUMES if of_volumes else COMPARED
    panels = [CurvePanel("", column, label, groups) for column, label in compared.items()]
    draw_spread_curves(panels, curves)
    last = {
        title: {
            label: spread_of([100 * last_value(run, column) for run in runs])
            for label, runs in groups.items()
        }
        for column, title in (OVERLAPS if of_volumes else METRICS).items()
    }
    draw_bars(last, {}, "", bars)
    return [curves, bars]


def main() -> None:
    """Rebuild one run's figures, or compare several runs."""
    parser = OneLineParser(prog="python -m utils.plots", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/comparison"), help="folder for a comparison"
    )
    options = parser.parse_args()
    if len(options.runs) == 1:
        written = rebuild_figures(options.runs[0])
    else:
        written = compare_runs(options.runs, options.out)
    for path in written:
        print(path)
    if len(options.runs) > 1:
        logged = [run for run in options.runs if (run / "log.txt").exists()]
        for note in notes_on_test_data(read_logs(logged)):
            print(note)
