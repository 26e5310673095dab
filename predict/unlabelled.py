"""What test.py does with images without labels: probabilities, and pictures of the evidence."""

import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from dataloaders.dicom import Preprocessing
from predict.card import preprocessing_words
from predict.files import ImageFiles, Slice, in_utf8
from predict.gradcam import HeatPictures
from predict.inference import FilePredictions
from predict.model import Model, prediction_table
from predict.pseudonyms import Pseudonyms
from predict.scans import (
    REJECTED_FILE,
    scan_files,
    summary_lines,
    write_scan_predictions,
    write_studies,
)
from utils.errors import UserError
from utils.files import write_text
from utils.table_files import to_csv
from utils.workers import available_cores

PREDICTIONS_FILE = "predictions.csv"


# Where the results go, and what is said about the model and its use; neither names a patient where
# there are pseudonyms.
Place = Callable[[Pseudonyms | None], Path]
Facts = Callable[[Pseudonyms | None], Mapping[str, str]]


def predict_folder(model: Model, args: Namespace, place: Place, facts: Facts) -> None:
    """Probabilities per slice and per study of a folder of DICOM files."""
    scans = scan_files(args.dicom, model.scan_preprocessing(), model.image_size())
    names = None if args.keep_names else Pseudonyms([args.dicom])
    out = place(names)
    predictions = _predict_and_draw(model, scans, args, out, names)
    write_scan_predictions(out, predictions, model.class_names)
    _write_facts(model, model.scan_preprocessing(), out, facts(names))
    _end_with_summary(model, predictions, out, REJECTED_FILE, "slices")
    if not predictions.slices:
        raise UserError(f"--dicom {args.dicom}: none of its files is a CT slice that can be read")


def predict_anything(model: Model, args: Namespace, place: Place, facts: Facts) -> None:
    """predictions.csv of pictures, scans and volumes without labels; studies.csv where there are
    studies. Pictures keep their names where there is no DICOM file among them."""
    files = model.open(args.predict, args.root_path)
    names = Pseudonyms(args.predict) if files.hold_dicom() and not args.keep_names else None
    out = place(names)
    predictions = _predict_and_draw(model, files, args, out, names)
    table = prediction_table(predictions, model.class_names)
    rows = [["" if pd.isna(cell) else _cell(cell) for cell in row] for row in table.to_numpy()]
    write_text(out / PREDICTIONS_FILE, to_csv(list(table.columns), rows))
    if any(found.study for found in predictions.slices):
        write_studies(out, predictions, model.class_names)
    _write_facts(model, model.scans_or_none(), out, facts(names))
    _end_with_summary(model, predictions, out, PREDICTIONS_FILE, "images")
    if not predictions.slices:
        raise UserError(
            f"--predict: none of {len(predictions.rejected)} files can be read, "
            f"{predictions.rejected[0].file}: {predictions.rejected[0].reason}"
        )


def _predict_and_draw(
    model: Model, files: ImageFiles, args: Namespace, out: Path, names: Pseudonyms | None
) -> FilePredictions:
    """`Model.predict_files`; with --gradcam also a picture of the evidence for each. Under
    pseudonyms where `names` gives them: then their key is written, too."""
    workers = available_cores() if args.workers is None else args.workers
    drawing = HeatPictures(model.net, out / "gradcam") if args.gradcam else None
    if names is not None:
        names.begin(out, (in_utf8(file.name) for file in files.files))
    unlike = args.unlike or "refuse"

    def draw(slices: list[Slice], pixels: np.ndarray, probabilities: np.ndarray) -> None:
        named = slices if names is None else [names.of_slice(found) for found in slices]
        drawing(named, pixels, probabilities)

    sees_batch = draw if drawing is not None else None
    predictions = model.predict_files(files, args.batch_size, workers, unlike, sees_batch)
    if names is None:
        return predictions
    predictions = names.of_all(predictions)
    print(f"names stay in {names.write_key(out)}, which is not to be shown around (--keep_names)")
    return predictions


def _write_facts(
    model: Model, scans: Preprocessing | None, out: Path, facts: Mapping[str, str]
) -> None:
    """model.json: which checkpoint, and how its images were made."""
    made = preprocessing_words(model.image_size(), scans and scans._asdict())
    content = {**facts, "preprocessing": made}
    write_text(out / "model.json", json.dumps(content, indent=2) + "\n")


def _end_with_summary(
    model: Model, predictions: FilePredictions, out: Path, left_out_in: str, noun: str
) -> None:
    """What the terminal says at the end."""
    print("\n".join(summary_lines(predictions, left_out_in, noun)))
    if predictions.slices:
        print(
            f"every one is given one of the classes {', '.join(model.class_names)}, also one that "
            f"shows none of them; for research, not for clinical use\npredictions: {out}"
        )


def _cell(value: str | float) -> str:
    """A number so that it reads back exactly."""
    return value if isinstance(value, str) else repr(float(value))
