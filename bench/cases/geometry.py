"""Transformations and images that the warp cases share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FAMILIES = ("mixed", "identity", "45", "90", "zoom0.5", "zoom2", "outside")
"""Mixed: rotations within ±45° with shifts, as pretraining draws them. The others are all alike;
a number is an angle in degrees."""


def theta(family: str, batch: int, steps: int, device: str, seed: int = 0) -> Tensor:
    """[B, K, 2, 3] matrices of a family, in F.affine_grid's convention."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.zeros(batch, steps)
    shift = torch.zeros(batch, steps, 2)
    zoom = 1.0
    if family == "mixed":
        angle = (torch.rand(batch, 1, generator=generator) * 2 - 1) * math.pi / 4
        fraction = torch.arange(1, steps + 1) / (steps + 1)
        angle = angle * fraction
        shift = (torch.rand(batch, 1, 2, generator=generator) - 0.5) * 0.2 * fraction[:, None]
    elif family.isdigit():
        angle += math.radians(int(family))
    elif family.startswith("zoom"):
        zoom = 1 / float(family.removeprefix("zoom"))
    elif family == "outside":
        shift += 1.8
    elif family != "identity":
        raise ValueError(f"family: expected one of {FAMILIES}, got {family!r}")
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = torch.stack([cos, -sin, shift[..., 0], sin, cos, shift[..., 1]], -1)
    return rows.view(batch, steps, 2, 3).to(device)


def images(batch: int, size: int, device: str, seed: int = 0) -> Tensor:
    """[B, 3, H, W] uint8, channels-last in memory, smooth enough to be interpolated."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, size // 4, size // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).to(device).contiguous(memory_format=torch.channels_last)


def in_pixels(matrices: Tensor, size: int) -> Tensor:
    """θ [..., 2, 3] of square images as [..., 3, 3] from output to input in pixels, on the CPU."""
    half = torch.tensor([[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]])
    square = torch.eye(3).repeat(*matrices.shape[:-2], 1, 1)
    square[..., :2, :] = matrices.cpu()
    return torch.linalg.inv(half) @ square @ half


def rotations(matrices: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of square images as libraries name them: degrees, pixels [..., 2], scale.

    Theirs map input to output, y down: the inverse of θ's z R(φ) with its shift.
    """
    linear, shift = matrices[..., :2].double(), matrices[..., 2:].double() * size / 2
    degrees = -torch.atan2(linear[..., 1, 0], linear[..., 0, 0]).rad2deg()
    zoom = linear[..., :, 0].norm(dim=-1)
    return degrees, -(torch.linalg.inv(linear) @ shift)[..., 0], 1 / zoom


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def itemsize(params: Any) -> int:
    return DTYPES[params["dtype"]].itemsize
