"""Cross-entropy of student logits against a teacher's sharpened distribution, as in DINO and iBOT.

Replaces, for student rows s_r and the teacher rows that each is paired with::

    q = torch.exp((teacher - column - row[:, None]) / teacher_temp)   # softmax or Sinkhorn-Knopp
    logp = F.log_softmax(student / student_temp, -1)
    loss = sum(weight[r] * -(q[t] * logp[r]).sum() for r, t in pairs)

Never materialised: the teacher's distribution, the log-probabilities, gathered rows. A teacher's
distribution is known by one number per row and one per column: of a centred softmax the column is
the centre, and the row the log-sum-exp of what is left; Sinkhorn-Knopp's balancing factors are of
the same form (sinkhorn.py). The teachers of one row are added before they meet it, since
Σ_t CE(q_t, s) = Σ_n (Σ_t q_t) (LSE(s) - s), and the gradient, (n · softmax(s) - Σ_t q_t) /
student_temp, is written in the same pass, over the logits themselves if the caller allows it.

On a GPU the kernels are those of dino_triton.py. On a CPU dino.c does the same for float32 and
bfloat16: rows that meet the same teachers follow one another there, so that a sum of teachers is
made once for all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native, native_dino, native_sinkhorn
from fastequi.kernels.autograd import FusedLoss, needs_operator
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.constants import kept
from fastequi.kernels.dino_triton import launch
from fastequi.kernels.precision import float16_scale, without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.target import DINOTarget


def counted_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows [..., C] with zeros for those of weight 0, whose NaN would reach sums over all rows."""
    return rows.masked_fill((weight == 0)[..., None], 0.0)


@kept
def pairs_of(views: int, teachers: int, batch: int, device: torch.device) -> Tensor:
    """[S·B, T] rows of the teacher for each row of the student; -1 where both see one view."""
    t = torch.arange(teachers, device=device)[None, None, :]
    s = torch.arange(views, device=device)[:, None, None]
    b = torch.arange(batch, device=device)[None, :, None]
    return torch.where(s == t, -1, t * batch + b).flatten(0, 1).int()


@kept
def own_pairs(rows: int, device: torch.device) -> Tensor:
    """[R, 1]: each row of the student meets the same row of the teacher."""
    return torch.arange(rows, dtype=torch.int32, device=device)[:, None]


