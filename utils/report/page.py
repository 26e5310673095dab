"""REPORT.md: tables, figures, model card and checklist of one evaluated run, from files alone.

`python -m utils.report runs/NAME` rebuilds tables/, figures/ and REPORT.md from what
`write_report` left in the folder, without images or a network.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import OneLineParser
from utils.files import write_text
from utils.json_files import read_json
from utils.metrics.evaluation import (
    YOUDEN,
    Evaluation,
    Table,
    evaluate,
    evaluation_tables,
    interval,
    number,
    write_tables,
)
from utils.metrics.numbers import DEFAULT_THRESHOLD
from utils.metrics.predictions import Predictions, read_predictions, write_predictions
from utils.plots.runs import rebuild_figures
from utils.report.blocks import (
    REBUILD,
    Block,
    Heading,
    Items,
    TableBlock,
    Text,
    picture_blocks,
    settings_block,
    table_blocks,
    write_page,
)
from utils.report.checklist import REFERENCE, TO_BE_FILLED, claim_rows
from utils.report.figures import ImageLoader, draw_all
from utils.report.volumes import SCORES_FILE, rebuild_volume_report
from utils.schema import Check, anything, choice, mapping, record, text
from utils.text import markdown_text

TEST_FILE, VALIDATION_FILE = "predictions_test.csv", "predictions_val.csv"
SETTINGS_FILE = "evaluation.json"
TOTAL_ROWS = {"per_class": 2}  # rows at the end that are means of the others
CAPTIONS = {
    "roc": "ROC curve of each class against the rest, with the operating point of the threshold.",
    "precision_recall": "Precision against sensitivity, class by class.",
    "confusion": "Confusion matrix by the most probable class.",
    "reliability": "Reliability: is a probability of 80% right in 80% of the images?",
    "mistakes": "The images that were most confidently classified wrongly.",
    "relation": "Disease relation matrices of the labelled and unlabelled clients.",
    "curves": "Losses and test metrics, round by round.",
    "gradcam": "Grad-CAM: where in the image the evidence for the most probable class lies.",
}


OVERLAP_FACT = "overlap of the sets"  # the fact that answers item 20
PRESET_FACT = "flags of its own"  # JSON {"preset": name, "own": {flag: [here, in the preset]}}

# What a report was made with, for making it again; see `write_report`.
SETTINGS = record(
    {"threshold": text(40), "sweep": choice(True, False)},
    {
        "facts": mapping(text(200), text(100_000), largest=100),
        "report_ids": choice(True, False),
    },
)


def write_report(
    folder: str | os.PathLike,
    predictions: Predictions,
    threshold: str | float = DEFAULT_THRESHOLD,
    validation: Predictions | None = None,
    with_sweep: bool = False,
    facts: dict[str, str] | None = None,
    load_image: ImageLoader | None = None,
    with_ids: bool = False,
) -> Evaluation:
    """Evaluate, and write everything about it to `folder`, the run's own.

    Writes predictions_test.csv (predictions_val.csv too, given `validation`), evaluation.json (what
    a rebuild needs), tables/, figures/ and REPORT.md; args.json and env.json are quoted,
    metrics.csv and matrices.csv drawn, where the folder has them. `facts` are lines for the model
    card, by name: "checkpoint", "architecture", "preprocessing", "training data" and others.
    `threshold` and `validation` are as in `evaluate`, `load_image` as in `draw_all`; `with_ids`
    names the patients of the images that are shown.
    """
    folder = Path(folder)
    evaluation = evaluate(predictions, threshold, validation)
    write_predictions(folder / TEST_FILE, *predictions)
    if validation is not None:
        write_predictions(folder / VALIDATION_FILE, *validation)
    settings = {"threshold": str(threshold), "sweep": with_sweep, "facts": facts or {}}
    settings["report_ids"] = with_ids
    write_text(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    tables = evaluation_tables(evaluation, with_sweep, with_ids)
    write_tables(tables, folder / "tables")
    if (folder / "matrices.csv").exists():
        rebuild_figures(folder)
    draw_all(evaluation, folder / "figures", load_image, with_ids)
    _write_pages(folder, evaluation, tables, facts or {})
    return evaluation


def rebuild_report(folder: str | os.PathLike, with_ids: bool = False) -> Evaluation:
    """`write_report` again from the files that it left in `folder`; pictures of images stay as
    they are. `UserError` where predictions_test.csv or what else is needed is missing."""
    folder = Path(folder)
    settings = _json_or_empty(folder / SETTINGS_FILE, SETTINGS)
    threshold = settings.get("threshold", DEFAULT_THRESHOLD)
    return write_report(
        folder,
        read_predictions(folder / TEST_FILE),
        threshold,
        read_predictions(folder / VALIDATION_FILE) if threshold == YOUDEN else None,
        settings.get("sweep", False),
        settings.get("facts", {}),
        with_ids=with_ids or settings.get("report_ids", False),
    )


def _write_pages(
    folder: Path, evaluation: Evaluation, tables: Mapping[str, Table], facts: dict[str, str]
) -> None:
    run_args = _json_or_empty(folder / "args.json")
    environment = _json_or_empty(folder / "env.json")
    answers = _claim_answers(evaluation, facts, run_args, environment, folder)
    blocks = [
        Text(_summary(evaluation)),
        Heading("Tables"),
        *table_blocks(tables, TOTAL_ROWS),
        *held_blocks(folder),
        Items(_notes(evaluation)),
        Heading("Figures"),
        *picture_blocks(folder, CAPTIONS),
        Heading("Model card"),
        Items(_model_card(evaluation, facts)),
        Heading("How it was run"),
        *own_flags_blocks(facts),
        settings_block("Flags (args.json)", run_args),
        settings_block("Environment (env.json)", environment),
        Text(REBUILD),
        Heading(f"Checklist ({REFERENCE})"),
        TableBlock("", ["item", "asks for", "answer"], claim_rows(answers)),
    ]
    write_page(folder, f"Evaluation of {folder.resolve().name}", blocks)


def _summary(evaluation: Evaluation) -> str:
    metrics, intervals = evaluation.metrics, evaluation.intervals
    return (
        f"On {_sample_words(evaluation.predictions)} the AUROC is {number(metrics.macro('auroc'))} "
        f"(95% interval {interval(intervals.macro_low, intervals.macro_high)}), the mean over "
        f"{metrics.defined('auroc')} of {len(metrics.auroc)} classes. The most probable class is "
        f"right in {number(metrics.top1_accuracy)} of the images.{_absent(evaluation)} "
        f"{_said_words(evaluation)}"
    )


def _said_words(evaluation: Evaluation) -> str:
    """Which classes are told apart best and least, and whether any is never said."""
    names, metrics = evaluation.predictions.class_names, evaluation.metrics
    said = metrics.confusion.sum(axis=0)
    if np.count_nonzero(said) == 1:
        only = markdown_text(names[int(said.argmax())])
        return (
            f"**Every image is given the same class, {only}**: what rests on the most probable "
            "class says how frequent that class is, not how well the network tells them apart."
        )
    words = []
    if metrics.defined("auroc") > 1:
        best, least = int(np.nanargmax(metrics.auroc)), int(np.nanargmin(metrics.auroc))
        words.append(
            f"Best told apart is {markdown_text(names[best])} (AUROC "
            f"{number(metrics.auroc[best])}), least {markdown_text(names[least])} "
            f"({number(metrics.auroc[least])})."
        )
    if never := [names[index] for index in np.flatnonzero(said == 0)]:
        words.append(f"Never the most probable class: {markdown_text(', '.join(never))}.")
    return " ".join(words)


def _absent(evaluation: Evaluation) -> str:
    names = evaluation.predictions.class_names
    absent = [name for name, n in zip(names, evaluation.metrics.images, strict=True) if not n]
    said = markdown_text(", ".join(absent))
    return f" No test image shows {said}: what is said holds for the others." if absent else ""


def _sample_words(predictions: Predictions) -> str:
    images = f"{len(predictions.labels)} test images"
    if predictions.groups is None:
        return images
    return f"{images} of {np.unique(predictions.groups).size} {predictions.group_noun}"


def held_blocks(folder: Path) -> list[TableBlock]:
    """Which client held how many training images of which class, as split.json says."""
    held = _json_or_empty(folder / "split.json").get("held")
    if held is None:
        return []
    labeled = held["labelled_clients"]
    rows = [
        [str(client), "yes" if client in labeled else "no", *map(str, counts), str(sum(counts))]
        for client, counts in enumerate(held["counts"])
    ]
    sums = [sum(column) for column in zip(*held["counts"], strict=True)]
    rows.append(["all", "", *map(str, sums), str(sum(sums))])
    header = ["client", "labels", *held["class_names"], "images"]
    return [TableBlock("Who held which training images", header, rows, "split.json", 1)]


def own_flags_blocks(facts: Mapping[str, str]) -> list[Block]:
    """The flags by which a run differs from its preset, where that is known."""
    if PRESET_FACT not in facts:
        return []
    flags = json.loads(facts[PRESET_FACT])
    title = f"Flags that differ from preset {flags['preset']}"
    if not flags["own"]:
        return [Text(f"{title}: none.")]
    rows = [[name, *map(_shown, pair)] for name, pair in flags["own"].items()]
    return [TableBlock(title, ["flag", "here", "in the preset"], rows)]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _notes(evaluation: Evaluation) -> list[str]:
    predictions, draws = evaluation.predictions, evaluation.intervals.draws
    drawn = "images" if predictions.groups is None else predictions.group_noun
    return [
        "NA: not defined for these images (no image of the class, nothing predicted positive, a "
        "denominator of zero), or no interval (a class in fewer than two effective patients, an "
        'AUROC of exactly 1). "Macro" is the mean over the classes where a number is defined; the '
        "row below it counts them.",
        '"One-vs-rest accuracy" at the threshold, averaged over classes, is what the published '
        "tables of this method call accuracy. It counts the many true negatives and is not the "
        "top-1 accuracy.",
        f'Intervals: {draws} bootstrap draws of {drawn}; "draws" counts those that had the class.',
    ]


def _model_card(evaluation: Evaluation, facts: dict[str, str]) -> list[str]:
    predictions = evaluation.predictions
    lines = [
        "**Intended use**: research on federated semi-supervised learning. Not for clinical use, "
        "not a medical device, not for decisions about patients.",
        f"**Task**: one of {len(predictions.class_names)} classes for an image: "
        f"{markdown_text(', '.join(predictions.class_names))}.",
        *(
            f"**{name[:1].upper()}{name[1:]}**: {markdown_text(value)}"
            for name, value in facts.items()
            if name != PRESET_FACT
        ),
        f"**Test data**: {_sample_words(predictions)}; counts per class in the first table.",
        f"**Threshold**: {evaluation.threshold_rule}.",
    ]
    if "preprocessing" not in facts:
        lines.append(f"**Preprocessing**: {TO_BE_FILLED}")
    return [*lines, *(f"**Limit**: {limit}" for limit in _limits(evaluation))]


def _limits(evaluation: Evaluation) -> list[str]:
    """What a reader must not conclude; some of it depends on the numbers."""
    predictions, metrics, intervals, _ = evaluation
    limits = [
        "the numbers hold for the population, scanners and labels of this test set alone; no other "
        "hospital's data was looked at here.",
        "every image is taken to show exactly one class and is scored by itself: scans without a "
        "finding, or with several, and whole studies are not assessed.",
        "probabilities are not to be read as risks: the expected calibration error is "
        f"{number(metrics.calibration_error)}.",
    ]
    if predictions.groups is None:
        limits.append(
            "without patient ids the intervals take all images as independent; they are too narrow "
            "if patients have several."
        )
    uncertain = [
        name
        for name, low in zip(predictions.class_names, intervals.low, strict=True)
        if np.isnan(low)
    ]
    if uncertain:
        names = markdown_text(", ".join(uncertain))
        limits.append(f"no interval could be given for {names}.")
    return limits


def _claim_answers(
    evaluation: Evaluation,
    facts: dict[str, str],
    run_args: dict,
    environment: dict,
    folder: Path,
) -> dict[int, str]:
    """Answers to the items that the run itself can answer, by number."""
    predictions = evaluation.predictions
    flags = "flags under How it was run"
    answers = {
        1: "deep learning: federated semi-supervised image classification",
        27: "none: one network",
        28: "tables per_class, overall and confusion, at the threshold named there",
        29: "95% intervals of the AUROC by bootstrap; how, under the tables",
        35: f"{_sample_words(predictions)} included; those excluded: {TO_BE_FILLED}",
        37: _summary(evaluation),
        38: "table operating_point: sensitivity, specificity, predictive values with 95% intervals",
        39: "table mistakes, confusion matrix; their causes: " + TO_BE_FILLED,
        40: "limits in the model card; further ones: " + TO_BE_FILLED,
        41: "none for practice: research, not for clinical use",
        42: "this page, with args.json and env.json",
    }
    if OVERLAP_FACT in facts:
        answers[20] = facts[OVERLAP_FACT]
    elif predictions.groups is not None:
        answers[20] = f"test {predictions.group_noun} are identified; whether training had any of "
        answers[20] += f"them: {TO_BE_FILLED}"
    if "preprocessing" in facts:
        answers[9] = facts["preprocessing"]
    if "architecture" in facts:
        answers[22] = facts["architecture"]
    if "checkpoint" in facts:
        answers[26] = f"evaluated: {facts['checkpoint']}; why this one: {TO_BE_FILLED}"
    if environment:
        answers[23] = "versions under How it was run (env.json)"
    if run_args:
        answers |= {19: f"{flags} (args.json)", 24: flags, 25: flags}
    if (folder / "figures" / "gradcam.png").exists():
        answers[31] = "Grad-CAM, see Figures"
    return answers


def _json_or_empty(path: Path, check: Check = anything) -> dict:
    """As `read_json`; empty where there is no such file."""
    return read_json(path, check, "repair or remove it") if path.exists() else {}


def main() -> None:
    """`python -m utils.report runs/NAME`: rebuild tables/, figures/ and REPORT.md."""
    parser = OneLineParser(prog="python -m utils.report", description=main.__doc__)
    parser.add_argument("folder", type=Path, help=f"a folder with {TEST_FILE} or {SCORES_FILE}")
    parser.add_argument("--report_ids", action="store_true", help="name the patients of mistakes")
    args = parser.parse_args()
    folder = args.folder
    if (folder / SCORES_FILE).exists():
        rebuild_volume_report(folder)
    else:
        rebuild_report(folder, args.report_ids)
    print(f"report: {folder / 'REPORT.md'}")
