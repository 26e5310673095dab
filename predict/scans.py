"""A folder of DICOM files -> probabilities for each slice and for each study."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataloaders.augment import normalize
from dataloaders.dicom import Preprocessing, UnreadableDicom, read_picture, resize_picture
from dataloaders.prepare.conversion import Rejected
from networks.models import Network
from predict.inference import probabilities_of
from utils.errors import UserError
from utils.files import write_text
from utils.table_files import to_csv
from utils.tensors import net_device

SLICES_FILE, STUDIES_FILE, REJECTED_FILE = "slices.csv", "studies.csv", "rejected.csv"


class Slice(NamedTuple):
    """A readable file: its path below the folder, its header's ids ("" where it has none), and
    what is irregular about it (see `dataloaders.dicom.Picture`)."""

    file: str
    study: str
    patient: str
    note: str


class ScanPredictions(NamedTuple):
    """probabilities: float64 (N, C), softmax, one row per slice. seconds: reading included."""

    slices: list[Slice]
    probabilities: np.ndarray
    rejected: list[Rejected]
    seconds: float


class ScanFiles(Dataset):
    """The files below a folder as pictures of `image_size` pixels, made as in training: first the
    picture that `prepare` would have stored, then that one resized as the training images were."""

    def __init__(self, folder: Path, preprocessing: Preprocessing, image_size: int):
        self.folder = folder
        self.files = find_all_files(folder)
        self.preprocessing = preprocessing
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Slice, np.ndarray] | Rejected:
        """The slice and its pixels, uint8 (C, S, S); or why the file gives none."""
        file = self.files[index]
        try:
            picture = read_picture(self.folder / file, *self.preprocessing)
        except UnreadableDicom as error:
            return Rejected(_in_utf8(file), str(error))
        pixels = resize_picture(Image.fromarray(picture.image), self.image_size)
        channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        found = Slice(_in_utf8(file), picture.study_uid, picture.patient_id, picture.note)
        return found, channels_first


def find_all_files(folder: Path) -> list[str]:
    """Every file below `folder`, whatever its name (archives often leave off .dcm), as sorted
    paths relative to it. Links to folders are not followed. `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"--dicom {folder}: no such folder")
    walked = os.walk(folder, onerror=_refuse_folder)
    files = [
        os.path.relpath(Path(place, name), folder) for place, _, names in walked for name in names
    ]
    if not files:
        raise UserError(f"--dicom {folder}: has no files")
    return sorted(files)


def _in_utf8(name: str) -> str:
    """`name` with escapes for bytes that are no UTF-8, which a CSV could not hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"--dicom {error.filename}: {error.strerror}; make it readable or move it away")


def predict_scans(net: Network, scans: ScanFiles, batch_size: int, workers: int) -> ScanPredictions:
    """Softmax probabilities of every file that can be read, in the files' order.

    `workers` processes read while the network computes; 0 reads in this one.
    """
    device = net_device(net)
    started = time.perf_counter()
    loader = DataLoader(scans, batch_size, num_workers=min(workers, len(scans)), collate_fn=list)
    slices, rejected, logits = [], [], []
    net.eval()
    with torch.no_grad(), tqdm(total=len(scans), unit="file", disable=None) as bar:
        for items in _whole_batches(loader):
            read = [item for item in items if not isinstance(item, Rejected)]
            rejected += [item for item in items if isinstance(item, Rejected)]
            slices += [found for found, _ in read]
            if read:
                pixels = torch.from_numpy(np.stack([pixels for _, pixels in read]))
                logits.append(net(normalize(pixels.to(device).float()))[1].cpu())
            bar.update(len(items))
    if not slices:
        return ScanPredictions([], np.empty((0, 0)), rejected, time.perf_counter() - started)
    probabilities = probabilities_of(torch.cat(logits), lambda row: slices[row].file)
    return ScanPredictions(slices, probabilities, rejected, time.perf_counter() - started)


def _whole_batches(loader: DataLoader) -> Iterator[list]:
    """The loader's batches; a reading process that is killed is a `UserError`."""
    try:
        yield from loader
    except RuntimeError as error:
        raise UserError(
            f"a process that reads scans was ended ({str(error).splitlines()[0]}); if memory is "
            "short, give --workers 0"
        ) from error


def write_scan_predictions(
    folder: Path, predictions: ScanPredictions, class_names: Sequence[str]
) -> None:
    """slices.csv, studies.csv (each study's largest probability of each class over its slices;
    they need not add up to 1) and rejected.csv. Slices without a study are in the first alone."""
    slices, probabilities, rejected, _ = predictions
    rows = [
        [found.file, found.study, found.patient, *map(repr, values), found.note]
        for found, values in zip(slices, probabilities.tolist(), strict=True)
    ]
    header = ["File", "StudyInstanceUID", "PatientID", *class_names, "note"]
    write_text(folder / SLICES_FILE, to_csv(header, rows))
    header = ["StudyInstanceUID", "PatientID", "slices", *class_names]
    write_text(folder / STUDIES_FILE, to_csv(header, _study_rows(slices, probabilities)))
    write_text(folder / REJECTED_FILE, to_csv(Rejected._fields, rejected))


def _study_rows(slices: Sequence[Slice], probabilities: np.ndarray) -> list[list[str]]:
    members: dict[tuple[str, str], list[int]] = {}
    for index, found in enumerate(slices):
        if found.study:
            members.setdefault((found.study, found.patient), []).append(index)
    return [
        [study, patient, str(len(rows)), *map(repr, probabilities[rows].max(axis=0).tolist())]
        for (study, patient), rows in members.items()
    ]


def summary_lines(predictions: ScanPredictions) -> list[str]:
    """What was read, how fast, and what was left out, for the terminal."""
    slices, _, rejected, seconds = predictions
    studies = {found.study for found in slices if found.study}
    lines = [
        f"{len(slices)} slices of {len(studies)} studies in {seconds:.1f} s: "
        f"{len(slices) / seconds:.1f} slices/s, reading included"
    ]
    if without := sum(not found.study for found in slices):
        lines.append(f"{without} slices name no StudyInstanceUID: in {SLICES_FILE} alone")
    if noted := Counter(found.note for found in slices if found.note):
        lines += [f"{count} slices are irregular: {note}" for note, count in noted.most_common()]
    reasons = Counter(item.reason for item in rejected)
    if rejected:
        lines.append(f"files left out: {len(rejected)}, listed in {REJECTED_FILE}")
        lines += [f"  {count} x {reason}" for reason, count in reasons.most_common()]
    return lines
