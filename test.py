"""A saved checkpoint against a test set, or on a folder of scans.

python test.py --resume runs/NAME/checkpoints/epoch_99.pth --root_path DIR --csv_file_test C.csv
python test.py --resume CHECKPOINT --medmnist FILE.npz
python test.py --resume CHECKPOINT --dicom DIR
"""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.dicom import WINDOW_CHOICES, Preprocessing
from dataloaders.medmnist import load_medmnist
from dataloaders.overlap import compare_all, members_of, overlaps_with_run, warning_line
from dataloaders.table import MULTI_LABEL, read_table
from networks.devices import (
    choose_devices,
    choose_precision,
    place_network,
    set_precision,
)
from networks.models import Network
from networks.saved import build_network, load_model, load_weights
from options import DEFAULT_CACHE, PRECISIONS
from predict.card import (
    copy_history,
    describe_model,
    describe_run,
    preprocessing_words,
    report_network,
)
from predict.inference import predict_set
from predict.scans import ScanFiles, predict_scans, summary_lines, write_scan_predictions
from record.opening import describe_environment, is_run
from utils.commands import command_line
from utils.errors import OneLineParser, UserError, run_command, whole_number
from utils.files import write_text
from utils.metrics.evaluation import YOUDEN, evaluation_tables, print_tables, threshold_number
from utils.metrics.numbers import DEFAULT_THRESHOLD
from utils.report.page import TEST_FILE, VALIDATION_FILE
from utils.workers import available_cores

# What --dicom alone needs, and what it has no use for: scans come without labels.
SCANS_ONLY = ("window", "size", "workers")
SIZES = range(16, 1025)
HOW_TO_KNOW = {
    "image_size": "the flag it was trained with, 224 for the released program",
    "window": "the flag of `dataloaders.prepare rsna`, triple by default",
    "size": "the flag of `dataloaders.prepare rsna`, 128 by default",
}
LABELLED_ONLY = (
    "root_path",
    "csv_file_val",
    "multi_label",
    "threshold",
    "sweep",
    "cache_dir",
    "allow_overlap",
)


class Model(NamedTuple):
    """A checkpoint ready to predict. content: everything in the file but its weights."""

    path: Path
    net: Network
    content: dict
    precision: str

    def facts(self) -> dict[str, str]:
        """What is to be said about the model and about how it was used."""
        command = shlex.join(["python", *sys.argv])
        return describe_model(self.path, self.content) | {
            "evaluated with": f"{command} (backbone in {self.precision})"
        }

    def image_size(self, given: int | None) -> int:
        """Pixels per side of the images the network was trained on; see `_settle`."""
        return self._settle("image_size", given, self.content.get("preprocessing", {}))

    def scan_preprocessing(self, window: str | None, size: int | None) -> Preprocessing:
        """How those images were made from scans; see `_settle`."""
        recorded = self.content.get("preprocessing", {}).get("dicom", {})
        preprocessing = Preprocessing(
            self._settle("window", window, recorded), self._settle("size", size, recorded)
        )
        if preprocessing.window not in WINDOW_CHOICES or preprocessing.size not in SIZES:
            raise UserError(f"{self.path}: names a preprocessing that this program does not know")
        return preprocessing

    def _settle(self, name: str, given, recorded: dict):
        """What the file records, or where it is silent the flag's value.

        Raises `UserError` where neither says it, or where they disagree.
        """
        value = recorded.get(name, given)
        if value is None:
            raise UserError(
                f"{self.path}: does not say how its images were made; say it with --{name}, "
                f"{HOW_TO_KNOW[name]}"
            )
        if given not in (None, value):
            raise UserError(f"--{name} {given}: {self.path} was trained with {value}")
        return value


def main() -> None:
    """Predict, and write everything about the predictions."""
    args = parse()
    model = load(args)
    out = args.out or default_folder(args)
    if args.dicom is not None:
        predict_folder(model, args, out)
    else:
        report_labelled(model, args, out)


