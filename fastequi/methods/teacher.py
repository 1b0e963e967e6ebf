"""A teacher: the exponential moving average (EMA) of a student."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastequi.optim import lerp_


def momentum_at(first: float, progress: float) -> float:
    """The teacher's momentum by half a cosine from `first` to 1, for the share of training done."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


def follow(
    teacher: nn.Module, student: nn.Module, momentum: float, taken: Tensor | None = None
) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, of modules with equal parameters.

    Args:
        taken: [] 1, or 0 to leave the teacher unchanged; see `Method.after_step`.
    """
    lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum, taken)


def spread(unit: Tensor) -> Tensor:
    """Standard deviation of unit vectors [N, D] over the rows, times √D: a measure of collapse.

    1 if they are uniform on the sphere, 0 if all are equal.
    """
    return unit.std(0).mean() * unit.shape[-1] ** 0.5
