"""Losses between the patches of two views: GTSA's correspondence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi import checks
from fastequi.kernels import correspondence as _correspondence


def correspondence_loss(student: Tensor, teacher: Tensor, *, top: int) -> Tensor:
    """Negative cosine of the patches that match best, from student to teacher and back.

    Every student patch finds the nearest teacher patch, the `top` best of those matches count; the
    same the other way round; the mean of both. Since a match is a maximum this is::

        cosine = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT
        forth = cosine.amax(-1).topk(top, -1).values.mean()
        back = cosine.amax(-2).topk(top, -1).values.mean()
        loss = -(forth + back) / 2

    The similarities are never stored. (Kim et al., GTSA, arXiv 2304.08014: 98 of 196 patches of
    global crops, 18 of 36 of local ones.)

    Args:
        student: [..., M, C] patch features of P pairs of views; floating. Normalised here.
        teacher: [..., N, C], the other views'; gets no gradient.
        top: matches that count in each direction, 1 .. min(M, N).

    Returns:
        A float32 scalar (float64 for float64 features), the mean over pairs.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, x)
        if x.ndim < 2:
            raise ValueError(f"{name}: expected [..., patches, C], got {tuple(x.shape)}")
    lead, channels = student.shape[:-2], student.shape[-1]
    if teacher.shape[:-2] != lead or teacher.shape[-1] != channels:
        raise ValueError(
            f"teacher: expected [{', '.join(map(str, lead))}, N, {channels}], "
            f"got {tuple(teacher.shape)}"
        )
    most = min(student.shape[-2], teacher.shape[-2])
    if not 1 <= top <= most:
        raise ValueError(f"top: expected 1 .. {most}, got {top}")
    checks.same_device(student, teacher=teacher)
    with torch.autocast(student.device.type, enabled=False):
        unit = [
            F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
            for x in (student, teacher)
        ]
        rows = [x.reshape(-1, *x.shape[-2:]) for x in unit]
        return _correspondence.correspondence_loss(rows[0], rows[1].to(rows[0].dtype), top)
