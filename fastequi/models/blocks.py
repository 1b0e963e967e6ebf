"""Convolutional networks as a list of blocks, whose features are all returned."""

from __future__ import annotations

from torch import Tensor, nn


class BlockNetwork(nn.Module):
    """Blocks one after the other.

    Attributes:
        blocks: modules from one feature map to the next.
        embed_dim: channels of the last one.
    """

    embed_dim: int

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] to the feature maps of every block."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps
