"""Medical Segmentation Decathlon, or nnU-Net's dialect of it -> volumes.csv and arrays/.

The output folder also holds rejected.csv, manifest.json, and progress.csv: one line per finished
volume, from which a later run knows what is done.
"""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dataloaders.columns import read_csv_text
from dataloaders.nifti import (
    BYTES_PER_VOXEL,
    CT_WINDOW,
    Volume,
    header_spacing,
    normalise,
    read_channels,
    read_named,
    refuse_apart,
    refuse_too_large,
    resample,
    resample_classes,
    resampled_shape,
)
from dataloaders.prepare.decathlon_files import (
    Labels,
    Pair,
    find_modality,
    find_pairs,
    read_description,
    read_labels,
)
from dataloaders.volumes import ARRAYS, TABLE_FILE, shape_text
from utils.errors import UserError
from utils.files import FolderLock, atomic_write, sweep_temporary_files, write_text
from utils.json_files import read_json
from utils.table_files import to_csv

SITE_GAP = 0.3  # decades between the intensities of two sites: a factor of two

# Of a volume's array and row: 3 takes a voxel's class by its largest share, 2 took the nearest,
# half a voxel off where a side is halved; 1 told the spacing asked for, not that of the grid made.
WRITTEN = 3


def prepare_decathlon(
    dataset_dir: Path,
    out: Path,
    facts: Path | None = None,
    spacing: tuple[float, float, float] | None = None,
    modality: str | None = None,
    max_bad: int = 0,
    unlabeled: bool = False,
) -> None:
    """Check and convert every labelled volume of `dataset_dir`; with `unlabeled` those without a
    label, too.

    facts: a CSV `VolumeID,PatientID[,site]`. spacing: mm of every volume's voxels; by default the
    median of all, and a volume that has it is not touched. modality: "mr" or "ct", by default as
    dataset.json says. `UserError` for what cannot be used, and where more than `max_bad` volumes
    were rejected: then there is no volumes.csv.
    """
    content = read_description(dataset_dir)
    labels = read_labels(dataset_dir, content["labels"])
    pairs = find_pairs(dataset_dir, content, unlabeled)
    known = _read_facts(facts, [pair.name for pair in pairs])
    settings = {"modality": modality or find_modality(content), "ct_window": list(CT_WINDOW)}
    lock = FolderLock(out, "--out")
    try:
        rejected: list[tuple[str, str]] = []
        wanted = spacing or _median_spacing(pairs, rejected)
        settings["spacing"] = [float(side) for side in wanted]
        settings["classes"] = dict(zip(labels.names, labels.values, strict=True))
        _refuse_other_settings(out, settings)
        (out / ARRAYS).mkdir(parents=True, exist_ok=True)
        sweep_temporary_files(out / ARRAYS)
        write_text(out / "manifest.json", _manifest(settings, content, {"complete": False}))
        rows = _convert_all(pairs, out, labels, settings, rejected)
        write_text(out / "rejected.csv", to_csv(("volume", "reason"), sorted(set(rejected))))
        _refuse_rejected(dict(rejected), rows, out, max_bad)
        _write_table(out, rows, labels, known)
        counts = {"complete": True, "volumes": len(rows), "rejected": len(dict(rejected))}
        write_text(out / "manifest.json", _manifest(settings, content, counts))
    finally:
        lock.release(keep_folder=(out / "manifest.json").exists())
    if lost := [f"{name} of {row['name']}" for row in rows for name in row["lost"]]:
        print(
            f"warning: {len(lost)} structures are smaller than a voxel of "
            f"{shape_text(settings['spacing'])} mm and are lost ({lost[0]}); a smaller --spacing "
            "keeps them"
        )
    without = sum(not any(row["counts"]) for row in rows)
    said = f", {without} of them without labels" if without else ""
    print(f"{len(rows)} volumes in {out / TABLE_FILE}{said}, {len(dict(rejected))} rejected")


