"""Figures over several runs: curves with the seeds' spread, bars, sweeps, matrices over rounds."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.plots.style import (
    COLORS,
    LINE_STYLES,
    MATRIX_ROWS,
    draw_matrix,
    label,
    matrix_colors,
    matrix_page,
    matrix_triple,
    save_figure,
    styled,
)

LONGEST_LEGEND, LONGEST_ROW = 60, 40  # letters
DODGE = 0.08  # of the distance of two values of x, between lines that would hide each other

REFERENCE_MARKER = {
    "marker": "D",
    "color": "black",
    "markerfacecolor": "white",
    "linestyle": "none",
}


class Spread(NamedTuple):
    """Mean and sample standard deviation over `runs` runs; `deviation` is NaN for one run."""

    mean: float
    deviation: float
    runs: int


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and deviation of the values that are not NaN; NaN where there is none."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not known.size:
        return Spread(math.nan, math.nan, 0)
    deviation = known.std(ddof=1) if known.size > 1 else math.nan
    return Spread(float(known.mean()), float(deviation), known.size)


def seed_spread(runs: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """`round`, `mean`, `deviation` of `column` over the runs, at the rounds that all runs have.

    Each run is a metrics.csv frame; a run without the column or without a value is left out.
    The deviation is that of the sample (n - 1), NaN for a single run.
    """
    present = [run.set_index("round")[column].dropna() for run in runs if column in run]
    present = [series for series in present if not series.empty]
    if not present:
        return pd.DataFrame(columns=["round", "mean", "deviation"], dtype=float)
    table = pd.concat(present, axis=1, join="inner").sort_index()
    spread = {"round": table.index, "mean": table.mean(axis=1), "deviation": table.std(axis=1)}
    return pd.DataFrame(spread).reset_index(drop=True)


class CurvePanel(NamedTuple):
    """One panel of curves: a column of metrics.csv for several groups of runs (frames)."""

    title: str
    column: str
    label: str  # of the y axis
    groups: Mapping[str, Sequence[pd.DataFrame]]


@styled
def draw_spread_curves(panels: Sequence[CurvePanel], out_png: str | os.PathLike) -> None:
    """Panels, two in a row; a group is the mean over its runs with a band of mean ± deviation."""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    most = max(len(panel.groups) for panel in panels)
    size = (max(6.0, 4.6 * columns), rows * (3.9 + 0.25 * most))
    figure = Figure(figsize=size, layout="constrained")
    same_scale = len({panel.column for panel in panels}) == 1
    grid = figure.subplots(rows, columns, squeeze=False, sharey=same_scale).ravel()
    # Panels of the same groups have one legend, below them all.
    told = {tuple((name, len(runs)) for name, runs in panel.groups.items()) for panel in panels}
    shared = len(panels) > 1 and len(told) == 1
    for axes, panel in zip(grid, panels, strict=False):
        axes.set(title=label(panel.title, 60), xlabel="round", ylabel=panel.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
        for number, (name, runs) in enumerate(panel.groups.items()):
            legend = f"{label(name, LONGEST_LEGEND)} (n = {len(runs)})"
            _draw_band(axes, seed_spread(runs, panel.column), legend, number)
        if not shared:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.16))
    if shared:
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    save_figure(figure, out_png)


def _draw_band(axes: Axes, spread: pd.DataFrame, legend: str, number: int) -> None:
    color = COLORS[number % len(COLORS)]
    style = LINE_STYLES[(number + 2 * (number // len(COLORS))) % len(LINE_STYLES)]
    marker = "." if len(spread) <= 25 else None
    axes.plot("round", "mean", data=spread, label=legend, color=color, ls=style, marker=marker)
    low, high = spread["mean"] - spread["deviation"], spread["mean"] + spread["deviation"]
    axes.fill_between(spread["round"], low, high, color=color, alpha=0.18, linewidth=0)


@styled
def draw_bars(
    bars: Mapping[str, Mapping[str, Spread]],
    references: Mapping[str, Mapping[str, float]],
    reference_name: str,
    out_png: str | os.PathLike,
    ours: str = "ours",
) -> None:
    """Horizontal bars in per cent, one panel per metric: {metric: {row label: Spread}}.

    `references` has the published number of the rows that have one, in the same layout; they
    stand as diamonds below our bars. `ours` names whose numbers the bars are.
    """
    rows = list(next(iter(bars.values())))
    height = 1.3 + 0.42 * len(rows)
    figure = Figure(figsize=(1.9 * len(bars) + 2.2, height), layout="constrained")
    panels = figure.subplots(1, len(bars), sharey=True, squeeze=False)[0]
    for axes, (metric, spreads) in zip(panels, bars.items(), strict=True):
        _draw_bar_panel(axes, metric, [spreads[row] for row in rows], ours)
        published = references.get(metric, {})
        places = {row: place + 0.32 for place, row in enumerate(rows) if row in published}
        points = [(published[row], place) for row, place in places.items()]
        if points:
            axes.plot(*zip(*points, strict=True), label=reference_name, **REFERENCE_MARKER)
    panels[0].set_yticks(range(len(rows)), [label(row, LONGEST_ROW) for row in rows])
    # Downwards, and below the last row's bar there is room for its number.
    panels[0].set_ylim(len(rows) - 0.25, -0.55)
    handles = {name: handle for axes in panels for handle, name in _legend(axes)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    save_figure(figure, out_png)


def _legend(axes: Axes) -> list[tuple]:
    return list(zip(*axes.get_legend_handles_labels(), strict=True))


def _draw_bar_panel(axes: Axes, metric: str, rows: Sequence[Spread], ours: str) -> None:
    places = np.arange(len(rows)) - 0.1
    means = [row.mean for row in rows]
    deviations = [row.deviation for row in rows]  # NaN, of a single seed, draws no error bar
    seeds = "one seed" if np.isnan(deviations).all() else "mean ± sd over seeds"
    bar = {"height": 0.4, "color": COLORS[5], "label": f"{ours}, {seeds}", "capsize": 3}
    axes.barh(places, means, xerr=deviations, **bar)
    for place, row in zip(places, rows, strict=True):
        text = "NA" if math.isnan(row.mean) else f"{row.mean:.1f}"
        text += "" if math.isnan(row.deviation) else f" ± {row.deviation:.1f}"
        axes.text(1, place + 0.42, text, va="center", ha="left", fontsize=7)
    axes.set(title=metric, xlabel="%", xlim=(0, 103))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


@styled
def draw_sweep(
    x_label: str,
    lines: Mapping[str, Mapping[float, Spread]],
    levels: Mapping[str, float],
    references: Mapping[str, Mapping[float, float]],
    out_png: str | os.PathLike,
    ours: str = "ours",
    y_label: str = "test AUROC (%)",
) -> None:
    """A score against what a sweep varies: {line: {x: Spread}} with error bars, the values of x at
    equal distances.

    `levels` are horizontal lines (the upper bound); `references` are published points of the
    line with the same name, drawn as diamonds in its colour. Lines stand a little beside each
    other, so that their error bars do. `ours` names whose numbers the lines are.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    handles = []
    known = {x for points in (*lines.values(), *references.values()) for x in points}
    places = {x: place for place, x in enumerate(sorted(known))}
    for number, (name, points) in enumerate(lines.items()):
        color, style = COLORS[number % len(COLORS)], LINE_STYLES[number % len(LINE_STYLES)]
        x = sorted(points)
        means = [points[value].mean for value in x]
        deviations = [points[value].deviation for value in x]
        drawn = {"color": color, "linestyle": style, "marker": "o", "capsize": 4}
        beside = [places[value] + DODGE * (number - (len(lines) - 1) / 2) for value in x]
        legend = f"{label(name, LONGEST_LEGEND)}, {ours}"
        handles.append(axes.errorbar(beside, means, yerr=deviations, label=legend, **drawn))
        if published := references.get(name):
            marker = REFERENCE_MARKER | {"color": color, "label": f"{name}, paper"}
            at = [places[value] for value in published]
            handles += axes.plot(at, list(published.values()), **marker)
    for number, (name, level) in enumerate(levels.items()):
        style = LINE_STYLES[(number + 2) % len(LINE_STYLES)]
        handles.append(axes.axhline(level, color="black", linestyle=style, label=name))
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_xticks(list(places.values()), [f"{value:g}" for value in places])
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    save_figure(figure, out_png)


