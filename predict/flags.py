"""The flags of test.py: for images and volumes with labels, and for pictures and scans without."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dataloaders.windows import WINDOW_CHOICES
from options import MULTI_LABEL, PRECISIONS
from utils.errors import OneLineParser, whole_number

DEFAULT_GPU = "0"
UNLIKE = ("refuse", "predict")
SIZES = range(16, 1025)  # of a prepared picture, pixels per side
SOURCES = ("csv_file_test", "medmnist", "predict", "dicom")
# What has a meaning with labels, and what without.
LABELLED_ONLY = ("csv_file_val", "multi_label", "threshold", "sweep", "cache_dir")
LABELLED_ONLY += ("allow_overlap", "follow_links", "report_ids")
UNLABELLED_ONLY = ("window", "size", "workers", "unlike", "gradcam", "keep_names")
NO_MEANING_WITH = {
    "csv_file_test": UNLABELLED_ONLY,
    "medmnist": (*UNLABELLED_ONLY, "root_path", "csv_file_val", "multi_label", "follow_links"),
    "predict": LABELLED_ONLY,
    "dicom": (*LABELLED_ONLY, "root_path"),
}
# What may name a patient, whose folder is often called after him.
NAMING = ("predict", "dicom", "root_path", "out", "csv_file_test")
IMAGES_ONLY = (*LABELLED_ONLY, *UNLABELLED_ONLY, "root_path", "medmnist", "dicom", "image_size")


def build_parser(description: str) -> OneLineParser:
    """The parser of the command line, whose --help begins with `description`."""
    parser = OneLineParser(
        prog="python test.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags. Those of one kind of source have no default, so that typing them is noticed."""
    _add_images(parser.add_argument)
    _add_judgement(parser.add_argument)
    _add_reading(parser.add_argument)


def _add_images(add: Callable) -> None:
    add("--resume", type=Path, required=True, help="a run's folder, or epoch_N.pth")
    add("--csv_file_test", type=Path, help="CSV of the test images, or of volumes")
    add("--volumes", type=Path, help="folder of `dataloaders.prepare decathlon`, of those volumes")
    add("--root_path", type=Path, help="folder of the images named in the CSVs")
    add("--csv_file_val", type=Path, help="CSV of validation images, for --threshold youden")
    add("--medmnist", type=Path, help="a MedMNIST .npz file, instead of folder and CSV")
    add("--dicom", type=Path, help="a folder of scans without labels, searched to its depth")
    add(
        "--predict",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="images without labels: PNG, JPEG, DICOM or NIfTI files, folders of them, or a CSV "
        "with a column ImageID (below --root_path, or beside it)",
    )
    add(
        "--keep_names",
        action="store_true",
        default=None,
        help="call DICOM files, studies and patients as they are called; else by numbers, with a "
        "key in key.csv (NIfTI files and pictures alone keep their names)",
    )
    add("--gradcam", action="store_true", default=None, help="also draw the evidence in each image")
    add(
        "--unlike",
        choices=UNLIKE,
        help="images that are nothing like those of the training: refuse them, or predict and say "
        "so (refuse)",
    )


def _add_judgement(add: Callable) -> None:
    add("--multi_label", choices=MULTI_LABEL, help="rows without exactly one class (refuse)")
    add("--threshold", help="on softmax: a number (0.4), or youden: chosen on validation data")
    add(
        "--sweep",
        action="store_true",
        default=None,
        help="also the released program's thresholds, tried on the test set itself: optimistic",
    )
    add(
        "--follow_links",
        action="store_true",
        default=None,
        help="read images to which symbolic links lead out of --root_path",
    )
    add(
        "--allow_overlap",
        action="store_true",
        default=None,
        help="choose thresholds although validation images are also tested",
    )
    add(
        "--report_ids",
        action="store_true",
        default=None,
        help="name the patients of the images in the report",
    )


def _add_reading(add: Callable) -> None:
    add("--class_names", nargs="+", help="of a checkpoint that does not name its classes")
    add(
        "--image_size",
        type=whole_number("--image_size", 32, 4096),
        help="of a checkpoint that does not say; pixels per side",
    )
    add("--window", choices=WINDOW_CHOICES, help="of a checkpoint that does not say, for scans")
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
    add("--gpu", default=DEFAULT_GPU, help="CUDA device, or cpu")
    add("--cache_dir", type=Path, help="folder for decoded images (data/cache)")
    add("--out", type=Path, help="folder for the results; default: in the run's tests/")
