"""A run or a checkpoint against a test set, or on pictures and scans without labels.

python test.py --resume runs/NAME                              its own test images
python test.py --resume CHECKPOINT --root_path DIR --csv_file_test C.csv
python test.py --resume CHECKPOINT --medmnist FILE.npz
python test.py --resume CHECKPOINT --predict PATH ...          PNG, JPEG, DICOM, NIfTI, folders, CSV
python test.py --resume CHECKPOINT --dicom DIR                 CT slices, by study
python test.py --resume CHECKPOINT --volumes DIR --csv_file_test C.csv        prepared volumes
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.packages import check_installed

if __name__ == "__main__":  # a mistyped flag is answered before PyTorch is loaded
    check_installed()
    from predict.flags import build_parser
    from utils.errors import check_flags

    check_flags(build_parser(__doc__).parse_args)

from dataloaders.dataset import ImageDataset, load_dataset
from dataloaders.medmnist import load_medmnist
from dataloaders.overlap import (
    DataSet,
    Overlap,
    compare_all,
    members_of,
    overlaps_with_run,
    warning_line,
)
from dataloaders.table import ImageTable, read_table
from networks.devices import MAIN_MEMORY, full_memory
from networks.saved import find_checkpoint
from options import DEFAULT_CACHE
from predict.card import (
    copy_history,
    describe_model,
    describe_run,
    report_network,
)
from predict.flags import (
    DEFAULT_GPU,
    IMAGES_ONLY,
    NAMING,
    NO_MEANING_WITH,
    SOURCES,
    build_parser,
)
from predict.inference import predict_set
from predict.model import HOW_TO_KNOW, Model, load
from predict.pseudonyms import Pseudonyms, folder_for
from predict.segmenter import Segmenter, load_segmenter, open_held_out, predict_volumes
from predict.unlabelled import predict_anything, predict_folder
from predict.volume_report import TEST_LIST, describe_segmenter, report_volumes
from record.opening import ARGS_FILE, describe_environment, is_run
from record.state import identity_of
from utils.commands import command_line
from utils.errors import UserError, run_command
from utils.files import write_text
from utils.json_files import read_json
from utils.metrics.evaluation import YOUDEN, evaluation_tables, print_tables, threshold_number
from utils.metrics.numbers import DEFAULT_THRESHOLD
from utils.report.page import TEST_FILE, VALIDATION_FILE
from utils.tensors import net_device
from utils.text import first_difference

SOURCE_FILE = "source.json"  # in a folder of results: whose they are


def main() -> None:
    """Predict, and write everything about the predictions."""
    args = parse()
    try:
        predict_as_asked(args)
    except Exception as error:
        if (where := full_memory(error)) is None:
            raise
        less = "" if args.volumes else f"lower --batch_size (now {args.batch_size}), or "
        less += "free some of it" if where == MAIN_MEMORY else "use --gpu cpu"
        raise UserError(f"{where} is full: {less}") from error


def predict_as_asked(args: argparse.Namespace) -> None:
    """What the flags say, with whichever network the checkpoint holds."""
    args.resume = find_checkpoint(args.resume)
    device = "auto" if args.gpu == DEFAULT_GPU else args.gpu
    segmenter = load_segmenter(args.resume, device, args.precision, print, args.class_names)
    if segmenter is not None:
        segment(segmenter, args)
        return
    if args.volumes is not None:
        raise UserError(f"--volumes: {args.resume} is a network of images; leave it out")
    given = {name: getattr(args, name) for name in HOW_TO_KNOW}
    model = load(args.resume, device, args.precision, args.class_names, print, **given)
    if args.dicom is None and args.predict is None:
        out = args.out or default_folder(args)
        report_labelled(model, args, out)
        note_source(out, args)
        return

    chosen: list[Path] = []  # a default folder, where names are kept

    def place(names: Pseudonyms | None) -> Path:
        if args.out is not None:
            return args.out
        if names is not None:  # the key knows the source, and nothing else may
            return folder_for(tests_folder(args), args.resume.stem, names)
        chosen.append(default_folder(args))
        return chosen[0]

    def facts(names: Pseudonyms | None) -> dict[str, str]:
        return facts_of(model, None if names is None else without_names(args))

    (predict_folder if args.dicom is not None else predict_anything)(model, args, place, facts)
    for out in chosen:
        note_source(out, args)


def without_names(args: argparse.Namespace) -> str:
    """The command line, with dots for whatever may name a patient."""
    parser = build_parser(__doc__)
    flags = {
        name: "..." if name in NAMING else value
        for name, value in vars(args).items()
        if value != parser.get_default(name)
    }
    return command_line("test.py", flags)


def facts_of(model: Model | Segmenter, command: str | None = None) -> dict[str, str]:
    """What is to be said about the model and about how it was used: by `command`, or as typed."""
    command = command or shlex.join(["python", *sys.argv])
    describe = describe_segmenter if isinstance(model, Segmenter) else describe_model
    return describe(model.path, model.content) | {
        "evaluated with": f"{command} (backbone in {model.precision})"
    }


def segment(model: Segmenter, args: argparse.Namespace) -> None:
    """NIfTI files of volumes without labels, or the report of a list of prepared ones."""
    for name in IMAGES_ONLY:
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: has no meaning with a network of volumes; leave it out")
    out, facts = args.out or default_folder(args), facts_of(model)
    if args.predict is not None:
        lines = predict_volumes(model, args.predict, out)
        write_text(out / "model.json", json.dumps(facts, indent=2) + "\n")
        note_source(out, args)
        print("\n".join(lines))
    else:
        test = open_held_out(model, args.volumes, args.csv_file_test)
        warn_of_overlap(args, test)
        report_volumes(out, [model.net], test, facts | run_facts(args, model, test, out))
        note_source(out, args)
        print(f"\nreport: {out / 'REPORT.md'}")


def run_facts(
    args: argparse.Namespace, model: Model | Segmenter, test: DataSet, out: Path
) -> dict[str, str]:
    """Of a run's checkpoint: what it was trained on; the run's history is copied to `out`."""
    if (run := run_folder(args.resume)) is None:
        return {}
    if args.is_own and identity_of(run).get("test", test.fingerprint) != test.fingerprint:
        print(
            f"warning: not what {run} was tested on: its test images or labels have changed since"
        )
    copy_history(run, out, describe_environment([net_device(model.net)]), model.content["round"])
    return describe_run(run, test, "volumes" if isinstance(model, Segmenter) else "images")


def report_labelled(model: Model, args: argparse.Namespace, out: Path) -> None:
    """Metrics, tables, figures and REPORT.md of labelled images."""
    datasets = load_images(args, model, model.image_size())
    check_overlap(args, datasets)
    predictions = {
        name: predict_set(model.net, images, args.batch_size) for name, images in datasets.items()
    }
    facts = facts_of(model) | run_facts(args, model, datasets["test"], out)
    evaluation = report_network(
        out,
        model.net,
        datasets["test"],
        predictions["test"],
        facts,
        args.threshold or DEFAULT_THRESHOLD,
        predictions.get("val"),
        bool(args.sweep),
        bool(args.report_ids),
    )
    print_tables(evaluation_tables(evaluation, bool(args.sweep), bool(args.report_ids)))
    flags = {"threshold": args.threshold, "sweep": args.sweep, "allow_overlap": args.allow_overlap}
    if "val" in predictions:
        flags["predictions_val"] = out / VALIDATION_FILE
    again = command_line("-m utils.metrics", flags, out / TEST_FILE)
    print(f"\nreport: {out / 'REPORT.md'}; score again: {again}")


def load_images(args: argparse.Namespace, model: Model, image_size: int) -> dict[str, ImageDataset]:
    """The data set "test", and "val" where a threshold is to be chosen on it. Before anything is
    decoded, `UserError` unless the classes are the model's."""
    if args.medmnist is not None:
        splits = ("validation", "testing") if args.threshold == YOUDEN else ("testing",)
        tables, datasets = load_medmnist(args.medmnist, image_size, "auto", splits)
        for table in tables.values():
            refuse_other_classes(table, model)
        return datasets
    files = {"test": args.csv_file_test, "val": args.csv_file_val}
    mode = model.content["architecture"]["mode"]
    tables = {
        name: read_table(path, mode, args.multi_label or "refuse")
        for name, path in files.items()
        if path is not None
    }
    for table in tables.values():
        refuse_other_classes(table, model)
    places = (args.root_path, image_size, "auto", args.cache_dir or DEFAULT_CACHE)
    return {
        name: load_dataset(table, *places, print, bool(args.follow_links))
        for name, table in tables.items()
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
    warn_of_overlap(args, datasets["test"], overlaps)


def warn_of_overlap(
    args: argparse.Namespace, test: DataSet, overlaps: Sequence[Overlap] = ()
) -> None:
    """Say what the tested set shares with those of its run, beside `overlaps` that are known."""
    run = run_folder(args.resume)
    of_run = [] if run is None else overlaps_with_run(run, test)
    if (line := warning_line([*overlaps, *of_run])) is not None:
        print(line)


def refuse_other_classes(images: ImageTable, model: Model) -> None:
    """Raise `UserError` unless the data set's classes are the checkpoint's, in its order."""
    names = model.content["class_names"]
    if list(images.class_names) != names:
        raise UserError(
            f"the images' classes are not those that {model.path} was made for "
            f"({first_difference(images.class_names, names)}); give the columns these names in "
            f"this order: {', '.join(names)}"
        )


def parse() -> argparse.Namespace:
    """The command line, checked."""
    args = build_parser(__doc__).parse_args()
    args.is_own = False  # whether it is the run's own test images
    typed = {name for name, value in vars(args).items() if value is not None}
    sources = [name for name in SOURCES if getattr(args, name) is not None]
    if not sources and (run := run_folder(find_checkpoint(args.resume))) is not None:
        sources = use_test_images(args, run)
        args.is_own = True
    if len(sources) != 1:
        raise UserError("give one of --csv_file_test, --medmnist, --predict and --dicom")
    wrong = NO_MEANING_WITH[sources[0]]
    for name in wrong:
        if name in typed:
            raise UserError(f"--{name}: has no meaning with --{sources[0]}; leave it out")
    if args.csv_file_val and args.threshold != YOUDEN:
        raise UserError("--csv_file_val: only for --threshold youden, to choose thresholds on")
    if args.csv_file_test and args.root_path is None and args.volumes is None:
        raise UserError(
            "--root_path is missing: the folder of the images in --csv_file_test (of volumes: "
            "--volumes)"
        )
    if args.threshold == YOUDEN:
        if args.csv_file_test and args.csv_file_val is None:
            raise UserError("--threshold youden: needs --csv_file_val to choose the threshold on")
    elif args.threshold is not None:
        threshold_number(args.threshold)
    return args


def use_test_images(args: argparse.Namespace, run: Path) -> list[str]:
    """Set the flags of the test images, and of their numbers, that the run itself had; the names of
    those that decide."""
    known = read_json(run / ARGS_FILE, advice="name the images with --csv_file_test")
    if known.get("volumes") is not None:
        args.volumes = args.volumes or Path(known["volumes"])
        args.csv_file_test = run / TEST_LIST
    as_in_the_run = {"medmnist": Path, "root_path": Path, "csv_file_test": Path}
    if args.volumes is None:
        as_in_the_run |= {"cache_dir": Path, "threshold": str, "multi_label": str}
        as_in_the_run |= {"follow_links": bool}
    for name, kind in as_in_the_run.items():
        if known.get(name) is not None and getattr(args, name) is None:
            setattr(args, name, kind(known[name]))
    return [name for name in ("csv_file_test", "medmnist") if getattr(args, name) is not None]


def run_folder(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, if it does."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and is_run(folder) else None


def default_folder(args: argparse.Namespace) -> Path:
    """Where results go: one folder for each checkpoint and source, beside the run's own files; for
    another source of the same name one with a number."""
    source = source_of(args)
    named = Path(source[0])
    stem = f"{args.resume.stem}-{named.name if named.is_dir() else named.stem}"
    folder, number = tests_folder(args) / stem, 1
    while _noted_source(folder) not in (None, source):  # None: it does not say, or there is none
        number += 1
        folder = folder.with_name(f"{stem}-{number}")
    return folder


def source_of(args: argparse.Namespace) -> list[str]:
    """What is tested or predicted, as absolute paths."""
    found = args.predict or [args.csv_file_test or args.medmnist or args.dicom]
    return [os.path.abspath(path) for path in found]


def note_source(folder: Path, args: argparse.Namespace) -> None:
    """Say in a default folder whose results it has, so that they are not overwritten by others'."""
    if args.out is None:
        write_text(folder / SOURCE_FILE, json.dumps({"source": source_of(args)}) + "\n")


def _noted_source(folder: Path) -> object:
    try:
        return read_json(folder / SOURCE_FILE).get("source")
    except UserError:
        return None


def tests_folder(args: argparse.Namespace) -> Path:
    """Where the results of a checkpoint go: in its run, or beside it."""
    run = run_folder(args.resume)
    return args.resume.parent if run is None else run / "tests"


if __name__ == "__main__":
    run_command(main)
