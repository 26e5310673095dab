"""REPORT.md of segmented volumes, its tables and figures, made from scores_test.csv."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import atomic_write, write_text
from utils.json_files import read_json
from utils.metrics.evaluation import Table, interval, number, print_tables, write_tables
from utils.metrics.volumes import LARGEST, VOLUME_METRICS, VolumeScores, bootstrap_means
from utils.plots.runs import rebuild_figures
from utils.plots.volumes import VolumePicture, draw_scores, draw_slices
from utils.report.blocks import (
    REBUILD,
    Heading,
    Items,
    Text,
    picture_blocks,
    settings_block,
    table_blocks,
    write_page,
)
from utils.text import csv_cell, from_csv_cell, markdown_text

SCORES_FILE, FACTS_FILE = "scores_test.csv", "evaluation.json"
COLUMNS = ("VolumeID", "PatientID", "site", "structure", *VOLUME_METRICS)
CAPTIONS = {
    "slices": "The best, the median and the worst volume by mean Dice: three slices through each, "
    "at a quarter, half and three quarters of the structures, with the contours of label (solid) "
    "and prediction (dashed).",
    "dice": "Dice of every test volume by structure and by site; the bars are means.",
    "curves": "Losses and test metrics, round by round.",
    "relation": "Relation matrices over voxels of the labelled and unlabelled clients.",
}
EMPTY = (
    "A structure that neither label nor prediction has, has no number and counts in no mean. One "
    "that only one of them has, scores Dice and Jaccard 0 and, as distances, the diagonal of the "
    "volume."
)


def write_scores(path: Path, scores: VolumeScores) -> None:
    """One row for each volume and structure; reading gives the same float64 back."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, name in enumerate(scores.names):
            group = scores.groups[row] if scores.groups else ""
            site = scores.sites[row] if scores.sites else ""
            for at, structure in enumerate(scores.class_names):
                values = [scores.values[metric][row, at] for metric in VOLUME_METRICS]
                cells = ["" if np.isnan(value) else repr(float(value)) for value in values]
                texts = [csv_cell(text) for text in (name, group, site, structure)]
                writer.writerow([*texts, *cells])