@styled
def draw_relation_rounds(
    methods: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]],
    class_names: Sequence[str],
    out_png: str | os.PathLike,
) -> None:
    """Figure 2(a): {method: {round: matrices}}; a block of columns per method, a column per round.

    The rows are the labelled clients' mean matrix, the unlabelled clients' and their absolute
    difference; everything shares one colour scale.
    """
    columns = [(name, number) for name, rounds in methods.items() for number in sorted(rounds)]
    triples = [matrix_triple(methods[name][number]) for name, number in columns]
    colors = matrix_colors([panel for triple in triples for panel in triple])
    figure = Figure(figsize=matrix_page(class_names, 3, len(columns)), layout="constrained")
    grid = figure.subplots(3, len(columns), sharex=True, sharey=True, squeeze=False)
    for column, ((name, number), triple) in enumerate(zip(columns, triples, strict=True)):
        grid[0, column].set_title(f"{label(name)}\nround {number}")
        for axes, panel in zip(grid[:, column], triple, strict=True):
            draw_matrix(axes, panel, class_names, colors)
    for axes, title in zip(grid[:, 0], MATRIX_ROWS, strict=True):
        axes.set_ylabel(title)
    figure.colorbar(colors, ax=grid.ravel().tolist(), label="probability", shrink=0.5)
    save_figure(figure, out_png)
