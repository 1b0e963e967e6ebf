"""A teacher: the moving average of a student."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def momentum_at(first: float, progress: float) -> float:
    """The teacher's momentum by half a cosine from `first` to 1, for the share of training done."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, of modules with equal parameters."""
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - momentum)


def spread(unit: Tensor) -> Tensor:
    """Standard deviation of unit vectors [N, D] over the rows, times √D: collapse shows in it.

    1 if they fill the sphere, 0 if all are one.
    """
    return unit.std(0).mean() * unit.shape[-1] ** 0.5
