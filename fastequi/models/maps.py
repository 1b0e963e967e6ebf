"""GTSA's heads on maps of patch tokens (Kim et al., arXiv 2304.08014).

Maps are [N, h, w, C]: the tokens' own layout, and for a convolution an image in channels-last.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Conv(nn.Module):
    """A convolution 3×3, LayerNorm over channels without weights, GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.conv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return F.gelu(F.layer_norm(x, x.shape[-1:]))


class MapProjector(nn.Module):
    """Two convolutions with residuals, then a linear layer per position.

    Args:
        in_dim: channels of the encoder's tokens.
        dim: channels of the compared map; 768 in the paper.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Conv(in_dim) for _ in range(2))
        self.last = nn.Linear(in_dim, dim)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, h, w, in_dim] to [N, h, w, dim]."""
        for conv in self.convs:
            maps = maps + conv(maps)
        return self.last(maps)


class MapPredictor(nn.Sequential):
    """A convolution and a linear layer per position: [N, h, w, dim] to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(_Conv(dim), nn.Linear(dim, dim))


class RotationHead(nn.Sequential):
    """Classifies the rotation from an image's mean token: [N, in_dim] to logits [N, 4].

    Linear, LayerNorm and GELU for every hidden width; no GELU after the last, as in the authors'
    code.

    Args:
        in_dim: channels of the encoder's tokens.
        dims: widths of the hidden layers; (768, 768, 128) in the paper.
    """

    def __init__(self, in_dim: int, dims: tuple[int, ...] = (768, 768, 128)) -> None:
        layers: list[nn.Module] = []
        for dim in dims:
            layers += [nn.Linear(in_dim, dim), nn.LayerNorm(dim), nn.GELU()]
            in_dim = dim
        super().__init__(*layers[:-1], nn.Linear(in_dim, 4))
