"""The prototype layer and the loss on its logits together, some prototypes at a time.

Replaces, for the rows x that enter the last layer::

    student, teacher = x @ weight.T, x_teacher @ teacher_weight.T     # R·N and Q·N logits
    loss = dino_loss(student, teacher, ...)

Never materialised: the logits of all 65,536 prototypes, nor their gradient. All prototypes
are visited twice, in chunks: first for the log-sum-exps, then for the loss and its gradient, whose
products with the rows and with the weights are taken while the chunk lies in the L2 cache. So
a prototype's gradient is written once, and not added to once per chunk as it would be if the rows
went by. For that the logits are computed twice: six matrix products for four. Sinkhorn-Knopp
computes the teacher's two more times in each of its iterations.

Where one chunk holds all prototypes the logits are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import dino, native_dino, native_sinkhorn, sinkhorn
from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import transformed, use_native, use_triton
from fastequi.kernels.precision import float16_scale, without_autocast


def chunks_of(prototypes: int, rows: int, itemsize: int, cuda: bool) -> Iterator[slice]:
    """So many prototypes that all rows' logits fill half of an H200's L2 cache, or a CPU's third.

    At least 1024, or the products would be too thin.
    """
    cache = 24 << 20 if cuda else 8 << 20
    width = max(cache // max(rows * itemsize, 1) // 128 * 128, 1024)
    for start in range(0, prototypes, width):
        yield slice(start, start + width)


class Layers(NamedTuple):
    """What enters the prototype layers, and their weights.

    Attributes:
        student, prototypes: [R, C], [N, C]; both may get a gradient.
        teacher, teacher_prototypes: [Q, C], [N, C], which get none.
    """

    student: Tensor
    prototypes: Tensor
    teacher: Tensor
    teacher_prototypes: Tensor


def _compute(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    pairs: Tensor,
    row_weight: Tensor,
    row: Tensor | None,
    column: Tensor | None,
    student_temp: float,
    teacher_temp: float,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(Σ_r loss, its gradients by student and weight, or empty)."""
    d_student, d_weight = _outputs(student, weight, grad)
    student = dino.counted_rows(student, row_weight)
    wide = row_weight.dtype
    rows = len(student) + len(teacher)
    chunks = list(chunks_of(len(weight), rows, student.element_size(), student.is_cuda))
    target = dino.DINOTarget(pairs, row_weight, row, column, student_temp, teacher_temp)
    if len(chunks) == 1 or not len(student):
        ours, theirs = F.linear(student, weight), F.linear(teacher, teacher_weight)
        loss, slope = dino.compute_dino(ours, theirs, *target, grad, True)
        if grad:
            torch.mm(slope, weight, out=d_student)
            torch.mm(slope.T, student, out=d_weight)
        return loss, d_student, d_weight
    exact = _in_c(student, teacher, row_weight)
    lse = _row_lse(student, weight, student_temp, None, chunks, exact)
    if row is None:
        row = _row_lse(teacher, teacher_weight, teacher_temp, column, chunks, exact)
    loss = row_weight.new_zeros(())
    total = torch.zeros(student.shape, dtype=wide, device=student.device) if grad else d_student
    for part in chunks:
        logits = F.linear(student, weight[part]), F.linear(teacher, teacher_weight[part])
        here = target._replace(row=row, column=None if column is None else column[part])
        slope, share = _columns(*logits, here, lse, grad)
        loss += share
        if grad:
            total += slope @ weight[part]
            torch.mm(slope.T, student, out=d_weight[part])
    if grad:
        d_student.copy_(total)
    return loss, d_student, d_weight


def _columns(
    student: Tensor, teacher: Tensor, target: dino.DINOTarget, lse: Tensor, grad: bool
) -> tuple[Tensor, Tensor]:
    """Some columns' gradient, over the student's logits, and share of the loss."""
    pairs, row_weight, row, column, student_temp, teacher_temp = target
    if use_triton(student) and torch.float64 not in (student.dtype, teacher.dtype):
        return student, dino.launch(student, teacher, target, lse, student if grad else None).sum()
    if _in_c(student, teacher, row_weight):
        loss = torch.empty_like(row_weight)
        native_dino.dino(student, teacher, target, loss, student if grad else None, lse)
        return student, loss.sum()
    assert row is not None
    wide = row_weight.dtype
    y = teacher.to(wide)
    y = y if column is None else y - column
    wanted = dino.sum_of_teachers(_share(y, row, teacher_temp), pairs)
    x = student.to(wide)
    count = (pairs >= 0).sum(1, keepdim=True)
    read = (row_weight != 0) & (count[:, 0] > 0)
    logp = (x - lse[:, None]).div_(student_temp)
    loss = torch.where(read, -row_weight * dino.crossed(wanted, logp), 0.0)
    if grad:
        slope = _share(x, lse, student_temp).mul_(count).sub_(wanted)
        slope *= (row_weight / student_temp)[:, None]
        student = slope.masked_fill_(~read[:, None], 0.0).to(student.dtype)
    return student, loss.sum()


