"""A network and labelled images -> predictions, pictures and REPORT.md; for train_main and test."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dataloaders.dataset import ImageDataset
from dataloaders.overlap import DataSet, overlaps_with_run
from dataloaders.split import read_split
from networks.devices import evaluation_batch_size
from networks.kinds import NETWORKS
from networks.models import Network
from networks.saved import load_model
from options import DEFAULT_CACHE, own_flags
from predict.gradcam import draw_gradcam
from predict.inference import predict_set
from utils.commands import command_line
from utils.errors import UserError
from utils.files import write_text
from utils.json_files import read_json
from utils.metrics.evaluation import Evaluation, evaluation_tables, print_tables
from utils.metrics.numbers import DEFAULT_THRESHOLD
from utils.metrics.predictions import Predictions
from utils.plots.runs import read_metrics
from utils.report.page import OVERLAP_FACT, PRESET_FACT, write_report
from utils.tensors import net_device

HISTORY_FILES = ("metrics.csv", "matrices.csv")


def report_network(
    folder: Path,
    net: Network,
    test: ImageDataset,
    predictions: Predictions,
    facts: dict[str, str],
    threshold: str | float,
    validation: Predictions | None = None,
    with_sweep: bool = False,
    with_ids: bool = False,
) -> Evaluation:
    """`write_report` of `predictions`, what `net` says about `test`, with Grad-CAM and the images
    of the mistakes. `threshold` and what follows are as there."""
    draw_gradcam(net, test, predictions, folder / "figures" / "gradcam.png")
    about = (threshold, validation, with_sweep, facts, test.picture, with_ids)
    return write_report(folder, predictions, *about)


def report_run(
    folder: Path, checkpoint: Path, net: Network, test: ImageDataset, args: Namespace
) -> None:
    """`report_network` at the end of a run, whose last weights are in `checkpoint` and in `net`."""
    facts = describe_model(checkpoint, load_model(checkpoint)[1])
    facts |= describe_run(folder, test)
    batch_size = evaluation_batch_size(args.batch_size, test.input_shape, net_device(net))
    predictions = predict_set(net, test, batch_size)
    evaluation = report_network(
        folder, net, test, predictions, facts, args.threshold, with_ids=args.report_ids
    )
    print_tables(evaluation_tables(evaluation, with_ids=args.report_ids))


def test_command(checkpoint: Path, args: Namespace) -> str:
    """What to type to test a checkpoint on the test images of the run with the flags `args`, for
    the numbers of its report."""
    images = {"medmnist": args.medmnist}
    if args.medmnist is None:
        images = {"root_path": args.root_path, "csv_file_test": args.csv_file_test}
        images["multi_label"] = None if args.multi_label == "refuse" else args.multi_label
        images["cache_dir"] = None if args.cache_dir == DEFAULT_CACHE else args.cache_dir
        images["follow_links"] = bool(args.follow_links)
    threshold = None if args.threshold == DEFAULT_THRESHOLD else args.threshold
    flags = {"resume": checkpoint} | images | {"threshold": threshold}
    return command_line("test.py", flags)


def describe_model(path: Path, content: Mapping) -> dict[str, str]:
    """The model card's facts about a checkpoint: `content` is what `load_model` returns of it."""
    architecture, preprocessing = content["architecture"], content.get("preprocessing", {})
    network = NETWORKS[architecture["network"]].title
    attention = ", self-attention" if architecture["attention"] == "self" else ""
    norm = ", group normalisation" if architecture.get("norm") == "group" else ""
    facts = checkpoint_facts(path, content) | {
        "architecture": (
            f"{network}{attention}{norm}, dropout {architecture['drop_rate']:g}, "
            f"{len(content['class_names'])} outputs"
        ),
    }
    if "image_size" in preprocessing:
        facts["preprocessing"] = preprocessing_words(
            preprocessing["image_size"], preprocessing.get("dicom")
        )
    return facts


def checkpoint_facts(path: Path, content: Mapping) -> dict[str, str]:
    """Which file it is and, where it says so, how it was trained."""
    facts = {"checkpoint": f"{path}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"}
    if "preset" in content and "round" in content:
        facts["training"] = f"preset {content['preset']}, {content['round'] + 1} rounds"
    return facts


def preprocessing_words(image_size: int, dicom: Mapping | None = None) -> str:
    """How images are made, for a reader; `dicom` as in `Preprocessing`, where they were scans."""
    resized = f"{image_size} x {image_size} pixels (bilinear), ImageNet's mean and deviation"
    if dicom is None:
        return resized
    return (
        f"DICOM through the window {dicom['window']!r} to {dicom['size']} pixels a side; {resized}"
    )


def describe_run(run_folder: Path, test: DataSet, noun: str = "images") -> dict[str, str]:
    """The model card's facts about a run's training data, and about what the tested set shares
    with them, from the run's split.json and seen.json, as far as it has these."""
    facts = {}
    if (run_folder / "split.json").exists():
        split = read_split(run_folder / "split.json")
        clients, labelled = split["clients"], split["labelled_clients"]
        facts["training data"] = (
            f"{sum(map(len, clients))} {noun} of {split['csv']} at {len(clients)} clients "
            f"({split['how']}), {sum(len(clients[client]) for client in labelled)} of them at "
            f"{len(labelled)} clients with labels"
        )
        if _nobody_joined(run_folder):
            facts["training data"] += ", the only ones that ever trained"
    if (run_folder / "args.json").exists():
        flags = read_json(run_folder / "args.json", advice="repair or remove it")
        own = {"preset": flags.get("preset"), "own": own_flags(flags)}
        facts[PRESET_FACT] = json.dumps(own)
    if overlaps := overlaps_with_run(run_folder, test):
        facts[OVERLAP_FACT] = " | ".join(overlap.words() for overlap in overlaps)
    return facts


def _nobody_joined(run_folder: Path) -> bool:
    """Whether no client without labels took part in any round of the run."""
    try:
        return not read_metrics(run_folder / "metrics.csv")["clients_unlabeled"].any()
    except (UserError, KeyError):  # not known
        return False


def copy_history(run_folder: Path, folder: Path, environment: Mapping, last_round: int) -> None:
    """Bring what a report quotes of a run to another `folder`: its flags, its rounds up to
    `last_round`; env.json is `environment`, what the report itself was made on."""
    write_text(folder / "env.json", json.dumps(environment, indent=2) + "\n")
    if (run_folder / "args.json").exists():
        write_text(folder / "args.json", (run_folder / "args.json").read_text(encoding="utf-8"))
    for name in HISTORY_FILES:
        if (run_folder / name).exists():
            rounds = pd.read_csv(run_folder / name, dtype=str, keep_default_na=False)
            kept = rounds[rounds["round"].astype(int) <= last_round]
            write_text(folder / name, kept.to_csv(index=False, lineterminator="\n"))
