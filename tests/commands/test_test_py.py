"""test.py on labelled images, and the report that a run of train_main.py ends with."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from dataloaders.dataset import load_dataset
from dataloaders.table import read_table
from networks.devices import full_memory
from networks.kinds import build_network
from predict.card import describe_model
from predict.inference import predict, predict_set
from tests.helpers import PROJECT
from tests.helpers.used_run import run_test_py, train_small_run
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.metrics.predictions import read_predictions, write_predictions
from utils.report.page import rebuild_report

REPORT_FIGURES = {
    "confusion",
    "curves",
    "mistakes",
    "precision_recall",
    "relation",
    "reliability",
    "roc",
}


@pytest.fixture(scope="module")
def run(phantom_folder, tmp_path_factory):
    """A finished run of two rounds and what it printed."""
    return train_small_run(phantom_folder, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def tested(run, phantom_folder):
    """What the command that the run ended with prints, for its first round instead of the last and
    with thresholds from validation."""
    command = run.printed.splitlines()[-1].split("test again with: ")[1]
    program, script, *flags = shlex.split(command.replace("epoch_1.pth", "epoch_0.pth"))
    assert (program, script) == ("python", "test.py")
    return run_test_py(
        *(*flags, "--csv_file_val", phantom_folder.csv_file_val, "--threshold", "youden"),
        *("--sweep", "--cache_dir", run.folder.parent / "cache", "--batch_size", 7),
    )


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_ends_with_its_report(run, phantom_folder):
    folder = run.folder
    assert {path.stem for path in (folder / "figures").iterdir()} == REPORT_FIGURES
    report = (folder / "REPORT.md").read_text()
    for stem in ("per_class", "overall", "confusion", "mistakes"):
        assert (folder / "tables" / f"{stem}.md").read_text() in report
    images = len(read_rows(phantom_folder.csv_file_train))
    assert f"{images} images of training.csv at 4 clients (equal parts at random)" in report
    assert "DICOM through the window 'triple' to 32 pixels a side; 32 x 32 pixels" in report
    assert "- **Training**: preset paper, 2 rounds" in report
    assert "| rounds | 2 |" in report
    assert f"done: {folder / 'REPORT.md'}; test again with: python test.py --resume" in run.printed


def test_thresholds_of_youden_come_from_the_validation_set(run, tested):
    out = run.folder / "tests" / "epoch_0-testing"
    assert f"report: {out / 'REPORT.md'}" in tested
    validation = read_predictions(out / "predictions_val.csv")
    rows = read_rows(out / "tables" / "per_class.csv")
    for index, row in enumerate(rows[:5]):
        truth, scores = validation.labels == index, validation.probabilities[:, index]
        if not truth.any():
            assert row["threshold"] == "NA"
            continue
        points = sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False)
        false_positive, true_positive, thresholds = (values[1:] for values in points)  # not inf
        best = (true_positive - false_positive).argmax()
        assert float(row["threshold"]) == pytest.approx(thresholds[best], abs=5e-4)
    assert "choosing among them is optimistic" in tested
    assert len(read_rows(out / "tables" / "threshold_sweep.csv")) == 27


def test_printed_numbers_are_those_of_scikit_learn(run, tested):
    out = run.folder / "tests" / "epoch_0-testing"
    found = read_predictions(out / "predictions_test.csv")
    rows = read_rows(out / "tables" / "per_class.csv")
    present = [index for index in range(5) if (found.labels == index).any()]
    expected = {
        index: sklearn_metrics.roc_auc_score(found.labels == index, found.probabilities[:, index])
        for index in present
    }
    for index, value in expected.items():
        assert rows[index]["AUROC"] == f"{value:.3f}"
        assert f"{value:.3f}" in tested
    assert rows[5]["AUROC"] == f"{np.mean(list(expected.values())):.3f}"
    overall = {row["metric"]: row["value"] for row in read_rows(out / "tables" / "overall.csv")}
    top1 = sklearn_metrics.accuracy_score(found.labels, found.probabilities.argmax(1))
    assert overall["top-1 accuracy"] == f"{top1:.3f}"


def test_a_test_leaves_the_run_alone_and_quotes_it_up_to_its_checkpoint(run, tested):
    out = run.folder / "tests" / "epoch_0-testing"
    assert {path.stem for path in (out / "figures").iterdir()} == REPORT_FIGURES
    assert [row["round"] for row in read_rows(out / "metrics.csv")] == ["0"]
    assert [row["round"] for row in read_rows(run.folder / "metrics.csv")] == ["0", "1"]
    assert {row["round"] for row in read_rows(out / "matrices.csv")} == {"0"}
    assert (out / "args.json").read_bytes() == (run.folder / "args.json").read_bytes()
    settings = json.loads((run.folder / "evaluation.json").read_text())
    assert "evaluated with" not in settings["facts"]
    facts = json.loads((out / "evaluation.json").read_text())["facts"]
    assert facts["training"] == "preset paper, 1 rounds"
    assert "epoch_0.pth, SHA-256 " in facts["checkpoint"]
    assert facts["evaluated with"].startswith("python test.py --resume")


def test_a_run_is_tested_as_it_tested_itself(run, tmp_path):
    """Its own threshold, rows without one class dropped, its own links."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    flags = json.loads((folder / "args.json").read_text())
    table = tmp_path / "testing.csv"
    lines = Path(flags["csv_file_test"]).read_text().splitlines()
    cells = lines[1].split(",")
    table.write_text("\n".join([*lines, ",".join(["none.png", *cells[1:-5], *"00000"])]))
    flags |= {"threshold": 0.2, "multi_label": "drop", "csv_file_test": str(table)}
    (folder / "args.json").write_text(json.dumps(flags))
    printed = run_test_py("--resume", folder)
    report = (folder / "tests" / "epoch_1-testing" / "REPORT.md").read_text()
    assert "0.2 for every class" in report and "--threshold 0.2" in printed
    with pytest.raises(UserError, match="line"):
        run_test_py("--resume", folder, "--multi_label", "refuse")


