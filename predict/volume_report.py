"""A network and labelled volumes -> scores, pictures and REPORT.md; for train_main and test."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dataloaders.patches import VolumeDataset
from dataloaders.volumes import shape_text, write_volumes
from networks.models import Network
from networks.saved import load_model
from predict.card import checkpoint_facts, describe_run
from predict.volumes import score_set, segment_set
from utils.metrics.volumes import VolumeScores
from utils.plots.volumes import VolumePicture
from utils.report.volumes import shown_rows, write_volume_report

TEST_LIST = "testing.csv"


def report_volume_run(
    folder: Path, checkpoint: Path, net: Network, test: VolumeDataset, args: Namespace
) -> None:
    """The report at the end of a run, and the list of its test volumes."""
    write_volumes(folder / TEST_LIST, test.table)
    facts = describe_segmenter(checkpoint, load_model(checkpoint)[1])
    facts |= describe_run(folder, test, "volumes")
    report_volumes(folder, [net], test, facts)


def report_volumes(
    folder: Path, networks: Sequence[Network], test: VolumeDataset, facts: Mapping[str, str]
) -> VolumeScores:
    """Segment and score every volume of `test`, and write all about it to `folder`."""
    predicted = segment_set(networks, test)
    scores = score_set(test, predicted)
    names = ("best", "median", "worst")
    pictures = [
        picture_of(test, row, predicted[row], f"{name}: {test.names[row]}")
        for name, row in zip(names, shown_rows(scores), strict=False)
    ]
    write_volume_report(folder, scores, facts, pictures)
    return scores


def picture_of(
    dataset: VolumeDataset, row: int, predicted: np.ndarray, title: str
) -> VolumePicture:
    """A volume of `dataset`, its first channel, and what was predicted for it."""
    label = np.asarray(dataset.labels[row]).astype(np.uint8)
    spacing = dataset.table.spacings[row]
    return VolumePicture(title, dataset.image(row)[0], label, predicted, spacing)


def describe_segmenter(path: Path, content: Mapping) -> dict[str, str]:
    """The model card's facts about a checkpoint: `content` is what `load_model` returns of it."""
    architecture, prepared = content["architecture"], content["preprocessing"]["volumes"]
    levels = " ".join(map(str, architecture["channels"]))
    return checkpoint_facts(path, content) | {
        "architecture": f"3D U-Net, {architecture['in_channels']} channel(s), levels of {levels} "
        f"features, {architecture['residual_units']} residual unit(s) each, instance norm, dropout "
        f"{architecture['drop_rate']:g}, {len(content['class_names'])} classes",
        "preprocessing": volume_preprocessing_words(prepared),
    }


def volume_preprocessing_words(prepared: Mapping) -> str:
    """How files become what the network sees, for a reader."""
    low, high = prepared["ct_window"]
    scaled = {
        "mr": "each volume to mean 0 and deviation 1",
        "ct": f"{low:g} to {high:g} HU mapped to -1 .. 1",
    }[prepared["modality"]]
    patch = shape_text(prepared["patch_size"])
    spacing = shape_text(prepared["spacing"])
    return f"RAS axes, voxels of {spacing} mm, {scaled}; patches of {patch} voxels"