def _in_c(student: Tensor, teacher: Tensor, row_weight: Tensor) -> bool:
    return use_native(student) and native_dino.reads(student, teacher, row_weight)


def _share(x: Tensor, lse: Tensor, temp: float) -> Tensor:
    """exp((x - lse) / temp), by a softmax of these columns, whose exp is fast where it
    underflows."""
    mine = sinkhorn.log_sum_exp(x, 1, temp)
    return F.softmax(x / temp, -1).mul_(((mine - lse) / temp).exp()[:, None])


def _row_lse(
    x: Tensor,
    weight: Tensor,
    temp: float,
    column: Tensor | None,
    chunks: list[slice],
    exact: bool = False,
) -> Tensor:
    """Of all prototypes; `exact`: in float64, as `native_dino` takes them."""
    parts = []
    for part in chunks:
        of_part = None if column is None else column[part]
        logits = F.linear(x, weight[part])
        if exact:
            parts.append(native_sinkhorn.wide_row_lse(logits, temp, of_part))
        else:
            parts.append(sinkhorn.compute_row_lse(logits, temp, of_part))
    return sinkhorn.log_sum_exp(torch.stack(parts, 1), 1, temp)


def _outputs(student: Tensor, weight: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
    if not grad:
        return student.new_empty(0), weight.new_empty(0)
    dense = torch.contiguous_format
    return (
        torch.empty_like(student, memory_format=dense),
        torch.empty_like(weight, memory_format=dense),
    )


def _fake(student, weight, teacher, teacher_weight, pairs, row_weight, *options):
    return (row_weight.new_empty(()), *_outputs(student, weight, options[-1]))


linear_dino_op = FusedLoss(
    "linear_dino_loss", _compute, _fake, {0: 1, 1: 2}, losses="linear_dino_loss, linear_ibot_loss"
)


@without_autocast
@torch.no_grad()
def linear_sinkhorn(
    x: Tensor,
    weight: Tensor,
    temp: float,
    iterations: int,
    across: Callable[[Tensor], Tensor] | None = None,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`kernels.sinkhorn.sinkhorn` of the logits x @ weight.T, which are not stored."""
    wide = torch.promote_types(x.dtype, torch.float32)
    chunks = list(chunks_of(len(weight), len(x), x.element_size(), x.is_cuda))

    def columns(row: Tensor) -> Tensor:
        parts = (sinkhorn.column_lse(F.linear(x, weight[part]), temp, row) for part in chunks)
        return torch.cat(list(parts))

    def rows(column: Tensor) -> Tensor:
        return _row_lse(x, weight, temp, column, chunks)

    start = torch.zeros(len(x), dtype=wide, device=x.device)
    return sinkhorn.balanced(columns, rows, start, iterations, across, row_weight)


@without_autocast
def linear_dino_loss_ref(
    student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor,
    target: dino.DINOTarget,
) -> Tensor:  # fmt: skip
    """The chain in plain PyTorch, differentiable in student and weight."""
    student = dino.counted_rows(student, target.weight)
    logits = F.linear(student, weight), F.linear(teacher, teacher_weight)
    return dino.dino_loss_ref(*logits, target)


def linear_dino_loss(layers: Layers, target: dino.DINOTarget) -> Tensor:
    """Σ_r weight[r] Σ_t CE(q_t, student_r @ prototypes.T), a scalar; arguments already checked."""
    student, prototypes, teacher, teacher_prototypes = layers
    layers = Layers(student, prototypes, teacher.detach(), teacher_prototypes.detach())
    if transformed():
        return linear_dino_loss_ref(*layers, target)
    grad = torch.is_grad_enabled() and (student.requires_grad or prototypes.requires_grad)
    scale = None
    if student.dtype == torch.float16:  # a prototype's gradient sums over rows
        scale = float16_scale(target.weight, target.pairs.numel() / target.student_temp)
        target = target._replace(weight=target.weight * scale)
    loss, *_ = linear_dino_op(*layers, *target, grad)
    return loss if scale is None else loss / scale
