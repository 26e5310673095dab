"""DenseNet121's backbone from torchvision, and ImageNet weights from disk."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torchvision.models import DenseNet, ResNet, densenet121

from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.schema import mapping, tensor, text

NUM_FEATURES = 1024
HUB = Path("models", "hub", "checkpoints")
CHECKPOINT_FOLDER = Path(__file__).resolve().parents[1] / HUB
_OLD_NAME = re.compile(r"\b(norm|conv)\.(\d)\.")
# As torchvision publishes them, and as somebody may have named them.
CHECKPOINT_NAMES = {
    "densenet121": ("densenet121-a639ec97.pth", "densenet121.pth"),
    "resnet18": ("resnet18-f37072fd.pth", "resnet18.pth"),
}


def current_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under the names that its entries have today: without DataParallel's `module.`,
    and with `norm1` where PyTorch before 0.4 wrote `norm.1`."""
    return {
        _OLD_NAME.sub(r"\1\2.", name.removeprefix("module.")): value
        for name, value in weights.items()
    }


class DenseBlock(nn.ModuleDict):
    """torchvision's dense block: the same layers under the same names, numbers equal to the bit.

    There, each layer concatenates all maps before it anew, and a map's gradient is added up over
    all layers behind it: L (L + 1) / 2 additions. Here each map is appended to those before it, and
    the gradient of all of them is added once a layer.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps (B, C, H, W) -> (B, C + 32 L, H, W), the maps of L layers behind those given."""
        for layer in self.values():
            bottleneck = layer.conv1(layer.relu1(layer.norm1(maps)))
            new = layer.conv2(layer.relu2(layer.norm2(bottleneck)))
            maps = torch.cat([maps, new], dim=1)
        return maps


def build_densenet121(num_outputs: int) -> DenseNet:
    """torchvision's DenseNet121 with `classifier` = Sequential(Linear(1024, num_outputs)).

    The dense layers' own dropout is left out; the weights are random.
    """
    network = densenet121(weights=None, drop_rate=0)
    for name, child in list(network.features.named_children()):
        if name.startswith("denseblock"):
            setattr(network.features, name, DenseBlock(child))
    network.classifier = nn.Sequential(nn.Linear(NUM_FEATURES, num_outputs))
    return network


def find_imagenet_weights(folder: Path = CHECKPOINT_FOLDER, network: str = "densenet121") -> Path:
    """The file of ImageNet weights in `folder`; below the folder one is in, where an installed
    program's user has it; or where torchvision keeps what it has fetched (TORCH_HOME), as a run at
    hospitals needs it, whose program is a copy. `UserError` says where to put one."""
    for place in (folder, HUB, Path(torch.hub.get_dir()) / "checkpoints"):
        for name in CHECKPOINT_NAMES[network]:
            if os.path.isfile(place / name):  # False, too, for what may not be looked at
                return place / name
    fetch = f"from torchvision.models import {network}; {network}(weights='DEFAULT')"
    raise UserError(
        f"--pretrained 1: no ImageNet weights in {folder}: put torchvision's "
        f"{CHECKPOINT_NAMES[network][0]} there, or where torchvision keeps it: python -c "
        f'"{fetch}"; or train from random weights with --pretrained 0'
    )


def load_imagenet_weights(network: DenseNet | ResNet, path: Path) -> None:
    """Load the backbone of a published ImageNet checkpoint into `network`, in place.

    Accepts today's names and those of the published DenseNet, which writes `norm.1` for `norm1`.
    The 1000-class head is left out. Raises `UserError` when an entry is missing or misshapen.
    """
    published = load_checkpoint(path, check=mapping(text(200), tensor(), largest=10_000))
    title, head = "DenseNet121", "classifier."
    if isinstance(network, ResNet):
        title, head = "ResNet-18", "fc."
    ours = network.state_dict()
    backbone = {
        name: value for name, value in current_names(published).items() if not name.startswith(head)
    }
    # The head stays; published files are older than BatchNorm's step counter, which starts at 0.
    for name, value in ours.items():
        if name.startswith(head):
            backbone[name] = value
        elif name.endswith("num_batches_tracked"):
            backbone.setdefault(name, torch.zeros_like(value))
    try:
        network.load_state_dict(backbone)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(f"{path}: not the weights of a {title}: {reason}") from error
