"""Runs on volumes in tables: from their logs, from their scores, and row against row."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

import reproduce
from options import args_parser
from paper.comparison import SettingRuns
from paper.published import ITEMS
from paper.rates import write_rates
from paper.volumes import volume_means, write_volume_item
from tests.helpers.volumes import write_prepared
from utils.errors import UserError
from utils.metrics.volumes import VOLUME_METRICS, VolumeScores
from utils.plots import comparison as comparison_plots
from utils.plots import runs as plots
from utils.report.volumes import read_scores, write_scores
from utils.tables.tables import groups_table, read_logs, rounds_table


def test_tables_of_a_log_have_dice_where_there_is_no_auroc(run):
    runs = read_logs([run[0]])
    table = rounds_table(runs)
    assert table.header[-4:] == ["Dice", "Jaccard", "HD95 (mm)", "ASD (mm)"]
    assert "AUROC" not in table.header and "highest test Dice" in table.title
    rounds = pd.read_csv(run[0] / "metrics.csv")
    last, best = table.rows
    assert float(last[-4]) == pytest.approx(rounds["test_dice"].iloc[-1], abs=1e-6)
    assert float(best[-4]) == pytest.approx(rounds["test_dice"].max(), abs=1e-6)
    assert groups_table(runs)[0].header[-4:] == table.header[-4:]
    assert runs[0].run.lines_not_understood == 0


def test_curves_show_dice(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    plots.draw_curves(run[0] / "metrics.csv", tmp_path / "curves.png")
    panels = {axes.get_title(): axes for axes in drawn[0].axes}
    assert "AUROC" not in panels
    rounds = pd.read_csv(run[0] / "metrics.csv")
    for line, column in zip(panels["Dice"].lines, ("test_dice", "val_dice"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), rounds[column])


def scored(folder, dice: np.ndarray, names=None):
    """A finished run's folder with these Dice values, (volumes, structures)."""
    folder.mkdir(parents=True)
    values = {name: dice if name == "dice" else np.ones_like(dice) for name in VOLUME_METRICS}
    names = names or [f"v{number}" for number in range(len(dice))]
    write_scores(
        folder / "scores_test.csv", VolumeScores(names, ("front", "back"), values, None, None)
    )
    (folder / "metrics.csv").write_text("round,test_dice,seconds_round\n0,0.1,5\n1,0.2,6\n")
    (folder / "env.json").write_text('{"commit": "abc", "devices": ["cpu"], "peak_memory_mb": 812}')
    (folder / "args.json").write_text("{}")
    return folder


LEVELS = {"fedavg-10-0": 0.9, "fedavg-2-0": 0.7, "fed_consistency-2-8": 0.75, "fedirm-2-8": 0.8}


@pytest.fixture
def groups(tmp_path):
    """Four rows of two seeds; FedIRM half way between the bounds, self-training missing."""
    generator = np.random.default_rng(0)
    made = []
    for setting in ITEMS["hippocampus"].settings:
        folders = {}
        for seed in (1, 2):
            folder = tmp_path / f"{setting.name}-seed{seed}"
            folders[seed] = folder
            if setting.name in LEVELS:
                noise = generator.normal(0, 0.01, (10, 2))
                scored(folder, LEVELS[setting.name] + noise - noise.mean())
        made.append(SettingRuns(setting, folders))
    return made


def test_every_number_of_the_table_follows_from_the_scores(groups, tmp_path):
    item = ITEMS["hippocampus"]
    text, written = write_volume_item(item, groups, "hippocampus", tmp_path / "results" / "h")
    assert all(path.exists() for path in written) and len(written) == 7
    rows = {
        cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in text.split("\n"))
    }
    assert rows["FedIRM 2/8"][1:3] == ["2", "80.00 ± 0.00"]
    assert rows["FedAvg 10/0"][2] == "90.00 ± 0.00" and "Fed-SelfTraining 2/8" not in rows
    assert rows["FedIRM 2/8"][-2:] == ["0:00:11", "0.8 GB"]
    assert "FedIRM 2/8 closes 50% (seed 1), 50% (seed 2) of the Dice gap" in text
    assert "Fed-Consistency 2/8 closes 25% (seed 1)" in text


