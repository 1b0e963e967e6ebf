"""Self-distillation: cross-entropy of student logits against a teacher's distribution.

DINO (Caron et al., ICCV 2021), iBOT (Zhou et al., ICLR 2022), DINOv2 (Oquab et al., TMLR 2024).
Logits come from the prototype layer, before any temperature. The teacher gets no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastequi import checks, distributed
from fastequi.kernels import dino as _dino

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TARGETS = ("softmax", "sinkhorn")


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    targets: str = "softmax",
    iterations: int = 3,
    group: ProcessGroup | None = None,
    inplace: bool = False,
) -> Tensor:
    r"""Mean cross-entropy over all pairs of a student's and another teacher's view.

    Equals, without its intermediates::

        q = F.softmax((teacher - center) / teacher_temp, -1)
        pairs = [(t, s) for t in range(T) for s in range(S) if s != t]
        loss = mean(-(q[t] * F.log_softmax(student[s] / student_temp, -1)).sum(-1).mean()
                    for t, s in pairs)

    Args:
        student: [S, B, N] logits, the global views first, as many as the teacher has; floating.
        teacher: [T, B, N] logits of the global views, T <= S.
        student_temp, teacher_temp: temperatures.
        center: [N] subtracted from the teacher's logits, for targets="softmax".
        targets: "softmax", or "sinkhorn": Sinkhorn-Knopp over all T·B rows, as in DINOv2.
        iterations: of Sinkhorn-Knopp.
        group: the processes whose rows are balanced together by Sinkhorn-Knopp; None: this one
            alone. The mean is over this process's images, as data-parallel training wants it.
        inplace: the gradient takes the memory of `student`, whose values are then gone; autograd
            raises if anything else kept them.

    Returns:
        A float32 scalar (float64 for float64 logits).

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    _check(student, teacher, 3, student_temp, teacher_temp)
    views, batch, width = student.shape
    if student.shape[1:] != teacher.shape[1:] or not 1 <= len(teacher) <= views:
        raise ValueError(
            f"teacher: expected [T, {batch}, {width}] with 1 <= T <= {views} views, "
            f"got {tuple(teacher.shape)}"
        )
    if views == len(teacher) == 1:
        raise ValueError("student: expected a view that the teacher does not have, got one alone")
    rows = teacher.flatten(0, 1)
    row, column = _distribution(rows, teacher_temp, center, targets, iterations, group)
    pairs = _pairs(views, len(teacher), batch, student.device)
    count = views * len(teacher) - len(teacher)
    weight = torch.full(
        (views * batch,), 1 / max(count * batch, 1), dtype=_wide(student), device=student.device
    )
    return _dino.dino_loss(
        _rows(student, inplace), rows, pairs, weight, row, column, student_temp, teacher_temp,
        inplace,
    )  # fmt: skip


def ibot_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    weight: Tensor | None = None,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    targets: str = "softmax",
    iterations: int = 3,
    group: ProcessGroup | None = None,
    inplace: bool = False,
) -> Tensor:
    """Weighted sum over rows of the cross-entropy with the same row of the teacher.

    Masked image modelling: rows are patch tokens, and the weight of a token that was masked is
    1 / (masked tokens of its image · images). Rows of weight 0 are not read, so logits of all
    tokens may be given with a mask for weights; there is nothing to gather.

    Args:
        student, teacher: [..., N] logits of the same shape.
        weight: [...] float, 0 for tokens that do not count; by default 1 / rows for all.
        student_temp, teacher_temp, center, targets, iterations, group, inplace: as in
            :func:`dino_loss`. Sinkhorn-Knopp balances the rows that count.

    Returns:
        A float32 scalar (float64 for float64 logits).
    """
    _check(student, teacher, None, student_temp, teacher_temp)
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    if weight is not None and (weight.shape != student.shape[:-1] or weight.requires_grad):
        raise ValueError(
            f"weight: expected {tuple(student.shape[:-1])} without a gradient, "
            f"got {tuple(weight.shape)}"
        )
    rows = teacher.flatten(0, -2)
    wide = _wide(student)
    if weight is None:
        weight = torch.full((len(rows),), 1 / max(len(rows), 1), dtype=wide, device=student.device)
    weight = weight.detach().to(wide).flatten()
    row, column = _distribution(rows, teacher_temp, center, targets, iterations, group, weight)
    pairs = torch.arange(len(rows), dtype=torch.int32, device=student.device)[:, None]
    return _dino.dino_loss(
        _rows(student, inplace), rows, pairs, weight, row, column, student_temp, teacher_temp,
        inplace,
    )  # fmt: skip


@torch.no_grad()
def _distribution(
    rows: Tensor,
    temp: float,
    center: Tensor | None,
    targets: str,
    iterations: int,
    group: ProcessGroup | None,
    weight: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """What makes exp(rows / temp - column - row) the teacher's distribution: (row, column)."""
    checks.one_of("targets", targets, TARGETS)
    rows = rows.detach()
    if targets == "softmax":
        if center is not None and center.shape != rows.shape[1:]:
            raise ValueError(f"center: expected {tuple(rows.shape[1:])}, got {tuple(center.shape)}")
        column = None if center is None else center.detach().to(_wide(rows)) / temp
        return None, column
    if center is not None:
        raise ValueError("center: Sinkhorn-Knopp centres by itself, leave it out")
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    return _dino.sinkhorn(
        rows, temp, iterations, lambda lse: distributed.log_sum_exp(lse, group), weight
    )


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _pairs(views: int, teachers: int, batch: int, device: torch.device) -> Tensor:
    """[S·B, T] rows of the teacher for each row of the student; -1 where both see one view."""
    t = torch.arange(teachers, device=device)[None, None, :]
    s = torch.arange(views, device=device)[:, None, None]
    b = torch.arange(batch, device=device)[None, :, None]
    return torch.where(s == t, -1, t * batch + b).flatten(0, 1).int()


def _rows(student: Tensor, inplace: bool) -> Tensor:
    if inplace and student.requires_grad and student.is_leaf:
        raise ValueError("inplace: student is a leaf of the graph, whose values must stay")
    return student.flatten(0, -2)


def _check(
    student: Tensor, teacher: Tensor, ndim: int | None, student_temp: float, teacher_temp: float
) -> None:
    for name, tensor in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, tensor)
        if tensor.ndim < 2 or (ndim is not None and tensor.ndim != ndim):
            what = "[views, B, N]" if ndim else "[..., N]"
            raise ValueError(f"{name}: expected {what} logits, got {tuple(tensor.shape)}")
    checks.same_device(student, teacher=teacher)
    for name, temp in (("student_temp", student_temp), ("teacher_temp", teacher_temp)):
        if not temp > 0:
            raise ValueError(f"{name}: expected a temperature > 0, got {temp}")
