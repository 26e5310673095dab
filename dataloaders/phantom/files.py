"""The phantom on disk: PNG + CSV, DICOM + Kaggle's long label file, and a contact sheet."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dataloaders.phantom.head import FIELD_OF_VIEW
from dataloaders.phantom.patients import SLICE_SPACING, Phantom
from dataloaders.windows import WINDOWS, window_picture
from utils.errors import UserError
from utils.files import atomic_write, sweep_temporary_files, write_text
from utils.table_files import to_csv
from utils.workers import cancelling_pool

WINDOW_NAMES = ("triple", *WINDOWS)
# (bits stored, signed, intercept) of the scanners in the RSNA collection. The last one writes the
# header that the standard repair mends: Hounsfield units modulo 4096 in 12 bits, under an
# intercept of 0; nothing lower than air comes back from there.
SCANNERS = ((16, True, -1024), (12, False, -1024), (12, False, 0))
LOWEST_WRAPPED = -1000
TABLE_COLUMNS = ("class", "slices", "patients")


def write_png(
    phantom: Phantom,
    out: str | os.PathLike,
    window: str = "triple",
    labelled_only: bool = True,
) -> Path:
    """Write `out`/images/ID_x.png, `out`/labels.csv and, as `dataloaders.prepare` does, how the
    pictures were made to `out`/manifest.json; the path of the CSV.

    `window` is one of `WINDOW_NAMES`: "triple" gives RGB pictures, the others grey ones. The CSV
    has ImageID (the file's name), PatientID and a 0/1 column per class. With `labelled_only` it
    and the folder hold only the slices of exactly one subtype, as training needs them. The same
    phantom gives the same bytes. `UserError` if no slice is left or the folder holds other files
    already.
    """
    out = Path(out)
    subtypes = phantom.labels.sum(axis=1)
    kept = np.flatnonzero(subtypes == 1) if labelled_only else np.arange(len(subtypes))
    if not len(kept):
        raise UserError("no slice shows exactly one kind of bleed; draw more patients who bleed")
    names = [f"{phantom.image_ids[index]}.png" for index in kept]
    _refuse_strangers(out / "images", names)

    def write(index: int, name: str) -> None:
        picture = window_picture(phantom.hounsfield[index], window)
        with atomic_write(out / "images" / name) as file:
            Image.fromarray(picture).save(file, format="PNG")

    _in_parallel(write, kept, names)
    preprocessing = {"window": window, "size": phantom.hounsfield.shape[-1]}
    manifest = {"command": "phantom", "preprocessing": preprocessing}
    write_text(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    rows = [
        [name, phantom.patient_ids[index], *map(str, phantom.labels[index])]
        for index, name in zip(kept, names, strict=True)
    ]
    return _write_csv(out / "labels.csv", ["ImageID", "PatientID", *phantom.class_names], rows)


def write_dicom(phantom: Phantom, out: str | os.PathLike) -> Path:
    """Write `out`/stage_2_train/ID_x.dcm and `out`/stage_2_train.csv; the path of the latter.

    CT Image Storage with the scanners' quirks of SOURCES.md, one scanner per patient: 16 bits
    signed, 12 bits unsigned, and 12 bits with the broken intercept that the standard repair
    mends; window tags of one or of two values. Read back (and repaired), the pixels are exactly
    `phantom.hounsfield`. Patient name, birth date and the other identifying tags are planted, so
    that a search for what leaks has something to find. The CSV is Kaggle's long form: a row
    `ID_x_<subtype>,Label` for each subtype and for `any`. `UserError` if the folder holds other
    files already.
    """
    out = Path(out)
    names = [f"{image_id}.dcm" for image_id in phantom.image_ids]
    _refuse_strangers(out / "stage_2_train", names)
    order = {patient: number for number, patient in enumerate(dict.fromkeys(phantom.patient_ids))}
    instances = _places_in_study(phantom.study_ids)

    def write(index: int, name: str) -> None:
        scan = _dicom(phantom, index, order[phantom.patient_ids[index]], instances[index])
        with atomic_write(out / "stage_2_train" / name) as file:
            scan.save_as(file, enforce_file_format=True)

    _in_parallel(write, range(len(names)), names)
    rows = []
    for image_id, labels in zip(phantom.image_ids, phantom.labels, strict=True):
        named = zip((*phantom.class_names, "any"), (*labels, labels.max()), strict=True)
        rows += [[f"{image_id}_{name}", str(label)] for name, label in named]
    return _write_csv(out / "stage_2_train.csv", ["ID", "Label"], rows)


def class_table(phantom: Phantom) -> list[list[str]]:
    """Rows of `TABLE_COLUMNS`: each class, "healthy" for slices without a bleed, and the total."""
    patients = np.array(phantom.patient_ids)
    shown = {name: phantom.labels[:, i] == 1 for i, name in enumerate(phantom.class_names)}
    shown["healthy"] = ~phantom.labels.any(axis=1)
    shown["total"] = np.ones(len(patients), dtype=bool)
    return [
        [name, str(mask.sum()), str(len(np.unique(patients[mask])))] for name, mask in shown.items()
    ]


def write_contact_sheet(
    phantom: Phantom, path: str | os.PathLike, columns: int = 8, window: str = "brain"
) -> None:
    """Write a PNG with a row per class (and one of healthy slices) of randomly drawn slices.

    A row shows as many different patients as there are, up to `columns`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [*phantom.class_names, "healthy"]
    margin, cell = 0.3, 1.25  # inches
    width = cell * columns + margin
    figure = Figure(figsize=(width, cell * len(names)), facecolor="black", dpi=150)
    axes = figure.subplots(len(names), columns, squeeze=False)
    figure.subplots_adjust(margin / width, bottom=0, right=1, top=1, wspace=0.01, hspace=0.01)
    rng = np.random.default_rng(0)
    for row, name in zip(axes, names, strict=True):
        for axis in row:
            axis.set_axis_off()
        row[0].text(
            -0.02, 0.5, name, color="white", fontsize=9, ha="right", va="center",
            rotation=90, transform=row[0].transAxes,
        )  # fmt: skip
        chosen = _one_per_patient(phantom, name, rng)[:columns]
        for axis, index in zip(row, chosen, strict=False):
            picture = window_picture(phantom.hounsfield[index], window)
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _one_per_patient(phantom: Phantom, name: str, rng: np.random.Generator) -> np.ndarray:
    """Indices of slices that show only the named class, in random order, one per patient first."""
    if name == "healthy":
        wanted = ~phantom.labels.any(axis=1)
    else:
        column = phantom.labels[:, phantom.class_names.index(name)]
        wanted = (column == 1) & (phantom.labels.sum(axis=1) == 1)
    shuffled = rng.permutation(np.flatnonzero(wanted))
    _, first = np.unique(np.array(phantom.patient_ids)[shuffled], return_index=True)
    repeated = np.setdiff1d(np.arange(len(shuffled)), first)
    return shuffled[np.concatenate([np.sort(first), repeated])]


def _refuse_strangers(folder: Path, names: Sequence[str]) -> None:
    if not folder.is_dir():
        return
    sweep_temporary_files(folder)
    strangers = {path.name for path in folder.iterdir()} - set(names)
    if strangers:
        raise UserError(
            f"{folder} holds {len(strangers)} files of another data set (such as "
            f"{min(strangers)}); choose another --out or remove that folder"
        )


def _in_parallel(write, indices: Sequence[int], names: Sequence[str]) -> None:
    """Call `write(index, name)` for each pair; waiting for the disk overlaps with encoding."""
    with cancelling_pool(4) as pool:
        list(pool.map(write, indices, names))


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with atomic_write(path, "w") as file:
        file.write(to_csv(header, rows, exact=True))
    return path


def _places_in_study(study_ids: Sequence[str]) -> list[int]:
    """For each slice its number within its study, from 1."""
    seen: dict[str, int] = {}
    places = []
    for study in study_ids:
        seen[study] = seen.get(study, 0) + 1
        places.append(seen[study])
    return places


def _dicom(phantom: Phantom, index: int, patient_number: int, instance: int) -> Dataset:
    """Slice `index` as a DICOM data set ready to be saved."""
    image_id, study = phantom.image_ids[index], phantom.study_ids[index]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(study, image_id)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan = Dataset()
    scan.file_meta = meta
    scan.SOPClassUID = CTImageStorage
    scan.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    scan.StudyInstanceUID = study
    scan.SeriesInstanceUID = _uid(study, "series")
    scan.FrameOfReferenceUID = _uid(study, "frame")
    scan.PatientID = phantom.patient_ids[index]
    _plant_identity(scan, int(hashlib.sha256(scan.PatientID.encode()).hexdigest(), 16))
    scan.Modality = "CT"
    scan.StudyID = str(patient_number + 1)
    scan.SeriesNumber = "2"
    scan.InstanceNumber = str(instance)
    scan.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    _put_pixels(scan, phantom.hounsfield[index], SCANNERS[patient_number % len(SCANNERS)])
    spacing = FIELD_OF_VIEW / phantom.hounsfield.shape[1]
    corner = (spacing - FIELD_OF_VIEW) / 2
    scan.PixelSpacing = [spacing, spacing]
    scan.SliceThickness = SLICE_SPACING
    scan.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    scan.ImagePositionPatient = [corner, corner, SLICE_SPACING * instance]
    windows = ((40, 80), ([36, 36], [80, 80]), (30, 80), ([40, 80], [80, 200]))
    scan.WindowCenter, scan.WindowWidth = windows[patient_number % len(windows)]
    return scan


def _plant_identity(scan: Dataset, number: int) -> None:
    """Invented personal data that nothing made from the pictures may contain."""
    families = ("Musterfrau", "Novakova", "Dupont", "Janssen", "Rossi", "Kowalski", "Tanaka")
    scan.PatientName = f"{families[number % 7]}^Phantom{number // 7 % 100000:05d}"
    scan.PatientBirthDate = f"{1925 + number % 80}{number % 12 + 1:02d}{number % 28 + 1:02d}"
    scan.PatientSex = "FM"[number % 2]
    scan.PatientAddress = f"{number % 900 + 1} Planted Street"
    scan.InstitutionName = "Planted General Hospital"
    scan.ReferringPhysicianName = "Planted^Referrer"
    scan.AccessionNumber = f"PLANTED{number % 10**8:08d}"
    scan.StudyDate = f"2017{number % 12 + 1:02d}{number % 27 + 1:02d}"
    scan.StudyTime = f"{number % 24:02d}{number % 60:02d}00"


def _uid(study: str, name: str) -> str:
    """A UID of the UUID kind (2.25 and 128 bits), the same for the same study and name."""
    number = hashlib.blake2b(f"{study}/{name}".encode(), digest_size=16).digest()
    return f"2.25.{int.from_bytes(number, 'big')}"


def _put_pixels(scan: Dataset, hounsfield: np.ndarray, scanner: tuple[int, bool, int]) -> None:
    bits, signed, intercept = scanner
    stored = hounsfield.astype(np.int32) + 1024
    if intercept == 0:
        stored = np.maximum(hounsfield.astype(np.int32), LOWEST_WRAPPED) % 4096
    scan.SamplesPerPixel = 1
    scan.PhotometricInterpretation = "MONOCHROME2"
    scan.Rows, scan.Columns = hounsfield.shape
    scan.BitsAllocated = 16
    scan.BitsStored = bits
    scan.HighBit = bits - 1
    scan.PixelRepresentation = int(signed)
    scan.RescaleIntercept = str(intercept)
    scan.RescaleSlope = "1"
    scan.RescaleType = "HU"
    scan.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
