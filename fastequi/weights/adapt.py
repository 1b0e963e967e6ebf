"""Weights for other images than they were made for: grids, patch sizes, channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.models.positions import Grid, bicubic, resize_pos_embed


def positions(pos_embed: Tensor, grid: Grid, num_prefix: int, source: Grid) -> Tensor:
    """Position embedding [1, prefix + h·w, D] for another grid, by antialiased bicubic resizing.

    The official DINO and DINOv2 code resizes without antialiasing and with another cubic filter, so
    that its positions differ a little at other sizes than the file's own.
    """
    return resize_pos_embed(pos_embed, grid, num_prefix, source)


def patches(weight: Tensor, size: int) -> Tensor:
    """Patch embedding [D, C, p, p] for patches of another size, [D, C, size, size].

    The weights whose products with resized patches are nearest to those of the old weights with
    the original patches (FlexiViT's pseudo-inverse resize, Beyer et al., CVPR 2023, section 3.4):
    with B the resizing of a patch, w' = (Bᵀ)⁺ w. Resizing is bicubic and antialiased along each
    axis, so that the pseudo-inverse is one of small matrices along each axis too.
    """
    rows, columns = (torch.linalg.pinv(bicubic(n, size, weight.device).T) for n in weight.shape[2:])
    return (rows @ weight.double() @ columns.T).to(weight.dtype)


def channels(weight: Tensor, number: int, kept: Sequence[int] | None = None) -> Tensor:
    """Patch embedding [D, C, p, p] for images of another number of channels.

    Args:
        number: of channels.
        kept: which of the C channels are taken, in this order, unchanged. None: for one channel
            they are summed; for more than C they are repeated in turn and scaled by C / number. So
            equal channels give what they gave (where `number` is no multiple of C, about).

    Raises:
        ValueError: `kept` is needed, names a channel that is not there, or another number of them.
    """
    own = weight.shape[1]
    if kept is not None:
        if len(kept) != number or not all(0 <= index < own for index in kept):
            listed = " ".join(map(str, kept))
            raise ValueError(f"channels: expected {number} of 0 .. {own - 1}, got {listed}")
        return weight[:, list(kept)]
    if number == own:
        return weight
    if number == 1:
        return weight.sum(1, keepdim=True)
    if number < own:
        raise ValueError(f"channels: expected which {number} of the weights' {own} are kept")
    turns = -(-number // own)
    return weight.repeat(1, turns, 1, 1)[:, :number] * (own / number)
