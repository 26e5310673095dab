"""The report of a run: what it says, and that it rebuilds from its own files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import PROJECT
from tests.helpers.examples import example_predictions, without_class
from utils.errors import UserError
from utils.report.page import ITEMS, rebuild_report, write_report

FACTS = {"checkpoint": "epoch_7.pth", "architecture": "DenseNet121", "preprocessing": "64 pixels"}


def picture(index):
    return np.full((16, 16), index % 256, np.uint8)


def files_below(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "example"
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"rounds": 8, "resume": None, "gpu": "0,1"}))
    (folder / "env.json").write_text(json.dumps({"torch": "2.11.0"}))
    write_report(
        folder,
        example_predictions(seed=0),
        "youden",
        example_predictions(seed=1),
        True,
        FACTS,
        picture,
    )
    return folder


def test_the_report_ties_together_what_the_folder_holds(run_folder):
    report = (run_folder / "REPORT.md").read_text()
    assert report.startswith("# Evaluation of example\n")
    for stem in ("per_class", "overall", "confusion", "mistakes", "threshold_sweep"):
        assert (run_folder / "tables" / f"{stem}.md").read_text() in report
    for path in (run_folder / "figures").iterdir():
        assert f"](figures/{path.name})" in report
    assert "Not for clinical use" in report
    assert "| rounds | 8 |" in report
    assert "| resume | null |" in report
    assert "| torch | 2.11.0 |" in report
    assert "- **Preprocessing**: 64 pixels" in report
    assert "Youden's J per class, chosen on" in report


def test_the_checklist_has_every_item_answered_or_left_to_the_author(run_folder):
    report = (run_folder / "REPORT.md").read_text()
    lines = report[report.index("## Checklist") :].splitlines()[4:]
    assert len(ITEMS) == len(lines) == 44
    answers = [line.strip("| ").split(" | ") for line in lines]
    assert [int(number) for number, _, _ in answers] == list(range(1, 45))
    by_item = {int(number): answer for number, _, answer in answers}
    assert by_item[9] == "64 pixels"
    assert by_item[22] == "DenseNet121"
    assert "of 60 patients" in by_item[37]
    assert by_item[44] == "to be filled in by the author"


def test_deleted_tables_and_figures_come_back_byte_for_byte(run_folder, tmp_path):
    copy = tmp_path / "example"
    shutil.copytree(run_folder, copy)
    before = files_below(copy)
    shutil.rmtree(copy / "tables")
    for name in ("roc", "precision_recall", "confusion", "reliability"):
        (copy / "figures" / f"{name}.png").unlink()
    command = [sys.executable, "-m", "utils.report", str(copy)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert files_below(copy) == before


def test_without_images_args_or_patients(tmp_path):
    predictions = without_class(example_predictions(with_patients=False), 2)
    write_report(tmp_path, predictions)
    report = (tmp_path / "REPORT.md").read_text()
    assert "mistakes.png" not in report
    assert "Flags (args.json): not in this folder." in report
    assert "the mean over 2 of 3 classes" in report
    assert "without patient ids the intervals take all images as independent" in report
    assert "no interval could be given for star" in report
    assert "- **Preprocessing**: to be filled in by the author" in report
    assert "0.4 for every class, fixed beforehand" in report


def test_what_cannot_be_rebuilt_is_refused_with_its_file(run_folder, tmp_path):
    with pytest.raises(UserError, match="predictions_test.csv"):
        rebuild_report(tmp_path)
    for name in ("predictions_test.csv", "evaluation.json"):
        shutil.copy(run_folder / name, tmp_path)
    with pytest.raises(UserError, match="predictions_val.csv"):
        rebuild_report(tmp_path)
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation.json: not JSON .*repair or remove it"):
        rebuild_report(tmp_path)
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(UserError, match="evaluation.json: holds a list"):
        rebuild_report(tmp_path)
