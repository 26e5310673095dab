"""A raw data set -> images + CSV: `python -m dataloaders.prepare rsna|isic|medmnist|decathlon`."""

import argparse
from pathlib import Path

from utils.packages import check_installed

if __name__ == "__main__":
    check_installed()

from dataloaders.dicom import Preprocessing
from dataloaders.medmnist import prepare_medmnist
from dataloaders.nifti import MODALITIES
from dataloaders.prepare.conversion import Options
from dataloaders.prepare.decathlon import prepare_decathlon
from dataloaders.prepare.isic import prepare_isic
from dataloaders.prepare.rsna import prepare_rsna
from dataloaders.windows import WINDOW_CHOICES
from utils.errors import OneLineParser, run_command, whole_number
from utils.workers import available_cores


def main() -> None:
    """Parse the command line and prepare one data set."""
    arguments = _parser().parse_args()
    arguments.prepare(arguments)


def _rsna(arguments: argparse.Namespace) -> None:
    prepare_rsna(
        arguments.dicom_dir,
        arguments.labels,
        arguments.out,
        Preprocessing(arguments.window, arguments.size),
        _options(arguments),
    )


def _isic(arguments: argparse.Namespace) -> None:
    prepare_isic(
        arguments.labels,
        arguments.metadata,
        arguments.image_dir,
        arguments.out,
        arguments.size,
        _options(arguments),
    )


def _medmnist(arguments: argparse.Namespace) -> None:
    prepare_medmnist(arguments.file, arguments.out)


def _decathlon(arguments: argparse.Namespace) -> None:
    prepare_decathlon(
        arguments.dataset_dir,
        arguments.out,
        arguments.facts,
        arguments.spacing and tuple(arguments.spacing),
        arguments.modality,
        arguments.max_bad,
        arguments.unlabeled,
    )


def _options(arguments: argparse.Namespace) -> Options:
    return Options(arguments.max_bad, arguments.allow_missing, arguments.workers)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m dataloaders.prepare", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="rsna|isic|medmnist|decathlon")
    _add_rsna(commands)
    _add_isic(commands)
    _add_medmnist(commands)
    _add_decathlon(commands)
    return parser


def _add_rsna(commands) -> None:
    parser = commands.add_parser(
        "rsna", help="RSNA intracranial haemorrhage: DICOM files and the long label file"
    )
    parser.set_defaults(prepare=_rsna)
    parser.add_argument("--dicom_dir", type=Path, required=True, help="folder of ID_*.dcm files")
    parser.add_argument("--labels", type=Path, required=True, help="stage_2_train.csv or stage 1's")
    parser.add_argument(
        "--window",
        choices=WINDOW_CHOICES,
        default="triple",
        help="file: the file's own, min-max (as the slides); triple: brain, subdural and bone as "
        "red, green and blue",
    )
    _add_common(parser, size=128)


def _add_isic(commands) -> None:
    parser = commands.add_parser("isic", help="ISIC 2018 task 3 / HAM10000 skin lesions")
    parser.set_defaults(prepare=_isic)
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="ISIC2018_Task3_Training_GroundTruth.csv or HAM10000_metadata.csv",
    )
    parser.add_argument(
        "--metadata",
        type=Path,
        help="HAM10000_metadata.csv beside a ground-truth file, for lesion_id and dataset",
    )
    parser.add_argument(
        "--image_dir", type=Path, nargs="+", required=True, help="one folder of images or several"
    )
    _add_common(parser, size=224)


def _add_medmnist(commands) -> None:
    parser = commands.add_parser("medmnist", help="a MedMNIST .npz, with its official split")
    parser.set_defaults(prepare=_medmnist)
    parser.add_argument("file", type=Path, help="for example dermamnist.npz or dermamnist_224.npz")
    parser.add_argument("--out", type=Path, required=True, help="output folder")


def _add_decathlon(commands) -> None:
    parser = commands.add_parser(
        "decathlon", help="a task of the Medical Segmentation Decathlon, or nnU-Net's raw data"
    )
    parser.set_defaults(prepare=_decathlon)
    parser.add_argument(
        "--dataset_dir", type=Path, required=True, help="folder with dataset.json, imagesTr, ..."
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--unlabeled",
        action="store_true",
        help="also the volumes without labels, for clients without: dataset.json's test, or "
        "nnU-Net's images without a label",
    )
    parser.add_argument(
        "--facts", type=Path, help="CSV VolumeID,PatientID[,site] of what the files do not say"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar="MM",
        help="sides of every voxel; default the median, and no resampling where all have it",
    )
    parser.add_argument(
        "--modality", choices=MODALITIES, help="how to normalise (as dataset.json says)"
    )
    parser.add_argument(
        "--max_bad",
        type=whole_number("--max_bad", 0, 10**9),
        default=0,
        help="more rejected volumes than this is an error, exit status 2 (%(default)s)",
    )


def _add_common(parser: argparse.ArgumentParser, size: int) -> None:
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--size",
        type=whole_number("--size", 16, 1024),
        default=size,
        help="pixels a side (%(default)s)",
    )
    parser.add_argument(
        "--max_bad",
        type=whole_number("--max_bad", 0, 10**9),
        default=100,
        help="more rejected files than this is an error, exit status 2 (%(default)s)",
    )
    parser.add_argument(
        "--allow_missing",
        action="store_true",
        help="labelled images without a file are left out and not counted as rejected",
    )
    parser.add_argument(
        "--workers",
        type=whole_number("--workers", 1, 1024),
        default=available_cores(),
        help="processes (%(default)s)",
    )


if __name__ == "__main__":
    run_command(main)