def test_a_changed_test_set_is_said_to_be_another(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("tests"))
    said = "not what .*run was tested on: its test images or labels have changed since"
    assert not re.search(said, run_test_py("--resume", folder))
    flags = json.loads((folder / "args.json").read_text())
    table = tmp_path / "testing.csv"
    table.write_text("\n".join(Path(flags["csv_file_test"]).read_text().splitlines()[:9]))
    (folder / "args.json").write_text(json.dumps(flags | {"csv_file_test": str(table)}))
    assert re.search(said, run_test_py("--resume", folder))
    # Named by its user, another list is not the run's own.
    named = ("--root_path", flags["root_path"], "--csv_file_test", table)
    assert not re.search(said, run_test_py("--resume", folder, *named))


def test_other_images_in_a_file_of_the_same_name_have_a_folder_of_their_own(
    run, phantom_folder, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("tests"))
    other = tmp_path / "testing.csv"
    lines = phantom_folder.csv_file_test.read_text().splitlines()
    other.write_text("\n".join(lines[:9]))
    flags = ("--resume", folder, "--root_path", phantom_folder.root_path, "--csv_file_test")
    for table in (phantom_folder.csv_file_test, other, other, phantom_folder.csv_file_test):
        run_test_py(*flags, table)
    counts = {
        path.name: len(read_rows(path / "predictions_test.csv"))
        for path in (folder / "tests").iterdir()
    }
    assert counts == {"epoch_1-testing": len(lines) - 1, "epoch_1-testing-2": 8}


def test_deleted_tables_and_figures_come_back_without_images(run, tested, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.folder / "tests" / "epoch_0-testing", copy)
    before = files_below(copy)
    shutil.rmtree(copy / "tables")
    for path in (copy / "figures").iterdir():
        if path.stem not in ("gradcam", "mistakes"):
            path.unlink()
    rebuild_report(copy)
    after = files_below(copy)
    assert after.keys() == before.keys()
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"REPORT.md", "report.html"}
    report = copy / "REPORT.md"
    renamed = before[report].replace(b"# Evaluation of epoch_0-testing", b"# Evaluation of copy")
    assert after[report] == renamed  # its title is the folder's name


def test_the_file_of_predictions_scores_the_same_by_itself(run, tmp_path):
    command = [sys.executable, "-m", "utils.metrics", run.folder / "predictions_test.csv"]
    subprocess.run([*command, "--out", tmp_path], cwd=PROJECT, check=True, capture_output=True)
    for path in (run.folder / "tables").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    """The run's weights as the released program saves them, and a MedMNIST file of its size."""
    folder = tmp_path_factory.mktemp("released")
    weights = load_checkpoint(run.folder / "checkpoints" / "epoch_1.pth")["state_dict"]
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": prefixed}, folder / "epoch_1.pth")
    generator = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 6), ("val", 15), ("test", 40)):
        arrays[f"{name}_images"] = generator.integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
        arrays[f"{name}_labels"] = np.arange(count)[:, None] % 5
    np.savez(folder / "toy.npz", **arrays)
    return folder


