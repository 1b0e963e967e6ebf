"""Position embeddings: learned ones at other image sizes, as timm resizes them; fixed ones.

Resizing is bicubic and antialiased: the same numbers as `F.interpolate(mode="bicubic",
antialias=True)`, but as two small matrices, one along each axis: unlike PyTorch's own backward,
this works with dynamic sizes in `torch.compile` and `torch.export`. In float64, which neither
autocast nor TF32 rounds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Patches along height and width."""

_A = -0.5  # of the cubic filter (Keys 1981), PyTorch's with antialias=True


def resize_pos_embed(
    pos_embed: Tensor, grid: Grid, num_prefix: int, source: Grid | None = None
) -> Tensor:
    """Position embedding [1, prefix + h·w, D] for another grid, [1, prefix + grid, D].

    Args:
        num_prefix: positions before those of the patches, kept unchanged.
        source: h, w; a square by default.

    Raises:
        ValueError: the number of positions is not that of `source`.
    """
    prefix, spatial = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    side = math.isqrt(spatial.shape[1])
    height, width = source or (side, side)
    if height * width != spatial.shape[1]:
        expected = f"{height}x{width} patches" if source else "a square of patches"
        raise ValueError(f"pos_embed: expected {expected}, got {spatial.shape[1]} of them")
    rows, columns = (
        bicubic(n, m, pos_embed.device) for n, m in ((height, grid[0]), (width, grid[1]))
    )
    image = rows @ spatial.double().unflatten(1, (height, width)).flatten(2)
    image = columns @ image.unflatten(2, (width, -1))
    return torch.cat([prefix, image.flatten(1, 2).to(pos_embed.dtype)], 1)


def bicubic(n: int, m: int, device: torch.device) -> Tensor:
    """[m, n] weights of n samples in each of m; exactly the identity where m = n."""
    larger = torch.sym_max(n, m)  # the filter's width when an image shrinks
    old, new = (torch.arange(k, device=device, dtype=torch.float64) + 0.5 for k in (n, m))
    x = ((old * m - new[:, None] * n) / larger).abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def sine_cosine(grid: Grid, dim: int, device: torch.device) -> Tensor:
    """Fixed positions [h·w, dim] of a grid: sines and cosines of the row, then of the column.

    Frequencies 10000^(-4i/dim), i = 0 .. dim/4 (Vaswani et al., NeurIPS 2017, for each axis as in
    MAE, He et al., CVPR 2022).

    Args:
        dim: channels, a multiple of 4.
    """
    rates = 10000 ** (-torch.arange(dim // 4, device=device, dtype=torch.float64) * 4 / dim)
    axes = []
    for n in grid:
        angles = torch.arange(n, device=device, dtype=torch.float64)[:, None] * rates
        axes.append(torch.cat([angles.sin(), angles.cos()], 1))
    rows, columns = axes
    both = [rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)]
    return torch.cat(both, -1).flatten(0, 1).float()
