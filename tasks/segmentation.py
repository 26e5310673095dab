"""One class per voxel of a volume: the structures in a scan and the background around them."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from dataloaders.federated import FederatedData, Rehearsal
from dataloaders.federated_volumes import dry_run_volumes, load_federated_volumes
from dataloaders.patches import PatchAugmentation, VolumeDataset
from dataloaders.phantom.volumes import place_embedded_volumes
from local_update import IGNORED
from networks.models import Network
from options import embedded_paths
from predict.segmenter import volume_test_command
from predict.volume_report import report_volume_run
from predict.volumes import class_probabilities, score_set, segment_set
from utils.losses import rows
from utils.metrics.volumes import VOLUME_METRICS
from utils.packages import import_3d
from utils.tables.log_lines import volume_evaluation_line

DATA_SEED = 2021


class Segmentation:
    """A label is one class per voxel. See `local_update.Task` for what each method promises."""

    headline = ("dice", "hd95")

    def place_embedded_data(self, args: Namespace, say: Callable[[str], None]) -> None:
        """Synthetic MR volumes, which depend on the phantom_* flags and not on the run's seed."""
        vars(args).update(embedded_paths(args))
        place_embedded_volumes(
            args.volumes, args.phantom_patients, DATA_SEED, args.phantom_difficulty, say
        )

    def load(self, args: Namespace, say: Callable[[str], None]) -> FederatedData:
        """Volumes from a folder of `dataloaders.prepare decathlon`."""
        return load_federated_volumes(args, say)

    def dry_run(self, args: Namespace) -> Rehearsal:
        """Tables and headers of the arrays, and who would hold what."""
        return dry_run_volumes(args)

    def augmentation(self, args: Namespace) -> PatchAugmentation:
        """Gain, offset and noise; mirrored where the flags allow it."""
        return PatchAugmentation(args.intensity, tuple(args.flip_axes))

    def supervised_loss(
        self, outputs: torch.Tensor, labels: torch.Tensor, args: Namespace
    ) -> torch.Tensor:
        """0.5 (cross entropy + soft Dice of the structures); outputs (B, C, X, Y, Z), labels
        (B, X, Y, Z). The cross entropy is of rows: a GPU adds up that of volumes in any order."""
        per_voxel = cross_entropy(
            rows(outputs), labels.flatten(), label_smoothing=args.label_smoothing
        )
        return 0.5 * (per_voxel + _dice()(outputs, labels[:, None]))

    def confident_labels(
        self,
        net: Network,
        dataset: VolumeDataset,
        indices: torch.Tensor,
        args: Namespace,
        until_stopped: Callable[[Iterator], Iterator],
    ) -> dict[int, np.ndarray]:
        """A whole volume's classes for each of `indices`, int16 (X, Y, Z)."""
        labels = {}
        for index in until_stopped(iter(indices.tolist())):
            name = dataset.names[index]
            found = class_probabilities(net, dataset.image(index), args.patch_size, name).max(dim=0)
            unsure = found.values < args.confidence_threshold
            labels[index] = (
                found.indices.masked_fill(unsure, IGNORED).to("cpu", torch.int16).numpy()
            )
        return labels

    def evaluate(
        self, networks: Sequence[Network], dataset: VolumeDataset, args: Namespace
    ) -> dict[str, float]:
        """Dice, Jaccard and the distances, means over structures, and Dice of each structure."""
        scores = score_set(dataset, segment_set(networks, dataset))
        numbers = {name: scores.macro(name) for name in VOLUME_METRICS}
        of_class = zip(scores.class_names, scores.of_class("dice"), strict=True)
        return numbers | {f"dice_{name}": float(value) for name, value in of_class}

    def evaluation_line(self, numbers: Mapping[str, float], name: str) -> str:
        """`TEST Dice: ...`."""
        return volume_evaluation_line(*(numbers[key] for key in VOLUME_METRICS), name.upper())

    def report(
        self, folder: Path, checkpoint: Path, net: Network, data: FederatedData, args: Namespace
    ) -> None:
        """Scores of the test volumes, tables, slices with contours, REPORT.md."""
        report_volume_run(folder, checkpoint, net, data.test, args)

    def test_command(self, checkpoint: Path, args: Namespace) -> str:
        """`python test.py ...` with the run's own list of test volumes."""
        return volume_test_command(checkpoint, args.volumes)


@cache
def _dice() -> torch.nn.Module:
    losses = import_3d("monai.losses")
    return losses.DiceLoss(to_onehot_y=True, softmax=True, include_background=False)
