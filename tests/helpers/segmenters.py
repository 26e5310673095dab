"""Checkpoints of small 3D U-Nets."""

import torch

from networks.kinds import build_network
from networks.saved import model_content
from tests.helpers.volumes import CLASSES
from utils.checkpoint import save_checkpoint

ARCHITECTURE = {
    "network": "unet3d",
    "in_channels": 1,
    "channels": [4, 4],
    "residual_units": 1,
    "drop_rate": 0.1,
}
PREPARED = {
    "modality": "mr",
    "ct_window": [-200.0, 300.0],
    "spacing": [1.0, 1.0, 1.0],
    "values": [0, 1, 5],
    "channels": 1,
    "patch_size": [8, 8, 8],
}


def save_segmenter(path, network=None, **changes):
    """A checkpoint of random weights, whose volumes were made as `PREPARED` says."""
    torch.manual_seed(0)
    described = ARCHITECTURE | (network or {})
    net = build_network(described, CLASSES)
    torch.nn.init.normal_(net.head.weight)
    preprocessing = {"volumes": PREPARED | changes}
    content = model_content(net.state_dict(), CLASSES, described, preprocessing, "demo-3d", 3)
    save_checkpoint(path, content)
    return path