def test_the_released_programs_checkpoint_on_a_medmnist_file(released, run):
    names = [f"class_{index}" for index in range(5)]
    source = ("--resume", released / "epoch_1.pth", "--medmnist", released / "toy.npz")
    with pytest.raises(UserError, match="holds no class names; give them with --class_names"):
        run_test_py(*source)
    with pytest.raises(UserError, match="does not say how .*; say it with --image_size"):
        run_test_py(*source, "--class_names", *names)
    with pytest.raises(
        UserError,
        match=r"made for \(number 1 is .class_0., not .a.\); .* this order: a, b, c, d, e",
    ):
        run_test_py(*source, "--image_size", "40", "--class_names", *"abcde")
    run_test_py(*source, "--image_size", "40", "--class_names", *names, "--threshold", "youden")
    out = released / "epoch_1-toy"
    found = read_predictions(out / "predictions_test.csv")
    assert found.groups is None
    assert list(found.labels) == [index % 5 for index in range(40)]
    assert len(read_predictions(out / "predictions_val.csv").labels) == 15
    content = load_checkpoint(run.folder / "checkpoints" / "epoch_1.pth")
    net = build_network(content["architecture"], content["class_names"])
    net.load_state_dict(content["state_dict"])
    images = torch.from_numpy(np.load(released / "toy.npz")["test_images"]).permute(0, 3, 1, 2)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        logits = net.eval()((images / 255 - mean) / deviation)[1]
    expected = torch.softmax(logits, dim=1).numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-6)


