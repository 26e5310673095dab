"""Figures: what is drawn is what the numbers say, and can be read."""

import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

from tests.helpers import PROJECT
from tests.helpers.drawn_runs import make_run, texts
from tests.helpers.figures import assert_readable, words_on_page
from utils.plots.comparison import (
    CurvePanel,
    Spread,
    draw_bars,
    draw_relation_rounds,
    draw_spread_curves,
    draw_sweep,
    seed_spread,
    spread_of,
)
from utils.plots.runs import (
    draw_curves,
    draw_relation,
)
from utils.plots.style import STYLE, label


def test_curves_are_the_columns_of_the_csv(tmp_path, drawn):
    run = make_run(tmp_path / "a")
    draw_curves(run / "metrics.csv", "curves.png")
    panels = {axes.get_title(): axes for axes in drawn["curves.png"].axes}
    metrics = pd.read_csv(run / "metrics.csv")
    loss, supervised = panels["Training loss"].lines
    np.testing.assert_allclose(loss.get_ydata(), metrics["loss"], rtol=1e-12)
    np.testing.assert_allclose(supervised.get_ydata(), metrics["supervised_loss"], rtol=1e-12)
    (auroc,) = panels["AUROC"].lines
    assert list(auroc.get_xdata()) == [0, 2, 4]
    assert "not recorded" not in texts(panels["AUROC"])
    assert all(axes.get_xlabel() == "round" and axes.get_ylabel() for axes in panels.values())


def test_curves_without_columns_say_so(tmp_path, drawn):
    (tmp_path / "metrics.csv").write_text("round,loss,reliable_share\n0,1.5,\n1,1.25,\n")
    draw_curves(tmp_path / "metrics.csv", "curves.png")
    panels = {axes.get_title(): axes for axes in drawn["curves.png"].axes}
    assert [len(axes.lines) for axes in panels.values()] == [1, 0, 0, 0, 0, 0]
    assert texts(panels["Pseudo labels and ramp-up"]) == ["not recorded"]
    (tmp_path / "metrics.csv").write_text("round,loss,clients_unlabeled\n0,1.5,0\n")
    draw_curves(tmp_path / "metrics.csv", "curves.png")
    panels = {axes.get_title(): axes for axes in drawn["curves.png"].axes}
    assert texts(panels["Pseudo labels and ramp-up"]) == ["no unlabelled client yet"]


def test_relation_shows_each_cell_and_one_colour_scale(drawn):
    labeled, unlabeled = [[0.9, 0.1], [0.25, 0.75]], [[0.5, 0.5], [0.25, np.nan]]
    matrices = {"labeled_mean": labeled, "unlabeled_mean": unlabeled}
    draw_relation(matrices, ["a", "b"], "relation.png")
    *panels, colorbar = drawn["relation.png"].axes
    assert [texts(axes) for axes in panels] == [
        ["0.90", "0.10", "0.25", "0.75"],
        ["0.50", "0.50", "0.25", "–"],
        ["0.40", "0.40", "0.00", "–"],
    ]
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 0.9)}
    assert colorbar.get_ylabel() == "probability"
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a", "b"]


def test_relation_of_a_round_without_unlabelled_clients(drawn):
    draw_relation({"labeled_mean": np.eye(2), "unlabeled_mean": None}, ["a", "b"], "r.png")
    labeled, unlabeled, difference = drawn["r.png"].axes[:3]
    assert len(texts(labeled)) == 4
    assert texts(unlabeled) == texts(difference) == ["no unlabelled client yet"]


# 72 letters that differ in the middle and at their end.
LONG = [
    f"actinic keratoses {n:02} and intraepithelial carcinoma of the {'x' * 9} $a_{n}^2$"
    for n in range(14)
]