def load(args: argparse.Namespace) -> Model:
    """The network of --resume on its device."""
    weights, content = load_model(args.resume, args.class_names)
    net = build_network(content["architecture"], content["class_names"])
    load_weights(net, weights, args.resume)
    device = choose_devices(args.gpu, print, default="0")[0]
    net = place_network(net, device)
    precision = choose_precision(args.precision, [device])
    set_precision([net], precision)
    return Model(args.resume, net, content, precision)


def report_labelled(model: Model, args: argparse.Namespace, out: Path) -> None:
    """Metrics, tables, figures and REPORT.md of labelled images."""
    mode = model.content["architecture"]["mode"]
    datasets = load_images(args, mode, model.image_size(args.image_size))
    for images in datasets.values():
        refuse_other_classes(images, model)
    check_overlap(args, datasets)
    predictions = {
        name: predict_set(model.net, images, args.batch_size) for name, images in datasets.items()
    }
    facts = model.facts()
    if (run := run_folder(args.resume)) is not None:
        facts |= describe_run(run, datasets["test"])
        environment = describe_environment([next(model.net.parameters()).device])
        copy_history(run, out, environment, model.content["round"])
    evaluation = report_network(
        out,
        model.net,
        datasets["test"],
        predictions["test"],
        facts,
        args.threshold or DEFAULT_THRESHOLD,
        predictions.get("val"),
        bool(args.sweep),
    )
    print_tables(evaluation_tables(evaluation, bool(args.sweep)))
    flags = {"threshold": args.threshold, "sweep": args.sweep, "allow_overlap": args.allow_overlap}
    if "val" in predictions:
        flags["predictions_val"] = out / VALIDATION_FILE
    again = command_line("-m utils.metrics", flags, out / TEST_FILE)
    print(f"\nreport: {out / 'REPORT.md'}; score again: {again}")


def load_images(
    args: argparse.Namespace, label_uncertainty: str, image_size: int
) -> dict[str, ImageDataset]:
    """The data set "test", and "val" where a threshold is to be chosen on it."""
    if args.medmnist is not None:
        splits = ("validation", "testing") if args.threshold == YOUDEN else ("testing",)
        return load_medmnist(args.medmnist, image_size, "auto", splits)[1]
    files = {"test": args.csv_file_test, "val": args.csv_file_val}
    cache_dir = args.cache_dir or DEFAULT_CACHE
    return {
        name: load_dataset(
            read_table(path, label_uncertainty, args.multi_label or "refuse"),
            args.root_path,
            image_size,
            "auto",
            cache_dir,
            print,
        )
        for name, path in files.items()
        if path is not None
    }


def check_overlap(args: argparse.Namespace, datasets: dict[str, ImageDataset]) -> None:
    """Say what the sets share with each other and with those of the run; refuse thresholds that
    would be chosen on images that are tested."""
    order = {name: datasets[name] for name in ("val", "test") if name in datasets}
    overlaps = compare_all(members_of(order))
    for overlap in overlaps:
        if overlap.images and not args.allow_overlap:
            raise UserError(
                f"--threshold youden: chosen on images that are tested ({overlap.words()}); give "
                "another --csv_file_val, or add --allow_overlap and say so with the numbers"
            )
    if (run := run_folder(args.resume)) is not None:
        overlaps += overlaps_with_run(run, datasets["test"])
    if (line := warning_line(overlaps)) is not None:
        print(line)


def refuse_other_classes(images: ImageDataset, model: Model) -> None:
    """Raise `UserError` unless the data set's classes are the checkpoint's, in its order."""
    names = model.content["class_names"]
    if list(images.class_names) != names:
        raise UserError(
            f"the images' classes are {', '.join(images.class_names)}, but {model.path} was made "
            f"for {', '.join(names)}; give the columns these names in this order"
        )


