"""The tables of a predictions file, and the command that prints them."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.helpers import PROJECT
from tests.helpers.examples import CLASSES, example_predictions, without_class
from utils.errors import UserError
from utils.metrics.evaluation import confident_mistakes, evaluate, evaluation_tables
from utils.metrics.numbers import classification_metrics
from utils.metrics.predictions import read_predictions, write_predictions


def column(table, title):
    return [row[table.header.index(title)] for row in table.rows]


def run_metrics(*arguments):
    command = [sys.executable, "-m", "utils.metrics", *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


def test_per_class_table_counts_images_and_patients_and_agrees_with_scikit_learn():
    predictions = example_predictions()
    table = evaluation_tables(evaluate(predictions))["per_class"]
    areas, precisions = [], []
    for c in range(3):
        truth = predictions.labels == c
        areas.append(roc_auc_score(truth, predictions.probabilities[:, c]))
        precisions.append(average_precision_score(truth, predictions.probabilities[:, c]))
        assert column(table, "images")[c] == str(truth.sum())
        assert column(table, "patients")[c] == str(len(set(predictions.groups[truth])))
    assert column(table, "class") == [*CLASSES, "macro", "classes in macro"]
    assert column(table, "images")[3] == str(len(predictions.labels))
    assert column(table, "patients")[3] == "60"
    assert column(table, "AUROC") == [*(f"{v:.3f}" for v in [*areas, np.mean(areas)]), "3"]
    assert column(table, "average precision")[3] == f"{np.mean(precisions):.3f}"
    assert column(table, "draws")[:4] == ["1000"] * 4
    assert column(table, "threshold")[:3] == ["0.400"] * 3


def test_an_absent_class_is_na_with_its_count():
    predictions = example_predictions(with_patients=False)
    kept = without_class(predictions, 1)
    table = evaluation_tables(evaluate(kept))["per_class"]
    assert "patients" not in table.header
    assert column(table, "images")[1] == "0"
    for title in ("AUROC", "95% interval", "average precision", "sensitivity"):
        assert column(table, title)[1] == "NA"
    assert column(table, "AUROC")[4] == "2"
    assert column(table, "specificity")[4] == "3"


def test_mistakes_are_the_wrong_ones_the_most_confident_first():
    predictions = example_predictions()._replace(
        labels=np.array([0, 1, 0, 0]),
        probabilities=np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.45, 0.55]]),
        names=["a", "b", "c", "d"],
        class_names=("left", "right"),
        groups=np.array(["p", "p", "q", "r"]),
    )
    assert confident_mistakes(predictions).tolist() == [2, 1, 3]
    assert confident_mistakes(predictions, 1).tolist() == [2]
    table = evaluation_tables(evaluate(predictions), with_ids=True)["mistakes"]
    assert table.header[:2] == ["ImageID", "PatientID"]
    assert table.rows[0] == ["c", "q", "left", "0.100", "right", "0.900"]
    unnamed = evaluation_tables(evaluate(predictions))["mistakes"]
    assert unnamed.rows[0] == ["c", "left", "0.100", "right", "0.900"]


def test_sites_are_scored_apart_at_the_same_thresholds():
    predictions = example_predictions()
    assert "sites" not in evaluation_tables(evaluate(predictions))
    sites = np.where(np.arange(len(predictions.labels)) % 3 == 0, "north", "south")
    table = evaluation_tables(evaluate(predictions._replace(sites=sites)))["sites"]
    assert table.header[:4] == ["site", "images", "top-1 accuracy", "AUROC"]
    for row, site in zip(table.rows, ("north", "south"), strict=True):
        of_site = sites == site
        found = classification_metrics(
            predictions.labels[of_site], predictions.probabilities[of_site], 0.4
        )
        assert row[:2] == [site, str(of_site.sum())]
        assert row[2:4] == [f"{found.top1_accuracy:.3f}", f"{found.macro('auroc'):.3f}"]


def test_youden_is_chosen_on_validation_never_on_test():
    test, validation = example_predictions(seed=0), example_predictions(seed=1)
    evaluation = evaluate(test, "youden", validation)
    again = evaluate(test._replace(labels=(test.labels + 1) % 3), "youden", validation)
    assert np.array_equal(evaluation.metrics.thresholds, again.metrics.thresholds)
    with pytest.raises(UserError, match="--predictions_val"):
        evaluate(test, "youden")
    with pytest.raises(UserError, match="use one checkpoint for both"):
        evaluate(test, "youden", example_predictions(class_names=["a", "b", "c"]))


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "nan", "high"])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(UserError, match=f"--threshold {threshold}"):
        evaluate(example_predictions(), threshold)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    validation = example_predictions(seed=1)
    validation = validation._replace(names=[f"val_{name}" for name in validation.names])
    for name, predictions in (("test", example_predictions(seed=0)), ("val", validation)):
        write_predictions(folder / f"{name}.csv", *predictions[:5])
    return folder


def test_the_command_prints_and_writes_the_same_tables_again(files, tmp_path):
    arguments = [files / "test.csv", "--threshold", "youden", "--predictions_val"]
    arguments += [files / "val.csv", "--sweep", "--out", tmp_path / "tables"]
    result = run_metrics(*arguments)
    assert result.returncode == 0, result.stderr
    assert "Youden's J per class, chosen on" in result.stdout
    assert "optimistic" in result.stdout
    test, validation = (read_predictions(files / name) for name in ("test.csv", "val.csv"))
    tables = evaluation_tables(evaluate(test, "youden", validation), with_sweep=True)
    written = {path.name for path in (tmp_path / "tables").iterdir()}
    assert written == {stem + suffix for stem in tables for suffix in (".csv", ".md", ".tex")}
    for stem, table in tables.items():
        with open(tmp_path / "tables" / f"{stem}.csv", newline="") as file:
            assert list(csv.reader(file)) == [table.header, *table.rows]
        for row in table.rows:
            assert row[1] in result.stdout
    before = {path: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert run_metrics(*arguments).stdout == result.stdout
    assert before == {path: path.read_bytes() for path in (tmp_path / "tables").iterdir()}


def test_the_command_ends_on_a_mistake_with_one_line(files):
    test = files / "test.csv"
    for arguments, message in (
        ([files / "missing.csv"], "missing.csv"),
        ([test, "--threshold", "youden"], "--predictions_val"),
        ([test, "--threshold", "youden", "--predictions_val", test], "--allow_overlap"),
    ):
        result = run_metrics(*arguments)
        assert message in result.stderr
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
