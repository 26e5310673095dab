"""A folder of DICOM files -> probabilities for each slice and for each study."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.dicom import Preprocessing
from dataloaders.prepare.conversion import Rejected
from predict.files import ImageFiles, Slice, find_all_files
from predict.inference import FilePredictions
from utils.files import write_text
from utils.table_files import to_csv

SLICES_FILE, STUDIES_FILE, REJECTED_FILE = "slices.csv", "studies.csv", "rejected.csv"


def scan_files(folder: Path, preprocessing: Preprocessing, image_size: int) -> ImageFiles:
    """The files below a folder as pictures of `image_size` pixels, made as in training; whatever is
    no DICOM file is rejected. `UserError` where there is no file."""
    files = find_all_files(folder, "--dicom")
    return ImageFiles(files, image_size, preprocessing, only_dicom=True)


def write_scan_predictions(
    folder: Path, predictions: FilePredictions, class_names: Sequence[str]
) -> None:
    """slices.csv, studies.csv (each study's largest probability of each class over its slices;
    they need not add up to 1) and rejected.csv. Slices without a study are in the first alone."""
    slices, probabilities = predictions.slices, predictions.probabilities
    rows = [
        [found.file, found.study, found.patient, *map(repr, values), found.note]
        for found, values in zip(slices, probabilities.tolist(), strict=True)
    ]
    header = ["File", "StudyInstanceUID", "PatientID", *class_names, "note"]
    write_text(folder / SLICES_FILE, to_csv(header, rows))
    write_studies(folder, predictions, class_names)
    write_text(folder / REJECTED_FILE, to_csv(Rejected._fields, predictions.rejected))


def write_studies(folder: Path, predictions: FilePredictions, class_names: Sequence[str]) -> None:
    """studies.csv, see `write_scan_predictions`."""
    header = ["StudyInstanceUID", "PatientID", "slices", *class_names]
    rows = _study_rows(predictions.slices, predictions.probabilities)
    write_text(folder / STUDIES_FILE, to_csv(header, rows))


def _study_rows(slices: Sequence[Slice], probabilities: np.ndarray) -> list[list[str]]:
    members: dict[tuple[str, str], list[int]] = {}
    for index, found in enumerate(slices):
        if found.study:
            members.setdefault((found.study, found.patient), []).append(index)
    return [
        [study, patient, str(len(rows)), *map(repr, probabilities[rows].max(axis=0).tolist())]
        for (study, patient), rows in members.items()
    ]


def summary_lines(
    predictions: FilePredictions, left_out_in: str = REJECTED_FILE, noun: str = "slices"
) -> list[str]:
    """What was read, how fast, and what was left out, for the terminal."""
    slices, rejected, seconds = predictions.slices, predictions.rejected, predictions.seconds
    studies = {found.study for found in slices if found.study}
    of = f" of {len(studies)} studies" if studies else ""
    lines = [
        f"{len(slices)} {noun}{of} in {seconds:.1f} s: "
        f"{len(slices) / seconds:.1f} {noun}/s, reading included"
    ]
    if studies and (without := sum(not found.study for found in slices)):
        lines.append(f"{without} slices name no StudyInstanceUID: in {SLICES_FILE} alone")
    if noted := Counter(found.note for found in slices if found.note):
        lines += [f"{count} {noun} are irregular: {note}" for note, count in noted.most_common()]
    if unlike := sum(map(bool, predictions.unlike)):
        lines.append(f"{unlike} {noun} are nothing like the images of the training")
    return lines + left_out_lines([item.reason for item in rejected], left_out_in)


def left_out_lines(reasons: Sequence[str], listed_in: str) -> list[str]:
    """How many files were left out, and for what, the most frequent reason first; [] for none."""
    if not reasons:
        return []
    counted = Counter(reasons).most_common()
    return [
        f"files left out: {len(reasons)}, listed in {listed_in}",
        *(f"  {count} x {reason}" for reason, count in counted),
    ]
