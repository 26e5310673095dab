"""RSNA intracranial haemorrhage: a folder of DICOM files and a long label file -> PNG + CSV."""

from functools import partial
from pathlib import Path

import numpy as np

from dataloaders.conversion import Conversion
from dataloaders.dicom import Preprocessing, UnreadableDicom, read_picture
from dataloaders.labelled_files import Options, find_files, prepare_labelled
from dataloaders.rsna_labels import SUBTYPES, read_rsna_labels

RECORD_COLUMNS = ("PatientID", "StudyInstanceUID", "site")


def prepare_rsna(
    dicom_dir: Path, labels: Path, out: Path, preprocessing: Preprocessing, options: Options
) -> None:
    """Make a picture of every labelled DICOM file, and write labels.csv with ImageID, PatientID,
    StudyInstanceUID, site and the five subtypes. Images with no or several subtypes stay in.

    Raises `UserError` as `prepare_labelled` and `read_rsna_labels` do.
    """
    files = find_files(dicom_dir, (".dcm",), "--dicom_dir")
    long_labels = read_rsna_labels(labels)
    print(
        f"{labels}: {long_labels.rows:,} rows, {long_labels.duplicates:,} of them exact "
        f"duplicates, {len(long_labels.table):,} images"
    )
    settings = {"command": "prepare rsna", "preprocessing": preprocessing._asdict()}
    prepare_labelled(
        Conversion(out, settings, RECORD_COLUMNS),
        long_labels.table,
        files,
        partial(convert_dicom, preprocessing=preprocessing),
        options,
        {
            "dicom_dir": str(dicom_dir),
            "labels": str(labels),
            "classes": list(SUBTYPES),
            "label_rows": long_labels.rows,
            "duplicate_label_rows": long_labels.duplicates,
        },
    )


def convert_dicom(
    path: str, preprocessing: Preprocessing
) -> tuple[np.ndarray, tuple[str, str, str]]:
    """The picture of a DICOM file and its record: PatientID, StudyInstanceUID, site.

    Raises `UnreadableDicom`, also where the header has no PatientID or StudyInstanceUID: without
    them a patient could stand on both sides of a split.
    """
    picture = read_picture(path, *preprocessing)
    if not picture.patient_id or not picture.study_uid:
        raise UnreadableDicom(f"no {'StudyInstanceUID' if picture.patient_id else 'PatientID'}")
    return picture.image, (picture.patient_id, picture.study_uid, picture.site)