def _read_facts(path: Path | None, names: list[str]) -> dict[str, dict[str, str]]:
    """Column -> {volume: value} of the columns PatientID and site of a CSV."""
    if path is None:
        return {}
    table = read_csv_text(path)
    columns, _ = table.columns()
    cells = dict(zip(table.header, columns, strict=True))
    if "VolumeID" not in cells or not {"PatientID", "site"} & cells.keys():
        raise UserError(f"{path} line 1: give the columns VolumeID and PatientID or site")
    if missing := sorted(set(names) - set(cells["VolumeID"])):
        raise UserError(f"{path}: no row for volume {missing[0]}; add it")
    return {
        column: dict(zip(cells["VolumeID"], cells[column], strict=True))
        for column in ("PatientID", "site")
        if column in cells
    }


def _median_spacing(pairs: list[Pair], rejected: list) -> tuple[float, float, float]:
    """Of the images that can be read, from their headers."""
    found = []
    for pair in pairs:
        try:
            found.append(header_spacing(pair.images[0]))
        except ValueError as error:
            rejected.append((pair.name, f"image {pair.images[0].name} {error}"))
    if not found:
        raise UserError(f"{pairs[0].images[0]}: {rejected[0][1]}; none of the images can be read")
    return tuple(float(side) for side in np.median(found, axis=0))


def _convert_all(
    pairs: list[Pair], out: Path, labels: Labels, settings: Mapping, rejected: list
) -> list[dict]:
    """A row for each volume, converted now or before; what cannot be goes to `rejected`."""
    done = _read_progress(out)
    rows = []
    skip = dict(rejected)
    with open(out / "progress.csv", "a", encoding="utf-8", newline="", buffering=1) as file:
        progress = csv.writer(file, lineterminator="\n")
        for pair in tqdm(pairs, unit="volume", disable=None):
            if pair.name in skip:
                continue
            stamp = _stamp(pair)
            row = done.get(pair.name)
            if row is None or row["stamp"] != stamp or not _is_whole(out, row):
                try:
                    row = {"name": pair.name, "stamp": stamp} | _convert(
                        pair, out, labels, settings
                    )
                except ValueError as error:
                    rejected.append((pair.name, str(error)))
                    continue
                progress.writerow([json.dumps(row)])
            rows.append(row)
    return rows


def _convert(pair: Pair, out: Path, labels: Labels, settings: Mapping) -> dict:
    """Write a volume's array; what volumes.csv says of it. `ValueError`: why it cannot be used."""
    image = read_channels(pair.images)
    data = image.data
    classes = np.zeros(data.shape[1:], np.float32)
    if pair.label is not None:
        classes = _classes(_label(pair.label, image), labels)
    shape = resampled_shape(data.shape[1:], image.spacing, tuple(settings["spacing"]))
    refuse_too_large(math.prod(shape) * BYTES_PER_VOXEL * len(data))
    scale = float(np.percentile(np.abs(data[0]), 99.9))
    try:
        normal = normalise(data, settings["modality"], tuple(settings["ct_window"]))
    except ValueError as error:
        raise ValueError(f"image {error}") from None
    array = np.concatenate([resample(normal, shape), resample_classes(classes, shape)[None]])
    if classes.any() and not array[-1].any():
        raise ValueError(
            f"its label is all background on voxels of {shape_text(settings['spacing'])} mm; give "
            "a smaller --spacing"
        )
    with atomic_write(out / ARRAYS / f"{pair.name}.npy") as file:
        np.save(file, array.astype(np.float16))
    # The grid has whole voxels over the same extent: not quite the sides that were asked for.
    sides = np.multiply(image.spacing, np.divide(data.shape[1:], shape))
    counts = np.bincount(array[-1].astype(np.int64).ravel(), minlength=len(labels.names))
    return {
        "shape": shape_text(shape),
        "spacing": shape_text(sides),
        "scale": scale,
        "counts": (counts if pair.label is not None else 0 * counts).tolist(),  # 0: no label
        "lost": [
            labels.names[number] for number in np.unique(classes).astype(int) if not counts[number]
        ],
        "bytes": array.size * 2,
    }


