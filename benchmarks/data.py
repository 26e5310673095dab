"""Files to measure on: phantom slices under as many names as are wanted."""

import csv
import os
from pathlib import Path

from dataloaders.phantom.files import write_png
from dataloaders.phantom.patients import generate

DISTINCT_PATIENTS = 20  # of three slices each; the same file then has several names


def make_files(folder: Path, counts: dict[str, int], file_size: int) -> dict[str, Path]:
    """Images of `file_size` pixels under folder/images and a CSV per set of `counts`.

    The CSVs' paths by set. Names differ and so do the directory entries; the bytes repeat.
    """
    phantom = generate(
        DISTINCT_PATIENTS,
        size=file_size,
        seed=1,
        slices_per_patient=3,
        class_proportions=(1, 1, 1, 1, 1),
        with_bleed_rows_only=True,
        difficulty=0.3,
    )
    with write_png(phantom, folder / "distinct").open(newline="") as file:
        distinct = list(csv.DictReader(file))
    (folder / "images").mkdir()
    paths = {}
    for name, count in counts.items():
        paths[name] = folder / f"{name}.csv"
        _write_set(paths[name], name, count, distinct, folder)
    return paths


def _write_set(path: Path, name: str, count: int, distinct: list[dict], folder: Path) -> None:
    classes = [column for column in distinct[0] if column not in ("ImageID", "PatientID")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", *classes])
        for i in range(count):
            row = distinct[i % len(distinct)]
            image = f"{name}_{i:06d}.png"
            os.link(folder / "distinct" / "images" / row["ImageID"], folder / "images" / image)
            writer.writerow([image, *(row[column] for column in classes)])