def compute_dino(
    student: Tensor,
    teacher: Tensor,
    pairs: Tensor,
    weight: Tensor,
    row: Tensor | None,
    column: Tensor | None,
    student_temp: float,
    teacher_temp: float,
    grad: bool,
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """(Σ_r loss, its gradient by student or empty); in place over the student's own memory."""
    target = DINOTarget(pairs, weight, row, column, student_temp, teacher_temp)
    if not grad:
        out = student.new_empty(0, 0)
    elif inplace:
        out = student.detach()
        torch.autograd.graph.increment_version(student)  # so that saved logits raise
    else:
        out = torch.empty_like(student, memory_format=torch.contiguous_format)
    if student.numel() == 0:
        return weight.new_zeros(()), out
    if use_native(student):
        if native_dino.reads(student, teacher, weight):
            total = weight.new_empty(())
            native_dino.dino(student, teacher, target, total, out if grad else None)
            return total, out
        say_type("the loss of DINO and iBOT", student.dtype, teacher.dtype)
    if not use_triton(student) or torch.float64 in (student.dtype, teacher.dtype):
        loss = torch.empty(len(student), dtype=weight.dtype, device=student.device)
        _in_chunks(student, teacher, target, loss, out)
        return loss.sum(), out
    return launch(student, teacher, target, None, out if grad else None).sum(), out


_CHUNK = 1 << 18  # values of the student at a time: a megabyte stays in a shared cache


def _in_chunks(
    student: Tensor, teacher: Tensor, target: DINOTarget, loss: Tensor, out: Tensor
) -> None:
    """The CPU path: a few of the rows that count at a time, the gradient by hand."""
    pairs, weight, _, column, student_temp, teacher_temp = target
    wide = loss.dtype
    at_once = max(_CHUNK // student.shape[1], torch.get_num_threads())
    counts = (pairs >= 0).sum(1)
    read = (weight != 0) & (counts > 0)
    every = bool(read.all())
    places = torch.arange(0) if every else read.nonzero()[:, 0]
    if not every:
        loss.zero_()
        if out.numel():
            out[~read] = 0

    def distribution(rows: Tensor) -> Tensor:
        """A row number only normalises: a softmax, whose exp is fast where it underflows."""
        x = rows.to(wide)
        return F.softmax((x if column is None else x - column) / teacher_temp, -1).to(wide)

    shared = distribution(teacher) if pairs.shape[1] > 1 else None
    aligned = pairs is own_pairs(len(pairs), pairs.device)
    for start in range(0, len(student) if every else len(places), at_once):
        end = start + at_once
        part = slice(start, end) if every else places[start:end]
        each, count = weight[part, None], counts[part, None]
        if shared is None:
            wanted = distribution(teacher[part if aligned else pairs[part, 0].clamp(min=0)])
        else:
            wanted = sum_of_teachers(shared, pairs[part])
        x = student[part].to(wide) / student_temp
        loss[part] = each[:, 0] * -crossed(wanted, F.log_softmax(x, -1))
        if out.numel():
            slope = each / student_temp
            p = F.softmax(x, -1).mul_(count * slope)
            out[part] = p.addcmul_(wanted, slope, value=-1).to(out.dtype)


def sum_of_teachers(q: Tensor, pairs: Tensor) -> Tensor:
    """[R, N] Σ_p q[pairs[r, p]] of the teacher's distributions [Q, N], leaving out pairs of -1."""
    there = pairs >= 0
    counts = there.sum(1)
    return F.embedding_bag(pairs[there], q, (counts.cumsum(0) - counts).to(pairs.dtype), mode="sum")


def crossed(q: Tensor, logp: Tensor) -> Tensor:
    """[R] Σ_n q logp; where q is 0 a class adds nothing, whatever logp (a logit may be -inf)."""
    found = (q * logp).sum(-1)
    if not bool(found.isnan().any()):
        return found
    return (q * logp.masked_fill(q == 0, 0.0)).sum(-1)


def _fake(student, teacher, pairs, weight, *options) -> tuple[Tensor, Tensor]:
    if not options[-2]:
        return weight.new_empty(()), student.new_empty(0, 0)
    return weight.new_empty(()), torch.empty_like(student, memory_format=torch.contiguous_format)


dino_op = FusedLoss("dino_loss", compute_dino, _fake, {0: 1}, losses="dino_loss, ibot_loss")


@without_autocast
def dino_loss_ref(student: Tensor, teacher: Tensor, target: DINOTarget) -> Tensor:
    """The chain in plain PyTorch, differentiable in the student. Oracle and baseline."""
    pairs, weight, row, column, student_temp, teacher_temp = target
    wide = weight.dtype
    logit = teacher.to(wide)
    logit = logit if column is None else logit - column
    logit = (logit if row is None else logit - row[:, None]) / teacher_temp
    q = F.softmax(logit, -1) if row is None else torch.exp(logit)
    student = counted_rows(student, torch.where((pairs >= 0).any(1), weight, 0.0))
    logp = F.log_softmax(student.to(wide) / student_temp, -1)
    loss = torch.zeros((), dtype=wide, device=student.device)
    for t in pairs.T:
        met = torch.where((t >= 0) & (weight != 0), weight, 0.0)
        wanted = counted_rows(q[t.clamp(min=0)], met)
        loss = loss - (met * (wanted * logp.masked_fill(wanted == 0, 0.0)).sum(-1)).sum()
    return loss


def dino_loss(
    student: Tensor, teacher: Tensor, target: DINOTarget, inplace: bool = False
) -> Tensor:
    """Σ_r weight[r] Σ_t CE(q_t, student_r), a scalar; arguments already checked.

    Args:
        student: [R, N] logits, the only ones that get a gradient.
        teacher: [Q, N] logits.
        target: what else they meet.
        inplace: the gradient overwrites the logits, which must not be needed afterwards.
    """
    teacher = teacher.detach()
    if transformed():
        return dino_loss_ref(student, teacher, target)
    grad = torch.is_grad_enabled() and student.requires_grad
    inplace = inplace and student.is_contiguous() and not needs_operator(student)
    scale = None
    if student.dtype == torch.float16:
        scale = float16_scale(target.weight, target.pairs.shape[1] / target.student_temp)
        target = target._replace(weight=target.weight * scale)
    loss, _ = dino_op(student, teacher, *target, grad, inplace)
    return loss if scale is None else loss / scale


def prepared(
    student: Tensor, teacher: Tensor, target: DINOTarget, iterations: int, weighted: bool
) -> Again | None:
    """What :func:`dino_loss` does for dense logits like these [..., N], in C; or None.

    It takes student, teacher, the centre, which is the target's column, and dense weights in
    float32, or None for the target's own.

    Args:
        iterations: of Sinkhorn-Knopp, which finds the target's row and column; 0: it has a centre.
        weighted: the rows that Sinkhorn-Knopp balances are those of the weights.
    """
    rows = student.flatten(0, -2).detach(), teacher.flatten(0, -2).detach()
    if (
        not use_native(student)
        or not native_dino.reads(*rows, target.weight)
        or not (student.is_contiguous() and teacher.is_contiguous())
        or student.is_neg()
        or teacher.is_neg()
        or target.row is not None
        or not student.numel()
        or (iterations and not native_sinkhorn.takes(rows[1]))
    ):
        return None
    wants = torch.is_grad_enabled() and student.requires_grad
    run, balance = native_dino.prepared(*rows, target, wants), None
    if iterations:
        balance = native_sinkhorn.prepared(rows[1], target.teacher_temp, iterations)
    own = target.weight if weighted else None

    def outputs(
        student: Tensor, teacher: Tensor, center: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        column = None
        if balance is not None:
            column = balance(teacher, weight if weight is not None else own)
        elif center is not None:
            column = native.floats(center)
        return run(student, teacher, column, weight)

    return dino_op.again(outputs) if wants else lambda *given: outputs(*given)[0]
