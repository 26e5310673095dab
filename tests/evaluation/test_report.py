"""The report of a run: what it says, and that it rebuilds from its own files."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from options import args_parser, own_flags
from tests.helpers import PROJECT
from tests.helpers.examples import example_predictions, without_class
from utils.errors import UserError
from utils.report.checklist import ITEMS
from utils.report.page import PRESET_FACT, rebuild_report, write_report

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


def test_the_summary_says_in_words_what_the_network_does(tmp_path):
    predictions = example_predictions()
    write_report(tmp_path, predictions)
    assert re.search(r"Best told apart is \w+ \(AUROC 0\.\d{3}\), least ", page_of(tmp_path))
    probabilities = np.tile([0.2, 0.5, 0.3], (len(predictions.labels), 1))
    write_report(tmp_path, predictions._replace(probabilities=probabilities))
    assert "**Every image is given the same class, square**" in page_of(tmp_path)
    probabilities[0] = (0.6, 0.3, 0.1)
    write_report(tmp_path, predictions._replace(probabilities=probabilities))
    assert "Never the most probable class: star." in page_of(tmp_path)


def test_what_a_run_is_made_of_comes_first(tmp_path):
    flags = vars(args_parser(["--preset", "paper", "--medmnist", "x.npz", "--rounds", "7"]))
    flags = json.loads(json.dumps(flags, default=str))
    assert own_flags(flags) == {"rounds": [7, 100]}
    held = {"class_names": ["round", "square"], "labelled_clients": [0], "counts": [[3, 1], [0, 5]]}
    (tmp_path / "split.json").write_text(json.dumps({"held": held}))
    own = json.dumps({"preset": "paper", "own": own_flags(flags)})
    write_report(tmp_path, example_predictions(), facts={PRESET_FACT: own})
    page = page_of(tmp_path)
    assert "| 0 | yes | 3 | 1 | 4 |\n| 1 | no | 0 | 5 | 5 |\n| all |  | 3 | 6 | 9 |" in page
    assert "**Flags that differ from preset paper**" in page and "| rounds | 7 | 100 |" in page
    assert PRESET_FACT not in page.partition("## Model card")[2].lower()


def test_patients_are_named_only_where_asked_for(tmp_path):
    predictions = example_predictions()
    write_report(tmp_path, predictions, load_image=picture)
    pages = page_of(tmp_path) + (tmp_path / "report.html").read_text()
    assert not re.search(r"\bP0\d\d\b", pages)
    rebuild_report(tmp_path, with_ids=True)
    assert re.search(r"\bP0\d\d\b", page_of(tmp_path))


def page_of(folder):
    return (folder / "REPORT.md").read_text()


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