def test_pairs_are_wilcoxons_test_over_the_volumes_of_a_seed(groups, tmp_path):
    write_volume_item(ITEMS["hippocampus"], groups, "hippocampus", tmp_path / "results" / "h")
    pairs = pd.read_csv(tmp_path / "results" / "h_pairs.csv")
    assert len(pairs) == 9  # three other rows, each of two seeds and over them
    ours, theirs = (
        np.array(list(volume_means(read_scores(tmp_path / name / "scores_test.csv")).values()))
        for name in ("fedirm-2-8-seed2", "fed_consistency-2-8-seed2")
    )
    row = pairs[(pairs["seed"] == "2") & (pairs["less"] == "Fed-Consistency 2/8")].iloc[0]
    assert row["mean difference in Dice"] == pytest.approx(5)
    assert row["better on"] == f"{(ours > theirs).sum()} of 10"
    assert row["p"] == pytest.approx(wilcoxon(ours - theirs).pvalue, rel=0.05)
    over = pairs[pairs["seed"] == "all"].iloc[0]
    assert over["less"] == "FedAvg 10/0" and over["better on"] == "0 of 2 seeds"
    assert over["mean difference in Dice"] == pytest.approx(-10)


def test_rows_tested_on_other_volumes_are_not_compared(groups, tmp_path):
    folder = tmp_path / "fedirm-2-8-seed1"
    shutil.rmtree(folder)
    scored(folder, np.full((10, 2), 0.8), [f"w{number}" for number in range(10)])
    with pytest.raises(UserError, match="tested on different volumes"):
        write_volume_item(ITEMS["hippocampus"], groups, "hippocampus", tmp_path / "results" / "h")


def test_a_volume_of_which_one_row_has_no_number_is_left_out_of_a_pair(groups, tmp_path):
    folder = tmp_path / "fedirm-2-8-seed1"
    shutil.rmtree(folder)
    scored(folder, np.vstack([np.full((9, 2), 0.8), np.full((1, 2), np.nan)]))
    write_volume_item(ITEMS["hippocampus"], groups, "hippocampus", tmp_path / "results" / "h")
    pairs = pd.read_csv(tmp_path / "results" / "h_pairs.csv")
    assert pairs[pairs["seed"] == "1"]["volumes"].tolist() == [9] * 3


def test_a_structure_without_a_number_counts_in_no_volumes_mean():
    values = {"dice": np.array([[0.5, np.nan], [np.nan, np.nan], [0.2, 0.4]])}
    scores = VolumeScores(["a", "b", "c"], ("front", "back"), values, None, None)
    assert volume_means(scores) == {"a": 0.5, "c": pytest.approx(0.3)}


def test_one_command_plans_five_rows_and_three_seeds(tmp_path, capsys, monkeypatch):
    prepared = write_prepared(tmp_path / "volumes", 34, patients=True)  # enough for ten clients
    words = ["reproduce.py", "hippocampus", "--volumes", prepared, "--runs", tmp_path, "--dry_run"]
    monkeypatch.setattr("sys.argv", list(map(str, words)))
    reproduce.main()
    said = capsys.readouterr().out
    assert "0 of 15 runs finished, 15 to do" in said
    assert f"{tmp_path}/hippocampus/fedavg-10-0-seed1337: missing" in said
    monkeypatch.setattr("sys.argv", [*map(str, words), "--report", "best_val"])
    with pytest.raises(UserError, match="the last round's weights are told"):
        reproduce.main()


