"""The self-attention layer of the slides' experiment."""

import torch
from torch import nn


class SelfAttention(nn.Module):
    """One residual self-attention layer over the positions of a feature map.

    The H x W positions are tokens (7 x 7 for a 224-pixel image), the channels their features.
    The output projection starts at zero, so a fresh layer returns its input unchanged.
    """

    def __init__(self, channels: int, num_heads: int = 8):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attend = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        nn.init.zeros_(self.attend.out_proj.weight)
        nn.init.zeros_(self.attend.out_proj.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (B, C, H, W) -> the same shape."""
        tokens = features.flatten(2).transpose(1, 2)  # (B, H*W, C)
        normed = self.norm(tokens)
        attended, _ = self.attend(normed, normed, normed, need_weights=False)
        return features + attended.transpose(1, 2).reshape(features.shape)
