"""Probabilities of a network for a set of images."""

import numpy as np
import torch

from dataloaders.dataset import ImageDataset
from networks.models import DenseNet121
from utils.client import net_device


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