def read_scores(path: Path) -> VolumeScores:
    """What `write_scores` wrote; `UserError` for anything else."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        rows = [[from_csv_cell(cell) for cell in row] for row in rows]
        if tuple(header) != COLUMNS or not rows:
            raise ValueError("its columns are not " + ", ".join(COLUMNS))
        names = list(dict.fromkeys(row[0] for row in rows))
        structures = tuple(dict.fromkeys(row[3] for row in rows))
        cells = {(row[0], row[3]): row for row in rows}
        values = {
            metric: np.array(
                [
                    [float(cells[name, structure][4 + at] or "nan") for structure in structures]
                    for name in names
                ]
            )
            for at, metric in enumerate(VOLUME_METRICS)
        }
        groups, sites = (
            [cells[name, structures[0]][column] for name in names] for column in (1, 2)
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name the folder of a finished run") from None
    except (OSError, ValueError, KeyError, IndexError, csv.Error) as error:
        raise UserError(f"{path}: not scores of volumes ({error}); test the run again") from None
    return VolumeScores(
        names, structures, values, groups if any(groups) else None, sites if any(sites) else None
    )


def score_tables(scores: VolumeScores) -> dict[str, Table]:
    """`structures`: means with intervals; `sites`: mean Dice of each; `worst`: what to look at."""
    rows = [[name] for name in (*scores.class_names, "mean of structures")]
    header = ["structure"]
    for metric, title in VOLUME_METRICS.items():
        values = scores.values[metric]
        low, high = bootstrap_means(values, scores.groups, LARGEST.get(metric, math.inf))
        means = [*scores.of_class(metric), scores.macro(metric)]
        header += [title, "95% interval"]
        for row, mean, lowest, highest in zip(rows, means, low, high, strict=True):
            row += [number(mean), interval(lowest, highest)]
    noun = "volumes" if scores.groups is None else "patients"
    tables = {
        "structures": Table(
            f"{len(scores.names)} test volumes; intervals by bootstrap over {noun}", header, rows
        )
    }
    if scores.sites is not None:
        tables["sites"] = _site_table(scores)
    worst = volume_order(scores)[:10]
    tables["worst"] = Table(
        "The volumes with the lowest mean Dice",
        ["volume", *(f"Dice {name}" for name in scores.class_names), "HD95 (mm)"],
        [
            [
                scores.names[row],
                *map(number, scores.values["dice"][row]),
                number(_row_mean(scores.values["hd95"][row])),
            ]
            for row in worst
        ],
    )
    return tables


def _site_table(scores: VolumeScores) -> Table:
    rows = []
    for site in sorted(set(scores.sites)):
        chosen = [row for row, of in enumerate(scores.sites) if of == site]
        part = scores._replace(values={"dice": scores.values["dice"][chosen]})
        dice = [*part.of_class("dice"), part.macro("dice")]
        rows.append([site, str(len(chosen)), *map(number, dice)])
    header = ["site", "volumes", *(f"Dice {name}" for name in scores.class_names), "mean Dice"]
    return Table("Dice by site", header, rows)


def volume_order(scores: VolumeScores) -> list[int]:
    """Rows from the lowest mean Dice to the highest; those without a number are left out."""
    means = [_row_mean(row) for row in scores.values["dice"]]
    return [row for row in np.argsort(means, kind="stable").tolist() if not np.isnan(means[row])]


def _row_mean(row: np.ndarray) -> float:
    known = row[~np.isnan(row)]
    return float(known.mean()) if len(known) else float("nan")


def shown_rows(scores: VolumeScores) -> list[int]:
    """The best, the median and the worst volume."""
    order = volume_order(scores)
    return [order[-1], order[len(order) // 2], order[0]] if order else []


def write_volume_report(
    folder: Path,
    scores: VolumeScores,
    facts: Mapping[str, str],
    pictures: Sequence[VolumePicture] = (),
) -> None:
    """Write scores_test.csv, evaluation.json, tables/, figures/ and REPORT.md to `folder`.

    pictures: of the volumes `shown_rows`; without them the slices drawn before stay.
    """
    write_scores(folder / SCORES_FILE, scores)
    write_text(folder / FACTS_FILE, json.dumps({"facts": dict(facts)}, indent=2) + "\n")
    tables = score_tables(scores)
    write_tables(tables, folder / "tables")
    if (folder / "matrices.csv").exists():
        rebuild_figures(folder)
    draw_scores(scores, folder / "figures" / "dice.png")
    if pictures:
        draw_slices(pictures, scores.class_names, folder / "figures" / "slices.png")
    _write_pages(folder, scores, tables, facts)
    print_tables(tables)


def rebuild_volume_report(folder: Path) -> None:
    """`write_volume_report` again from the files that it left in `folder`."""
    scores = read_scores(folder / SCORES_FILE)
    settings = read_json(folder / FACTS_FILE, advice="test the run again")
    write_volume_report(folder, scores, settings.get("facts", {}))


def _write_pages(
    folder: Path, scores: VolumeScores, tables: Mapping[str, Table], facts: Mapping[str, str]
) -> None:
    low, high = bootstrap_means(scores.values["dice"], scores.groups, LARGEST["dice"])
    names = markdown_text(", ".join(scores.class_names))
    blocks = [
        Text(
            f"On {len(scores.names)} test volumes the mean Dice is {number(scores.macro('dice'))} "
            f"(95% interval {interval(low[-1], high[-1])}), over {names}; "
            f"the 95% Hausdorff distance is {number(scores.macro('hd95'))} mm."
        ),
        Heading("Tables"),
        *table_blocks(tables, {"structures": 1}),
        Text(f"{EMPTY} {SCORES_FILE} has the numbers of every volume and structure."),
        Heading("Figures"),
        *picture_blocks(folder, CAPTIONS),
        Heading("Model card"),
        Items(_card(scores, facts)),
        Heading("How it was run"),
        *(settings_block(name, _settings(folder / name)) for name in ("args.json", "env.json")),
        Text(REBUILD),
    ]
    write_page(folder, f"Segmentation by {folder.resolve().name}", blocks)


def _card(scores: VolumeScores, facts: Mapping[str, str]) -> list[str]:
    people = "patients unknown" if scores.groups is None else f"{len(set(scores.groups))} patients"
    names = markdown_text(", ".join(scores.class_names))
    sites = "sites unknown" if scores.sites is None else f"{len(set(scores.sites))} sites"
    lines = [
        "**Intended use**: research on federated semi-supervised learning. Not for clinical use, "
        "not a medical device, not for decisions about patients.",
        f"**Task**: the class of every voxel: background, {names}.",
        *(
            f"**{name[:1].upper()}{name[1:]}**: {markdown_text(value)}"
            for name, value in facts.items()
        ),
        f"**Test data**: {len(scores.names)} volumes, {people}, {sites}.",
        "**Limit**: the numbers hold for the population, scanners and labels of this test set "
        "alone; no other hospital's data was looked at here.",
    ]
    if scores.groups is None:
        lines.append(
            "**Limit**: without patient ids the intervals take all volumes as independent; they "
            "are too narrow if patients have several."
        )
    return lines


def _settings(path: Path) -> dict:
    return read_json(path, advice="repair or remove it") if path.exists() else {}
