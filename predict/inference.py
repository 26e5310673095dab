"""Probabilities of a network for a set of images."""

from collections.abc import Sequence

import numpy as np
import torch

from dataloaders.dataset import ImageDataset
from networks.models import Network
from utils.metrics.predictions import Predictions
from utils.tensors import net_device
from utils.workers import cancelling_pool


def predict(
    net: Network, dataset: ImageDataset, batch_size: int, indices: torch.Tensor | None = None
) -> np.ndarray:
    """Softmax probabilities, float64 (N, C), of the images `indices` (all by default), in order.

    The network is put in eval mode: no augmentation, no dropout, BatchNorm's running statistics.
    """
    if indices is None:
        indices = torch.arange(len(dataset))
    net.eval()
    with torch.no_grad():
        batches = dataset.evaluation_batches(indices, batch_size, net_device(net))
        logits = torch.cat([net(images)[1] for images in batches])
    return torch.softmax(logits.double(), dim=1).cpu().numpy()


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

    with cancelling_pool(len(parts)) as pool:
        return np.concatenate(list(pool.map(work, networks, parts)))


def predict_set(net: Network, images: ImageDataset, batch_size: int) -> Predictions:
    """What `net` says about labelled images."""
    return Predictions(
        images.names,
        images.labels.numpy(),
        predict(net, images, batch_size),
        images.class_names,
        None if images.groups is None else np.array(images.groups),
        images.group_column,
    )
