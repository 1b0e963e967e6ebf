"""A teacher: the exponential moving average (EMA) of a student.

Its BatchNorms normalise by the statistics of its own batch in training, and keep running averages
of these for evaluation, as in BYOL's and DINO's codes (neither puts its teacher into eval mode).
The student's running averages would be those of other weights. All other buffers are copies of the
student's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastequi.models.batchnorm import SharedBatchNorm
from fastequi.optim import lerp_

_STATISTICS = (_NormBase, SharedBatchNorm)  # BatchNorm of any kind, InstanceNorm


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
    with torch.no_grad():
        for ours, theirs in zip(teacher.modules(), student.modules(), strict=True):
            if not isinstance(ours, _STATISTICS):
                for name, buffer in ours.named_buffers(recurse=False):
                    buffer.copy_(theirs.get_buffer(name))


def quieten(teacher: nn.Module, training: bool) -> None:
    """Eval mode, in which no path and no channel is dropped, but for batch statistics.

    Args:
        training: the method's mode.
    """
    teacher.eval()
    for part in teacher.modules():
        if isinstance(part, _STATISTICS):
            part.training = training


def spread(unit: Tensor) -> Tensor:
    """Standard deviation of unit vectors [N, D] over the rows, times √D: a measure of collapse.

    1 if they are uniform on the sphere, 0 if all are equal.
    """
    return unit.std(0).mean() * unit.shape[-1] ** 0.5
