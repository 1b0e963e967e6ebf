"""Normalisation of whole images, and back: mean and std per channel, of values in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std.

    Args:
        images: [..., C, H, W] uint8 in 0..255, uint16 in 0..65535, or floating in 0..1.
        mean, std: C floats each.

    Returns:
        [..., C, H, W] float32 of integers, else of the images' type.
    """
    unit = in_unit(images)
    centre, scale = _per_channel(unit, mean, std)
    return (unit - centre) / scale


def in_unit(images: Tensor) -> Tensor:
    """uint8 and uint16 images as float32 in 0..1; floats as they are."""
    if images.is_floating_point():
        return images
    return images.float() / torch.iinfo(images.dtype).max


def in_range(images: Tensor, ends: Sequence[tuple[float, float]]) -> Tensor:
    """Images [..., C, H, W] as float32 in 0..1: cut off at the lower and the upper end of the
    range, which become 0 and 1; one pair for all channels or one for each."""
    values = images.float()
    low, high = values.new_tensor(ends).T[..., None, None]
    return (values.clamp(low, high) - low) / (high - low)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """images · std + mean: normalised images [..., C, H, W] in 0..1 again, not clamped."""
    centre, scale = _per_channel(images, mean, std)
    return images * scale + centre


def _per_channel(images: Tensor, *values: Sequence[float]) -> list[Tensor]:
    """Each as [C, 1, 1] float32 on the images' device."""
    rows = (torch.tensor(v, dtype=torch.float32, device=images.device) for v in values)
    return [row[:, None, None] for row in rows]