def predict_folder(model: Model, args: argparse.Namespace, out: Path) -> None:
    """Probabilities per slice and per study of a folder of DICOM files."""
    preprocessing = model.scan_preprocessing(args.window, args.size)
    image_size = model.image_size(args.image_size)
    scans = ScanFiles(args.dicom, preprocessing, image_size)
    workers = available_cores() if args.workers is None else args.workers
    predictions = predict_scans(model.net, scans, args.batch_size, workers)
    write_scan_predictions(out, predictions, model.content["class_names"])
    facts = model.facts() | {
        "preprocessing": preprocessing_words(image_size, preprocessing._asdict())
    }
    write_text(out / "model.json", json.dumps(facts, indent=2) + "\n")
    for line in summary_lines(predictions):
        print(line)
    if not predictions.slices:
        raise UserError(f"--dicom {args.dicom}: none of its files is a CT slice that can be read")
    print(
        f"every slice is given one of the classes {', '.join(model.content['class_names'])}, also "
        f"one that shows none of them; for research, not for clinical use\npredictions: {out}"
    )


def parse() -> argparse.Namespace:
    """The command line, checked."""
    parser = OneLineParser(
        prog="python test.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    args = parser.parse_args()
    sources = [
        name for name in ("csv_file_test", "medmnist", "dicom") if getattr(args, name) is not None
    ]
    if len(sources) != 1:
        raise UserError("give one of --csv_file_test, --medmnist and --dicom")
    for name in LABELLED_ONLY if args.dicom else SCANS_ONLY:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: has no meaning with --{sources[0]}; leave it out")
    if args.csv_file_test and args.root_path is None:
        raise UserError("--root_path is missing: the folder of the images in --csv_file_test")
    if args.threshold == YOUDEN:
        if args.csv_file_test and args.csv_file_val is None:
            raise UserError("--threshold youden: needs --csv_file_val to choose the threshold on")
    elif args.threshold is not None:
        threshold_number(args.threshold)
    return args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags. Those of one kind of source have no default, so that typing them is noticed."""
    add = parser.add_argument
    add("--resume", type=Path, required=True, help="checkpoint: epoch_N.pth")
    add("--csv_file_test", type=Path, help="CSV of the test images")
    add("--root_path", type=Path, help="folder of the images named in the CSVs")
    add("--csv_file_val", type=Path, help="CSV of validation images, for --threshold youden")
    add("--medmnist", type=Path, help="a MedMNIST .npz file, instead of folder and CSV")
    add("--dicom", type=Path, help="a folder of scans without labels, searched to its depth")
    add("--multi_label", choices=MULTI_LABEL, help="rows without exactly one class (refuse)")
    add("--threshold", help="on softmax: a number (0.4), or youden: chosen on validation data")
    add(
        "--sweep",
        action="store_true",
        default=None,
        help="also the released program's thresholds, tried on the test set itself: optimistic",
    )
    add(
        "--allow_overlap",
        action="store_true",
        default=None,
        help="choose thresholds although validation images are also tested",
    )
    add("--class_names", nargs="+", help="of a checkpoint that does not name its classes")
    add(
        "--image_size",
        type=whole_number("--image_size", 32, 4096),
        help="of a checkpoint that does not say; pixels per side",
    )
    add("--window", choices=WINDOW_CHOICES, help="of a checkpoint that does not say, for --dicom")
    add(
        "--size",
        type=whole_number("--size", SIZES[0], SIZES[-1]),
        help="pixels per side of the prepared images, likewise",
    )
    add(
        "--workers",
        type=whole_number("--workers", 0, 1024),
        help="processes that read scans (as many as there are cores)",
    )
    add(
        "--batch_size",
        type=whole_number("--batch_size", 1, 65536),
        default=48,
        help="images per forward pass",
    )
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 where a GPU has it")
    add("--gpu", default="0", help="CUDA device, or cpu")
    add("--cache_dir", type=Path, help="folder for decoded images (data/cache)")
    add("--out", type=Path, help="folder for the results; default: in the run's tests/")


def run_folder(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, if it does."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and is_run(folder) else None


def default_folder(args: argparse.Namespace) -> Path:
    """Where results go: one folder for each checkpoint and source, beside the run's own files."""
    file = args.csv_file_test or args.medmnist
    source = os.path.basename(os.path.abspath(args.dicom)) if file is None else file.stem
    run = run_folder(args.resume)
    tests = args.resume.parent if run is None else run / "tests"
    return tests / f"{args.resume.stem}-{source}"


if __name__ == "__main__":
    run_command(main)