def test_a_run_records_its_peak_of_memory(run):
    environment = json.loads((run[0] / "env.json").read_text())
    assert 100 < environment["peak_memory_mb"] < 100_000
    assert f"peak of main memory: {environment['peak_memory_mb']} MB" in run[1].said
    assert environment["packages"]["monai"] and environment["packages"]["nibabel"]


def test_labelled_volumes_are_compared_within_their_number(tmp_path, monkeypatch):
    """Rows of other flags are no rivals; a line of the figure is a method's over the numbers."""
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    item = ITEMS["hippocampus_labels"]
    levels = {"fedavg": 0.6, "fed_consistency": 0.7, "fedirm": 0.8}
    groups = []
    for setting in item.settings:
        dice = levels[setting.method] + setting.number("labeled_volumes") / 100
        scored(tmp_path / setting.name, np.full((3, 2), dice))
        groups.append(SettingRuns(setting, {7: tmp_path / setting.name}))
    write_volume_item(item, groups, "hippocampus", tmp_path / "results" / "h")
    pairs = pd.read_csv(tmp_path / "results" / "h_pairs.csv")
    assert list(pairs["row"]) == [f"FedIRM 2/8, {n}" for n in (2, 4, 8, 16) for _ in range(2)]
    assert [cell.rpartition(", ") for cell in pairs["less"]] == [
        (name, ", ", str(n))
        for n in (2, 4, 8, 16)
        for name in ("Fed-Consistency 2/8", "FedAvg 2/0")
    ]
    sweep = drawn[0].axes[0]
    assert [text.get_text() for text in sweep.get_xticklabels()] == ["2", "4", "8", "16"]
    lines = {
        text.get_text(): list(container.lines[0].get_ydata())
        for container, text in zip(sweep.containers, drawn[0].legends[0].get_texts(), strict=True)
    }
    assert lines["FedIRM, ours"] == pytest.approx([82, 84, 88, 96])
    assert lines["FedAvg, ours"] == pytest.approx([62, 64, 68, 76])


def test_few_labelled_volumes_are_trained_on_as_long_as_many():
    """Steps of batches of 4, twice a round, before the others join; then 25 rounds of all."""
    for setting in ITEMS["hippocampus_labels"].settings:
        flags = ["--preset", "hippocampus", "--volumes", "unread", *setting.flags(1337)]
        args = args_parser(flags)
        alone = (args.join_epoch + 1) // args.local_ep
        steps_of_a_round = {2: 2, 4: 2, 8: 4, 16: 8}[args.labeled_volumes]
        assert alone * steps_of_a_round == 400 and args.rounds == alone + 25
    preset = args_parser(["--preset", "hippocampus", "--volumes", "unread"])
    assert args.labeled_volumes == 16
    assert all(
        getattr(args, name) == getattr(preset, name)
        for name in ("rounds", "join_epoch", "consistency_rampup")
    )


def test_learning_rates_of_volumes_are_chosen_by_dice_phase_by_phase(tmp_path):
    """Rounds 0 to 5 are before the join, 6 to 9 after it: means of .2 to .5 and of .6 to .9."""
    item, groups = ITEMS["hippocampus_rates"], []
    for number, setting in enumerate(item.settings):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [f"{round},{round / 10 - number / 100}\n" for round in range(10)]
        (folder / "metrics.csv").write_text("round,val_dice\n" + "".join(rows))
        flags = {"task": "segmentation", "local_ep": 2, "join_epoch": 11}
        (folder / "args.json").write_text(json.dumps(flags))
        groups.append(SettingRuns(setting, {1: folder}))
    text, written = write_rates(item, groups, "hippocampus", tmp_path / "rates")
    table = pd.read_csv(written[1])
    assert list(table["validation Dice"].round(6)) == [35, 34, 33, 72, 71, 70]
    assert list(table["value"]) == [0.001, 0.002, 0.004, 0.0001, 0.0003, 0.001]
    assert "Best: --base_lr 0.001." in text and "Best: --labeled_lr_late 0.0001 (the" in text
