"""Probabilities of a network for a set of images."""

from collections.abc import Sequence

import numpy as np
import torch

from dataloaders.dataset import ImageDataset
from networks.models import DenseNet121
from utils.client import net_device
from utils.threads import cancelling_pool

CPU_BATCH_PIXELS = 2**17  # larger batches leave the processor's cache: measured 64 to 224 pixels


def predict(
    net: DenseNet121, dataset: ImageDataset, batch_size: int, indices: torch.Tensor | None = None
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
    networks: Sequence[DenseNet121], dataset: ImageDataset, batch_size: int
) -> np.ndarray:
    """`predict` for all images by networks of the same weights, side by side, one per device.

    The batches are those of one network alone, and so are the bits.
    """
    batches = torch.arange(len(dataset)).split(batch_size)
    shares = np.array_split(np.arange(len(batches)), min(len(networks), len(batches)))
    parts = [torch.cat(batches[share[0] : share[-1] + 1]) for share in shares]

    def work(net: DenseNet121, part: torch.Tensor) -> np.ndarray:
        return predict(net, dataset, batch_size, part)

    with cancelling_pool(len(parts)) as pool:
        return np.concatenate(list(pool.map(work, networks, parts)))


def evaluation_batch_size(batch_size: int, image_size: int, device: torch.device) -> int:
    """Images per batch where no gradients are kept, for a run that trains with `batch_size`."""
    if device.type == "cpu":
        return max(4, CPU_BATCH_PIXELS // image_size**2)
    return 4 * batch_size