@pytest.mark.parametrize("count", [2, 5, 14])
def test_a_relation_matrix_of_long_names_can_be_read(drawn, count):
    matrix = np.random.default_rng(0).dirichlet(np.ones(count), count)
    draw_relation({"labeled_mean": matrix, "unlabeled_mean": None}, LONG[:count], "r.png")
    with matplotlib.rc_context(STYLE):
        figure = drawn["r.png"]
        names = [name.get_text() for name in figure.axes[0].get_yticklabels()]
        assert len(set(names)) == count and max(map(len, names)) == 24
        assert_readable(figure)
    cells = {text.get_fontsize() for text in figure.axes[0].texts}
    assert min(cells) >= 5.5


def test_no_value_of_a_bar_stands_over_the_axis(drawn):
    values = dict(zip(LONG[:3], (0.5, 99.9, 50.0), strict=True))
    rows = {name: Spread(value, 1.0, 3) for name, value in values.items()}
    draw_bars({"AUROC": rows, "accuracy": rows}, {}, "paper", "b.png", "ours, skin")
    with matplotlib.rc_context(STYLE):
        assert_readable(drawn["b.png"])
        figure = drawn["b.png"]
        floor = figure.axes[0].get_window_extent().y0
        for text, box in words_on_page(figure):
            if "±" in text.get_text() and "seeds" not in text.get_text():
                assert box.y0 > floor
    (handle,) = figure.legends[0].get_texts()
    assert handle.get_text() == "ours, skin, mean ± sd over seeds"


def test_lines_with_the_same_numbers_stand_beside_each_other(drawn):
    points = {2: Spread(80.0, 1.0, 3), 8: Spread(90.0, 1.0, 3)}
    draw_sweep("clients", {"one": points, "two": points}, {}, {}, "w.png", "ours, skin")
    axes = drawn["w.png"].axes[0]
    first, second = (container.lines[0].get_xdata() for container in axes.containers)
    assert np.abs(np.subtract(first, second)) == pytest.approx([0.08, 0.08])
    assert [text.get_text() for text in drawn["w.png"].legends[0].get_texts()] == [
        "one, ours, skin",
        "two, ours, skin",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("a" * 12 + "b" * 13, "a" * 12 + "\u2026" + "b" * 11),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_a_name_in_a_figure_keeps_both_its_ends(text, expected):
    assert label(text) == expected


def test_spread_over_seeds_by_hand():
    first = pd.DataFrame({"round": [0, 1, 2], "auroc": [0.5, np.nan, 0.7]})
    second = pd.DataFrame({"round": [0, 2, 3], "auroc": [0.7, 0.8, 0.9]})
    spread = seed_spread([first, second, pd.DataFrame({"round": [0]})], "auroc")
    assert list(spread["round"]) == [0, 2]
    np.testing.assert_allclose(spread["mean"], [0.6, 0.75])
    np.testing.assert_allclose(spread["deviation"], np.array([0.1, 0.05]) * np.sqrt(2))
    assert seed_spread([first], "auroc")["deviation"].isna().all()
    assert seed_spread([first], "f1").empty


def test_spread_of_values():
    assert spread_of([1.0, 3.0, np.nan]) == Spread(2.0, pytest.approx(np.sqrt(2)), 2)
    assert np.isnan(spread_of([4.0]).deviation) and spread_of([np.nan]).runs == 0


def test_spread_curves_draw_mean_and_band(drawn):
    runs = [pd.DataFrame({"round": [0, 1], "x": values}) for values in ([1.0, 2.0], [3.0, 2.0])]
    panels = [CurvePanel("t", "x", "y", {"A": runs, "B": runs[:1]}) for _ in range(3)]
    draw_spread_curves(panels, "s.png")
    axes = drawn["s.png"].axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 2.0], [1.0, 2.0]]
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(2 - np.sqrt(2))
    # The panels have one legend, below them.
    legend = [text.get_text() for text in drawn["s.png"].legends[0].get_texts()]
    assert legend == ["A (n = 2)", "B (n = 1)"] and axes.get_legend() is None
    panels[2] = CurvePanel("t", "x", "y", {"A": runs})
    draw_spread_curves(panels, "t.png")
    legends = [axes.get_legend().get_texts() for axes in drawn["t.png"].axes[:3]]
    assert [len(texts) for texts in legends] == [2, 2, 1] and not drawn["t.png"].legends


