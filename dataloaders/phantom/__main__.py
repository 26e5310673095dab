"""The embedded data set as files.

python -m dataloaders.phantom --out data/phantom --patients 60 --size 64 --format png --seed 1
"""

import argparse
from pathlib import Path

from dataloaders.phantom.files import (
    TABLE_COLUMNS,
    WINDOW_NAMES,
    class_table,
    write_contact_sheet,
    write_dicom,
    write_png,
)
from dataloaders.phantom.patients import CLASS_NAMES, RSNA_PROPORTIONS, Phantom, generate
from utils.commands import command_line
from utils.errors import OneLineParser, UserError, run_command


def main(arguments: list[str] | None = None) -> None:
    """Write a phantom data set as the command line says, then its class table and what to do."""
    args = _parse(arguments)
    print(f"drawing {args.patients} patients of {args.slices} slices", flush=True)
    phantom = generate(
        num_patients=args.patients,
        size=args.size,
        seed=args.seed,
        slices_per_patient=args.slices,
        healthy_fraction=args.healthy,
        class_proportions=args.proportions,
        with_bleed_rows_only=args.bleeds_only,
        difficulty=args.difficulty,
        mixed_fraction=args.mixed,
    )
    try:
        _write(phantom, args)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or args.out}: {error.strerror}") from error
    for name, slices, patients in (TABLE_COLUMNS, *class_table(phantom)):
        print(f"{name:<18}{slices:>8}{patients:>10}")
    print(f"\n{_what_next(args)}")


def _write(phantom: Phantom, args: argparse.Namespace) -> None:
    if args.format == "dicom":
        write_dicom(phantom, args.out)
    else:
        write_png(phantom, args.out, args.window, labelled_only=not args.keep_healthy)
    if args.contact_sheet:
        write_contact_sheet(phantom, args.contact_sheet)
        print(f"contact sheet: {args.contact_sheet}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m dataloaders.phantom", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--patients", type=int, default=100, help="number of patients (default 100)")
    add("--size", type=int, default=128, help="pixels a side of 230 mm (default 128)")
    add("--slices", type=int, default=6, help="slices per patient (default 6)")
    add("--format", choices=("png", "dicom"), default="png", help="default png")
    add("--seed", type=int, default=0, help="same seed, same files (default 0)")
    add("--window", choices=WINDOW_NAMES, default="triple", help="of PNGs (default triple)")
    add("--healthy", type=float, default=0.1, help="share of healthy patients (default 0.1)")
    add("--mixed", type=float, default=0.0, help="share with a second kind of bleed (default 0)")
    add("--difficulty", type=float, default=0.5, help="0 large, dense bleeds .. 1 small, faint")
    add(
        "--proportions",
        type=float,
        nargs=len(CLASS_NAMES),
        metavar="P",
        default=RSNA_PROPORTIONS,
        help=f"weights of {', '.join(CLASS_NAMES)} among the patients who bleed (default RSNA's)",
    )
    add("--bleeds_only", action="store_true", help="leave out slices without a bleed")
    add(
        "--keep_healthy",
        action="store_true",
        help="PNG: keep slices without exactly one kind of bleed",
    )
    add("--contact_sheet", type=Path, metavar="FILE.png", help="also draw slices of every class")
    args = parser.parse_args(arguments)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    ranges = {
        "patients": (1, 1_000_000),
        "size": (16, 1024),
        "slices": (1, 64),
        "seed": (0, 2**32 - 1),
        "healthy": (0, 1),
        "mixed": (0, 1),
        "difficulty": (0, 1),
    }
    for flag, (low, high) in ranges.items():
        value = getattr(args, flag)
        if not low <= value <= high:
            raise UserError(f"--{flag} {value} is out of range; give {low} to {high}")
    if min(args.proportions) < 0 or not 0 < sum(args.proportions) < float("inf"):
        raise UserError("--proportions needs weights >= 0 that are not all 0")
    if args.format == "dicom" and args.keep_healthy:
        raise UserError("--keep_healthy is for PNG; DICOM output always has every slice")


def _what_next(args: argparse.Namespace) -> str:
    """The commands that use what was written."""
    out = args.out
    if args.format == "dicom":
        flags = {"dicom_dir": out / "stage_2_train", "labels": out / "stage_2_train.csv"}
        prepared = {"out": out / "prepared"}
        return "next: " + command_line("-m dataloaders.prepare rsna", flags | prepared)
    divide = command_line(
        "-m dataloaders.partition", {"out": out, "group": "PatientID"}, out / "labels.csv"
    )
    train = {
        "preset": "paper",
        "image_size": max(args.size, 32),
        "pretrained": 0,
        "root_path": out / "images",
        "csv_file_train": out / "training.csv",
        "csv_file_val": out / "validation.csv",
        "csv_file_test": out / "testing.csv",
    }
    return f"next: {divide}\n      {command_line('train_main.py', train)}"


if __name__ == "__main__":
    run_command(main)
