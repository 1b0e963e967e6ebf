"""Pixels in the place of features: the baselines' rows that evaluate/pair_scores.py makes of them.

"raw pair", "transformed image alone" and "pixel statistics" need no encoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The MLP and ridge get raw pixels averaged to this grid, the strongest baseline of those tried: on
# a validation part an MLP on 8x8, 16x16 and all 32x32 pixels had R² of .83, .77, .73 for the angle.
_GRID = 8
RAW_SIZE = 64  # px: larger images are averaged to it before their pixels are patches


def grid(images: Tensor) -> Tensor:
    """[N, C, H, W] averaged to at most 8x8, flattened."""
    return F.adaptive_avg_pool2d(images, min(_GRID, images.shape[-1])).flatten(1)


def patches(images: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] to [N, L, p·p·C]; of images above 64 px as many patches of fewer pixels."""
    size = images.shape[-1]
    if size > RAW_SIZE:
        each = max(RAW_SIZE * patch // size, 1)
        images = F.adaptive_avg_pool2d(images, size // patch * each)
        patch = each
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def pixel_statistics(images: Tensor) -> Tensor:
    """[N, 14 C] of both images: mean and deviation of every channel; as logarithms the variance of
    the channels' differences (colourfulness) and the mean square of the differences between pixels
    1 and 2 apart (sharpness).
    """
    found = []
    for x in images.chunk(2, 1):
        found += [x.mean((2, 3)), x.std((2, 3)), _log((x - x.roll(1, 1)).var((2, 3)))]
        for apart in (1, 2):
            across, down = x[..., apart:] - x[..., :-apart], x[..., apart:, :] - x[..., :-apart, :]
            found += [_log(d.square().mean((2, 3))) for d in (across, down)]
    return torch.cat(found, 1)


def _log(x: Tensor) -> Tensor:
    return x.add(1e-6).log()
