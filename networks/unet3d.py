"""A 3D U-Net (MONAI's) with one dropout before its last convolution.

MONAI is imported when such a network is built, not before: that takes seconds and 350 MB.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from networks.models import Network
from utils.packages import import_3d


class UNet3d(Network):
    """MONAI's UNet with residual units and instance norm, a dropout of whole feature maps, and a
    1x1x1 convolution.

    in_channels: K of the images. num_classes: background among them. channels: features of each
    level, from the finest on; every level halves the sides, so that a patch's sides are multiples
    of 2 ** (levels - 1). residual_units: per level.

    The instance norm of a patch does not depend on the rest of the batch and keeps no statistics:
    the features of a pass in train mode are those of any other, and T stochastic passes are T
    draws of the dropout behind them, exactly.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (8, 16, 32, 64),
        residual_units: int = 1,
        drop_rate: float = 0.1,
    ):
        super().__init__(drop_rate)
        unet = import_3d("monai.networks.nets").UNet
        self.backbone = unet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=channels[0],
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=residual_units,
            norm="instance",
        )
        self.head = nn.Conv3d(channels[0], num_classes, 1)

    @property
    def head_layer(self) -> nn.Module:
        """The 1x1x1 convolution behind the dropout."""
        return self.head

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Channels last takes two thirds of the time on a CPU; not measured on a GPU."""
        return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format

    def plain_features(self, volumes: torch.Tensor) -> torch.Tensor:
        """volumes (B, K, X, Y, Z) -> features (B, F, X, Y, Z) in float32, before dropout."""
        with self.autocast(volumes.device):
            return functional.leaky_relu(self.backbone(volumes)).float()

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """features (B, F, X, Y, Z) -> logits (B, C, X, Y, Z); draws a fresh dropout mask."""
        return self._logits(features, 1)[0]

    def stochastic(self, features: torch.Tensor, passes: int) -> torch.Tensor:
        """Logits (T, B, C, X, Y, Z) of `passes` draws of the dropout.

        A dropped map is a column of the head that counts as 0, so that the maps are not copied T
        times.
        """
        return self._logits(features, passes)

    def _logits(self, features: torch.Tensor, passes: int) -> torch.Tensor:
        batch, maps = features.shape[:2]
        kept = self.dropout(features.new_ones(passes, batch, 1, maps))
        weights = self.head.weight.flatten(1) * kept  # (T, B, C, F)
        stacked = weights.transpose(0, 1).reshape(batch, -1, maps)  # (B, T C, F)
        logits = torch.bmm(stacked, features.flatten(2)).unflatten(1, (passes, -1))
        logits = logits + self.head.bias[:, None]
        return logits.transpose(0, 1).unflatten(-1, features.shape[2:])