def test_flags_that_cannot_be_meant_are_refused_in_one_line(run, phantom_folder):
    checkpoint = run.folder / "checkpoints" / "epoch_1.pth"
    test_set = ("--csv_file_test", phantom_folder.csv_file_test)
    images = ("--root_path", phantom_folder.root_path)
    for flags, message in (
        ((*test_set, "--dicom", "."), "give one of --csv_file_test, --medmnist, --predict and "),
        (("--predict", ".", "--sweep"), "--sweep: has no meaning with --predict"),
        ((*test_set, *images, "--gradcam"), "--gradcam: has no meaning with --csv_file_test"),
        (("--predict", "no_such_file"), "--predict no_such_file: no such file or folder"),
        (test_set, "--root_path is missing"),
        ((*test_set, *images, "--window", "bone"), "--window: has no meaning with --csv_file_test"),
        (("--dicom", ".", "--sweep"), "--sweep: has no meaning with --dicom"),
        ((*test_set, *images, "--threshold", "youden"), "needs --csv_file_val"),
        (
            (*test_set, *images, "--csv_file_val", phantom_folder.csv_file_val),
            "--csv_file_val: only for --threshold youden",
        ),
        (("--dicom", ".", "--report_ids"), "--report_ids: has no meaning with --dicom"),
        (
            ("--medmnist", "x.npz", "--multi_label", "drop"),
            "--multi_label: has no meaning with --medmnist",
        ),
        ((*test_set, *images, "--threshold", "1.5"), "must be a number from 0 to 1, or youden"),
        ((*test_set, *images, "--batch_size", "0"), "give a whole number from 1"),
        ((*test_set, *images, "--image_size", "64"), "--image_size 64: .* was trained with 32"),
        (("--dicom", "no_such_folder"), "--dicom no_such_folder: no such folder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run_test_py("--resume", checkpoint, *flags)
        assert "\n" not in str(caught.value)
    assert not (run.folder / "tests" / "epoch_1-testing").exists()


def test_a_run_that_is_not_there_is_named_before_its_images_are_asked_for(tmp_path):
    with pytest.raises(UserError, match="typo: no such file or folder; name a run's folder"):
        run_test_py("--resume", tmp_path / "typo")


def test_thresholds_are_not_chosen_on_images_that_are_tested(run, phantom_folder, tmp_path):
    checkpoint = run.folder / "checkpoints" / "epoch_1.pth"
    flags = ("--csv_file_test", phantom_folder.csv_file_test, "--threshold", "youden")
    flags += ("--root_path", phantom_folder.root_path, "--cache_dir", run.folder.parent / "cache")
    flags += ("--csv_file_val", phantom_folder.csv_file_test, "--resume", checkpoint)
    with pytest.raises(UserError, match="chosen on images that are tested .*--allow_overlap"):
        run_test_py(*flags)
    printed = run_test_py(*flags, "--allow_overlap", "--out", tmp_path / "out")
    images = len(read_rows(phantom_folder.csv_file_test))
    assert f"{images} of {images} test images by name, {images} by their pixels" in printed


def test_a_report_says_whether_its_patients_were_in_training(run, phantom_folder, tmp_path):
    patients = {row["PatientID"] for row in read_rows(phantom_folder.csv_file_test)}
    assert (
        f"0 of {len(patients)} test patients were in training"
        in (run.folder / "REPORT.md").read_text()
    )
    assert "the sets overlap" not in run.printed
    seen = phantom_folder.csv_file_train
    flags = ("--root_path", phantom_folder.root_path, "--cache_dir", run.folder.parent / "cache")
    printed = run_test_py(
        *("--resume", run.folder / "checkpoints" / "epoch_1.pth", "--csv_file_test", seen),
        *(*flags, "--out", tmp_path / "out"),
    )
    found = {row["PatientID"] for row in read_rows(seen)}
    words = f"{len(found)} of {len(found)} test patients were in training"
    assert f"warning: the sets overlap: {words}" in printed
    report = (tmp_path / "out" / "REPORT.md").read_text()
    assert f"| 20 | Partitions: at which level they are disjoint | {words}" in report
    assert f"- **Overlap of the sets**: {words}" in report


def test_lesions_are_called_lesions(run, phantom_folder, tmp_path):
    text = phantom_folder.csv_file_test.read_text().replace("PatientID", "lesion_id", 1)
    (tmp_path / "skin.csv").write_text(text)
    images = load_dataset(
        read_table(tmp_path / "skin.csv"), phantom_folder.root_path, 32, "auto", tmp_path, print
    )
    content = load_checkpoint(run.folder / "checkpoints" / "epoch_1.pth")
    net = build_network(content["architecture"], content["class_names"])
    found = predict_set(net, images, 16)
    assert found.group_noun == "lesions"
    np.testing.assert_array_equal(found.probabilities, predict(net, images, 16))
    write_predictions(tmp_path / "predictions_test.csv", *found)
    header = (tmp_path / "predictions_test.csv").read_text().splitlines()[0]
    assert header.startswith("ImageID,lesion_id,label,")


def test_the_model_card_says_what_the_checkpoint_says(tmp_path):
    content = {
        "class_names": ["a", "b"],
        "architecture": {"mode": "U-Ones", "drop_rate": 0.5, "attention": "self"}
        | {"network": "densenet121"},
    }
    save_checkpoint(tmp_path / "weights.pth", content)
    facts = describe_model(tmp_path / "weights.pth", content)
    assert facts.keys() == {"checkpoint", "architecture"}
    assert facts["architecture"] == "DenseNet121, self-attention, dropout 0.5, 2 outputs"
    content["architecture"] |= {"network": "resnet18", "attention": "none", "norm": "group"}
    content["preprocessing"] = {"image_size": 64}
    facts = describe_model(tmp_path / "weights.pth", content)
    assert facts["preprocessing"].startswith("64 x 64 pixels (bilinear)")
    assert facts["architecture"] == "ResNet-18, group normalisation, dropout 0.5, 2 outputs"


def test_words_that_speak_of_memory_are_not_a_full_memory():
    assert full_memory(UserError("--resume runs/pinned_weights: no such run")) is None
    assert full_memory(OSError("out of memory")) is None


@pytest.mark.parametrize(
    ("error", "where", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU's memory", "use --gpu cpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), "main memory", "free some of it"),
        (MemoryError(), "main memory", "free some of it"),
    ],
)
def test_a_full_memory_is_one_line_that_says_what_to_do(run, monkeypatch, error, where, remedy):
    def full(*_):
        raise error

    monkeypatch.setattr("predict.inference.predict_set", full)
    flags = ("--resume", run.folder, "--gpu", "cpu", "--out", run.folder.parent / "full")
    expected = f"{where} is full: lower --batch_size .now 48., or {remedy}"
    with pytest.raises(UserError, match=expected):
        run_test_py(*flags, "--cache_dir", run.folder.parent / "cache")