def test_bars_have_our_means_and_the_published_points(drawn):
    bars = {"AUROC": {"x": Spread(80.0, 1.5, 3), "y": Spread(np.nan, np.nan, 0)}}
    draw_bars(bars, {"AUROC": {"y": 75.0}}, "paper", "b.png")
    (axes,) = drawn["b.png"].axes
    assert [bar.get_width() for bar in axes.patches][0] == 80.0
    assert texts(axes) == ["80.0 ± 1.5", "NA"]
    points = [line for line in axes.lines if line.get_label() == "paper"]
    assert list(points[0].get_xdata()) == [75.0]
    assert bar_labels(axes) == ["ours, mean ± sd over seeds"]


def test_bars_of_one_seed_have_no_error_bar_and_do_not_speak_of_seeds(drawn):
    draw_bars({"AUROC": {"x": Spread(80.0, np.nan, 1)}}, {}, "paper", "b.png")
    (axes,) = drawn["b.png"].axes
    (bars,) = axes.collections
    assert np.isnan(bars.get_paths()[0].vertices).any()
    assert texts(axes) == ["80.0"]
    assert bar_labels(axes) == ["ours, one seed"]


def bar_labels(axes):
    return [name for name in axes.get_legend_handles_labels()[1] if name != "paper"]


def test_sweep_has_lines_levels_and_published_points(drawn):
    lines = {"FedIRM": {2: Spread(85.0, 1.0, 3), 1: Spread(80.0, 2.0, 3)}}
    draw_sweep("clients", lines, {"upper bound": 90.0}, {"FedIRM": {2: 87.56}}, "w.png")
    (axes,) = drawn["w.png"].axes
    by_label = {line.get_label(): line for line in axes.lines}
    assert list(by_label["FedIRM, paper"].get_ydata()) == [87.56]
    assert list(by_label["upper bound"].get_ydata()) == [90.0, 90.0]
    assert any(list(line.get_ydata()) == [80.0, 85.0] for line in axes.lines)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2"]


def test_every_level_of_a_sweep_is_drawn_in_a_style_of_its_own(drawn):
    """Two bounds, each ours and the paper's."""
    levels = {"2/0, ours": 82.0, "2/0, paper": 83.4, "10/0, ours": 89.0, "10/0, paper": 90.5}
    draw_sweep("times", {"FedIRM": {1.0: Spread(85.0, 1.0, 3)}}, levels, {}, "w.png")
    (axes,) = drawn["w.png"].axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in levels}
    assert {name: line.get_ydata()[0] for name, line in lines.items()} == levels
    assert len({line.get_linestyle() for line in lines.values()}) == len(levels)


def test_values_of_a_sweep_stand_at_equal_distances(drawn):
    points = {x: Spread(80.0, 1.0, 3) for x in (16.0, 1.0, 4.0)}
    draw_sweep("times", {"FedIRM": points}, {}, {"FedIRM": {4.0: 87.0}}, "w.png")
    (axes,) = drawn["w.png"].axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4", "16"]
    assert list(axes.get_xticks()) == [0, 1, 2]
    (paper,) = (line for line in axes.lines if line.get_label() == "FedIRM, paper")
    assert list(paper.get_xdata()) == [1]


def test_relation_rounds_are_a_grid(drawn):
    matrices = {"labeled_mean": np.eye(2), "unlabeled_mean": np.full((2, 2), 0.5)}
    methods = {"with": {1: matrices, 30: matrices}, "without": {1: matrices}}
    draw_relation_rounds(methods, ["a", "b"], "m.png")
    *panels, _ = drawn["m.png"].axes
    assert len(panels) == 9
    titles = [axes.get_title() for axes in panels[:3]]
    assert titles == ["with\nround 1", "with\nround 30", "without\nround 1"]
    assert texts(panels[-1]) == ["0.50"] * 4


def test_no_global_drawing_state():
    code = (
        "import sys, utils.plots.runs, utils.plots.comparison\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
