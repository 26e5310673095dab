"""Probabilities of a network for a set of images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dataloaders.dataset import ImageDataset
from networks.models import BATCHNORM_MOMENTUM, Network
from utils.errors import UserError
from utils.metrics.predictions import Predictions
from utils.tensors import net_device
from utils.workers import shared_out

PROBED = 4  # images that tell whether a network works at all


def predict(
    net: Network, dataset: ImageDataset, batch_size: int, indices: torch.Tensor | None = None
) -> np.ndarray:
    """Softmax probabilities, float64 (N, C), of the images `indices` (all by default), in order.

    The network is put in eval mode: no augmentation, no dropout, BatchNorm's running statistics.
    Raises `UserError`, which names the image, where its output is not finite.
    """
    if indices is None:
        indices = torch.arange(len(dataset))
    net.eval()
    net.batchnorm_momentum = BATCHNORM_MOMENTUM  # unused here, but a compiled program depends on it
    with torch.no_grad():
        batches = dataset.evaluation_batches(indices, batch_size, net_device(net))
        logits = torch.cat([net(images)[1] for images in batches])
    return probabilities_of(logits, lambda row: dataset.names[indices[row]])


def probabilities_of(logits: torch.Tensor, name: Callable[[int], str]) -> np.ndarray:
    """Softmax of `logits` (N, C), float64; `UserError` where they are not finite, with the `name`
    of the first such row."""
    finite = logits.isfinite().all(dim=1).cpu()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise UserError(
            f"the network gives no finite output for {int((~finite).sum())} of {len(finite)} "
            f"images, the first is {name(first)}: its weights are damaged, use an earlier file"
        )
    return torch.softmax(logits.double(), dim=1).cpu().numpy()


def gives_finite_output(net: Network, dataset: ImageDataset) -> bool:
    """Whether `net`, put in eval mode, makes numbers of a few images of `dataset`."""
    few = torch.arange(min(PROBED, len(dataset)))
    net.eval()
    with torch.no_grad():
        batches = dataset.evaluation_batches(few, PROBED, net_device(net))
        return all(bool(net(images)[1].isfinite().all()) for images in batches)


def predict_on_all(
    networks: Sequence[Network], dataset: ImageDataset, batch_size: int
) -> np.ndarray:
    """`predict` for all images by networks of the same weights, side by side, one per device.

    The batches are those of one network alone, and so are the bits.
    """
    batches = torch.arange(len(dataset)).split(batch_size)
    shares = np.array_split(np.arange(len(batches)), min(len(networks), len(batches)))
    parts = [torch.cat(batches[share[0] : share[-1] + 1]) for share in shares]

    def work(net: Network, part: torch.Tensor) -> np.ndarray:
        return predict(net, dataset, batch_size, part)

    return np.concatenate(list(shared_out(work, networks, parts)))


def predict_set(net: Network, images: ImageDataset, batch_size: int) -> Predictions:
    """What `net` says about labelled images."""
    return Predictions(
        images.names,
        images.labels.numpy(),
        predict_on_all([net], images, batch_size),
        images.class_names,
        None if images.groups is None else np.array(images.groups),
        images.group_column,
    )
