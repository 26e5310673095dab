"""Volumes through a network: sliding windows, scores against labels, NIfTI files of the result."""

from collections.abc import Sequence

import numpy as np
import torch

from dataloaders.patches import VolumeDataset
from networks.models import Network
from utils.errors import UserError
from utils.metrics.volumes import VOLUME_METRICS, VolumeScores, volume_scores
from utils.packages import import_3d
from utils.tensors import net_device
from utils.workers import shared_out

OVERLAP = 0.5
WINDOWS_AT_ONCE = 4


def class_probabilities(
    net: Network, image: np.ndarray, patch_size: Sequence[int], name: str = "the volume"
) -> torch.Tensor:
    """Softmax (C, X, Y, Z) of `net`, put in eval mode, for an image (K, X, Y, Z), on its device.

    The windows have the size of the patches the network was trained on and overlap by half,
    weighed by a Gaussian: instance norm takes its statistics from whatever it sees at once, and in
    a window of another size, or with more padding, they are others than in training. Raises
    `UserError`, which names the volume, where the output is not finite.
    """
    net.eval()
    inputs = torch.from_numpy(np.ascontiguousarray(image))[None].to(net_device(net))
    sliding_window = import_3d("monai.inferers").sliding_window_inference
    with torch.no_grad():
        logits = sliding_window(
            inputs,
            tuple(patch_size),
            WINDOWS_AT_ONCE,
            lambda part: net(part)[1],
            OVERLAP,
            mode="gaussian",
        )
        probabilities = torch.softmax(logits[0], dim=0)
    if not bool(probabilities.isfinite().all()):
        raise UserError(
            f"the network gives no finite output for {name}: its weights are damaged, use an "
            "earlier file"
        )
    return probabilities


def segment(net: Network, image: np.ndarray, patch_size: Sequence[int], name: str) -> np.ndarray:
    """The most probable class of every voxel, uint8 (X, Y, Z)."""
    probabilities = class_probabilities(net, image, patch_size, name)
    return probabilities.argmax(dim=0).to("cpu", torch.uint8).numpy()


def segment_set(networks: Sequence[Network], dataset: VolumeDataset) -> list[np.ndarray]:
    """`segment` of every volume, by networks of the same weights, side by side."""

    def work(net: Network, index: int) -> np.ndarray:
        return segment(net, dataset.image(index), dataset.patch_size, dataset.names[index])

    return list(shared_out(work, networks, range(len(dataset))))


def score_set(dataset: VolumeDataset, predicted: Sequence[np.ndarray]) -> VolumeScores:
    """Every metric of every structure of every volume; `predicted` as `segment_set` returns it."""
    table = dataset.table
    scores = [
        volume_scores(ours, theirs, len(table.class_names), spacing)
        for ours, theirs, spacing in zip(predicted, dataset.labels, table.spacings, strict=True)
    ]
    values = {name: np.stack([score[name] for score in scores]) for name in VOLUME_METRICS}
    return VolumeScores(table.names, table.class_names[1:], values, table.groups, table.sites)