def _label(path: Path, image: Volume) -> Volume:
    """The label that lies on `image`; `ValueError` where it cannot be read or does not."""
    label = read_named("label", path)
    refuse_apart(image, label)
    return label


def _classes(label: Volume, labels: Labels) -> np.ndarray:
    """Label values -> positions in `labels.names`, float32 (X, Y, Z)."""
    if len(label.data) != 1:
        raise ValueError("its label has four dimensions; three are expected")
    values = np.unique(label.data[0])
    if unknown := [f"{value:g}" for value in values if value not in labels.values]:
        raise ValueError(f"label value {unknown[0]} is not in dataset.json")
    if not values.any():
        raise ValueError("its label is all background")
    return np.searchsorted(labels.values, label.data[0]).astype(np.float32)


def _stamp(pair: Pair) -> list[int]:
    """Size and time of a pair's files, and the version of what is written of them: what has changed
    is converted anew."""
    stats = [path.stat() for path in pair.files]
    return [WRITTEN, *(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns))]


def _is_whole(out: Path, row: Mapping) -> bool:
    path = out / ARRAYS / f"{row['name']}.npy"
    return path.exists() and path.stat().st_size > row["bytes"]


def _read_progress(out: Path) -> dict[str, dict]:
    path = out / "progress.csv"
    if not path.exists():
        return {}
    done = {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for cells in csv.reader(file):
            try:
                row = json.loads(cells[0])
                done[row["name"]] = row
            except (ValueError, IndexError, TypeError, KeyError):
                continue  # a line cut off by a kill
    return done


def _refuse_rejected(rejected: Mapping, rows: list, out: Path, max_bad: int) -> None:
    if rows and len(rejected) <= max_bad:
        return
    (out / TABLE_FILE).unlink(missing_ok=True)
    name, reason = next(iter(rejected.items()))
    raise UserError(
        f"{len(rejected)} volume(s) rejected, more than --max_bad {max_bad}: {name}: {reason}; all "
        f"reasons are in {out / 'rejected.csv'}: mend or remove them, or allow that many"
    )


def _refuse_other_settings(out: Path, settings: Mapping) -> None:
    if not (out / "manifest.json").exists():
        return
    manifest = read_json(out / "manifest.json", advice="choose another --out")
    found = {key: manifest.get(key) for key in settings}
    if found != settings:
        raise UserError(f"{out} was made with {found}, not with {settings}: choose another --out")


def _manifest(settings: Mapping, content: Mapping, counts: Mapping) -> str:
    described = {"dataset": content.get("name", ""), **settings, **counts}
    return json.dumps(described, indent=2) + "\n"


def _write_table(out: Path, rows: list[dict], labels: Labels, known: Mapping) -> None:
    names = [row["name"] for row in rows]
    table = {"VolumeID": names}
    if "PatientID" in known:
        table["PatientID"] = [known["PatientID"][name] for name in names]
    if "site" in known:
        table["site"] = [known["site"][name] for name in names]
    else:
        table["site"] = sites_by_scale([row["scale"] for row in rows])
    table["shape"] = [row["shape"] for row in rows]
    table["spacing"] = [row["spacing"] for row in rows]
    counts = np.array([row["counts"] for row in rows])
    table |= {name: counts[:, at] for at, name in enumerate(labels.names)}
    with atomic_write(out / TABLE_FILE, "w") as file:
        pd.DataFrame(table).to_csv(file, index=False, lineterminator="\n")


def sites_by_scale(scales: list[float]) -> list[str]:
    """A site's name for each volume, from the scale of its intensities: scales that are
    more than a factor of two apart, with none between them, are two sites (in all
    likelihood two scanners or two ways of export)."""
    logs = np.log10(np.maximum(scales, 1e-12))
    order = np.argsort(logs, kind="stable")
    number = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > SITE_GAP)])
    site = np.empty(len(scales), dtype=np.int64)
    site[order] = number
    medians = [np.median(np.array(scales)[site == at]) for at in range(number[-1] + 1)]
    return [f"scale-{medians[at]:.0e}" for at in site]
