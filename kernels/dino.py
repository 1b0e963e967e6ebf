"""Cross-entropy of student logits against a teacher's sharpened distribution, as in DINO and iBOT.

Replaces, for student rows s_r and the teacher rows that each is paired with::

    q = torch.exp(teacher / teacher_temp - column - row[:, None])     # softmax or Sinkhorn-Knopp
    logp = F.log_softmax(student / student_temp, -1)
    loss = sum(weight[r] * -(q[t] * logp[r]).sum() for r, t in pairs)

Never materialised: the teacher's distribution, the log-probabilities, gathered rows. A teacher's
distribution is known by one number per row and one per column: a centred softmax has
column = center / teacher_temp and row = log-sum-exp of what is left; Sinkhorn-Knopp's balancing
factors are of the same form. The teachers of one row are added before they meet it, since
Σ_t CE(q_t, s) = Σ_n (Σ_t q_t) (LSE(s) - s), and the gradient, (n · softmax(s) - Σ_t q_t) /
student_temp, is written in the same pass, over the logits themselves if the caller allows it.

Several views of an image meet the same teachers (DINO): their distributions are computed once, in
a program that has some columns of all views of one image; a pass before it has read all rows for
their numbers. Bytes per value: the student's read twice, the second time in part from the L2 cache,
and the gradient written; the teachers' read twice. Rows that each meet their own (iBOT) are a
program's, which reads the student's and the teacher's once from memory and again from the caches. A
row of weight 0 is not read by it.

On a CPU dino.c does the same for float32 and bfloat16: rows that meet the same teachers follow one
another there, so that a sum of teachers is made once for all of them.

On an H200 10 views of 64 images at 65,536 prototypes in bfloat16 take 31 and 10 µs for the rows'
numbers and 60 for the columns, where the bytes, each once, need 43 (bench/results/h200/notes.txt).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_dino
from fastequi.kernels.autograd import FusedLoss, needs_operator
from fastequi.kernels.backend import (
    say_type,
    tl,
    transformed,
    triton,
    use_native,
    use_triton,
)
from fastequi.kernels.constants import kept
from fastequi.kernels.precision import float16_scale, without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.rows import dense_rows
from fastequi.kernels.sinkhorn import VEC, load_float32, row_blocks, row_log2, row_lse_parts
from fastequi.kernels.target import DINOTarget


@triton.jit
def dino_kernel(
    # pointers
    student_ptr,
    teacher_ptr,
    pairs_ptr,
    weight_ptr,
    row_ptr,
    column_ptr,
    lse_ptr,
    loss_ptr,
    grad_ptr,
    # shapes
    N,
    # strides
    stride_s,
    stride_t,
    stride_g,
    # scalars
    student_scale,
    teacher_scale,
    # constants
    PAIRS: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    HAS_LSE: tl.constexpr,
    GRAD: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    # loss[r] = weight[r] Σ_n Q (LSE(x) - x), x = student / temp, Q = Σ_t q_t, where Q is not 0;
    # without row numbers there is one teacher per row at most, and its softmax is found beside the
    # student's; with the student's LSE given these are some of its columns.
    # Powers of two, as in sinkhorn.py.
    LOG2E: tl.constexpr = 1.4426950408889634
    r = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + r)
    LANES: tl.constexpr = BLOCK // VEC
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    student = student_ptr + r * stride_s
    to_x = student_scale * LOG2E
    to_y = teacher_scale * LOG2E
    count = 0.0
    for p in tl.static_range(PAIRS):
        count += tl.where(tl.load(pairs_ptr + r * PAIRS + p) >= 0, 1.0, 0.0)
    if weight * count == 0.0:
        tl.store(loss_ptr + r, 0.0)
        if GRAD:
            zeros = tl.zeros([LANES, VEC], tl.float32).to(grad_ptr.dtype.element_ty)
            for start in range(0, N, BLOCK):
                tl.store(grad_ptr + r * stride_g + start + offs, zeros, mask=start + offs < N)
    else:
        lse_t = 0.0
        if HAS_LSE:
            lse = tl.load(lse_ptr + r) * LOG2E
        else:
            lse = row_log2(student, None, N, to_x, False, FULL, BLOCK, VEC)
            if not HAS_ROW:
                own = teacher_ptr + tl.maximum(tl.load(pairs_ptr + r), 0).to(tl.int64) * stride_t
                lse_t = row_log2(own, column_ptr, N, to_y, HAS_COLUMN, FULL, BLOCK, VEC)
        dot = tl.zeros([LANES], tl.float32)
        factor = student_scale * weight
        for start in range(0, N, BLOCK):
            live = start + offs < N
            x = load_float32(student + start, offs, live, FULL)
            q = tl.zeros([LANES, VEC], tl.float32)
            column = q
            if HAS_COLUMN:
                column = load_float32(column_ptr + start, offs, live, FULL) * LOG2E
            for p in tl.static_range(PAIRS):
                t = tl.load(pairs_ptr + r * PAIRS + p).to(tl.int64)
                if t >= 0:
                    shift = tl.load(row_ptr + t) * LOG2E if HAS_ROW else lse_t
                    y = load_float32(teacher_ptr + t * stride_t + start, offs, live, FULL)
                    y = tl.exp2(y * to_y - (column + shift))
                    q += y if FULL else tl.where(live, y, 0.0)
            # bounded, so that a class that is masked out adds 0 times a number: one instruction
            x = tl.maximum(x * to_x - lse, -1e30, propagate_nan=tl.PropagateNan.ALL)
            dot += tl.sum(q * x, 1)
            if GRAD:
                slope = (count * tl.exp2(x) - q) * factor
                slope = slope.to(grad_ptr.dtype.element_ty)
                if FULL:
                    tl.store(grad_ptr + r * stride_g + start + offs, slope)
                else:
                    tl.store(grad_ptr + r * stride_g + start + offs, slope, mask=live)
        total = tl.sum(dot, 0)
        total = tl.where(total < -1e20, float("-inf"), total)  # a logit of -inf that was wanted
        tl.store(loss_ptr + r, -weight * total / LOG2E)


@triton.jit
def _whole(parts_ptr, row, PARTS: tl.constexpr):
    """log2 Σ 2^… of a row whose parts' logarithms are natural."""
    LOG2E: tl.constexpr = 1.4426950408889634
    high = tl.load(parts_ptr + row * PARTS) * LOG2E
    if PARTS > 1:
        for i in tl.static_range(1, PARTS):
            high = tl.maximum(high, tl.load(parts_ptr + row * PARTS + i) * LOG2E)
        high = tl.where(high == float("-inf"), 0.0, high)
        total = 0.0
        for i in tl.static_range(PARTS):
            total += tl.exp2(tl.load(parts_ptr + row * PARTS + i) * LOG2E - high)
        high += tl.log2(total)
    return high


@triton.jit
def dino_views_kernel(
    # pointers
    student_ptr,
    teacher_ptr,
    pairs_ptr,
    weight_ptr,
    row_ptr,
    column_ptr,
    lse_ptr,
    loss_ptr,
    grad_ptr,
    # shapes
    VIEWS,
    B,
    N,
    # strides
    stride_s,
    stride_t,
    stride_g,
    # scalars
    student_scale,
    teacher_scale,
    # constants
    PAIRS: tl.constexpr,
    ROW_PARTS: tl.constexpr,
    LSE_PARTS: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    GRAD: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    # The same for some columns of one image, whose views meet the same teachers: their
    # distributions are computed once. loss[program] = Σ_s weight[s] Σ_n Q (LSE(x_s) - x_s)
    LOG2E: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    # the last columns first: those that the pass before this one, for LSE, has read last
    first = (tl.num_programs(0) // B - 1 - pid // B) * BLOCK
    b = pid % B
    LANES: tl.constexpr = BLOCK // VEC
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    live = first + offs < N
    column = tl.zeros([LANES, VEC], tl.float32)
    if HAS_COLUMN:
        column = load_float32(column_ptr + first, offs, live, FULL) * LOG2E
    q = ()
    for t in tl.static_range(PAIRS):
        row = t * B + b
        y = load_float32(teacher_ptr + row.to(tl.int64) * stride_t + first, offs, live, FULL)
        y = tl.exp2(y * (teacher_scale * LOG2E) - (column + _whole(row_ptr, row, ROW_PARTS)))
        q = q + (y if FULL else tl.where(live, y, 0.0),)  # type: ignore[assignment]  # noqa: RUF005
    total = tl.zeros([LANES], tl.float32)
    for s in range(VIEWS):
        r = s * B + b
        weight = tl.load(weight_ptr + r)
        count = 0.0
        wanted = tl.zeros([LANES, VEC], tl.float32)
        for t in tl.static_range(PAIRS):
            met = tl.where(tl.load(pairs_ptr + r * PAIRS + t) >= 0, 1.0, 0.0)
            count += met
            wanted += q[t] * met
        at = r.to(tl.int64) * stride_g + first
        if weight * count == 0.0:
            if GRAD:
                zeros = tl.zeros([LANES, VEC], tl.float32).to(grad_ptr.dtype.element_ty)
                tl.store(grad_ptr + at + offs, zeros, mask=live)
        else:
            x = load_float32(student_ptr + r.to(tl.int64) * stride_s + first, offs, live, FULL)
            x = x * (student_scale * LOG2E) - _whole(lse_ptr, r, LSE_PARTS)
            x = tl.maximum(x, -1e30, propagate_nan=tl.PropagateNan.ALL)
            dot = tl.sum(wanted * x, 1)
            dot = tl.where(dot < -1e20, float("-inf"), dot)
            total += weight * dot
            if GRAD:
                slope = (count * tl.exp2(x) - wanted) * (student_scale * weight)
                slope = slope.to(grad_ptr.dtype.element_ty)
                if FULL:
                    tl.store(grad_ptr + at + offs, slope)
                else:
                    tl.store(grad_ptr + at + offs, slope, mask=live)
    tl.store(loss_ptr + pid, -tl.sum(total, 0) / LOG2E)


def counted_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows [R, C] with zeros for those of weight 0, whose NaN would reach sums over all rows."""
    return rows.masked_fill((weight == 0)[:, None], 0.0)


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
    loss = torch.empty(len(student), dtype=weight.dtype, device=student.device)
    if student.numel() == 0:
        return loss.new_zeros(()), out
    if use_native(student):
        if native_dino.reads(student, teacher, weight):
            native_dino.dino(student, teacher, target, loss, out if grad else None)
            return loss.sum(), out
        say_type("the loss of DINO and iBOT", student.dtype, teacher.dtype)
    if not use_triton(student) or torch.float64 in (student.dtype, teacher.dtype):
        _in_chunks(student, teacher, target, loss, out)
        return loss.sum(), out
    return launch(student, teacher, target, None, out if grad else None).sum(), out


def launch(
    student: Tensor, teacher: Tensor, target: DINOTarget, lse: Tensor | None, out: Tensor | None
) -> Tensor:
    """Numbers that add up to the loss; fills the gradient `out` [R, N], if there is one.

    `lse` [R]: of the student's whole rows over the temperature, where these are some columns.
    """
    student, teacher = dense_rows(student), dense_rows(teacher)
    with torch.cuda.device_of(student):
        if target.pairs.shape[1] > 1:
            return _launch_views(student, teacher, target, lse, out)
        return _launch_rows(student, teacher, target, lse, out)


def _launch_rows(
    student: Tensor, teacher: Tensor, target: DINOTarget, lse: Tensor | None, out: Tensor | None
) -> Tensor:
    """A program a row, which it reads twice."""
    pairs, weight, row, column, student_temp, teacher_temp = target
    rows, columns = student.shape
    loss = torch.empty(rows, dtype=torch.float32, device=student.device)
    dino_kernel[(rows,)](
        student, teacher, pairs, weight, row, column, lse, loss, out, columns,
        student.stride(0), teacher.stride(0), 0 if out is None else out.stride(0),
        1 / student_temp, 1 / teacher_temp, PAIRS=pairs.shape[1], HAS_ROW=row is not None,
        HAS_COLUMN=column is not None, HAS_LSE=lse is not None, GRAD=out is not None,
        **row_blocks(columns, student.dtype),
    )  # fmt: skip
    return loss


def views_blocks(width: int, dtype: torch.dtype, teachers: int) -> dict[str, Any]:
    """How columns are cut: what was fastest on an H200 for two teachers, and with more of them, of
    which a thread keeps every distribution, fewer values a thread."""
    few = teachers <= 2 and dtype != torch.float32
    block = max(min(2048, triton.next_power_of_2(width)), 2 * VEC)
    warps = max(min(4 if few else 8, block // VEC // 32), 1)
    return {"FULL": width % block == 0, "BLOCK": block, "VEC": VEC, "num_warps": warps,
            "maxnreg": 72 if few else 128}  # fmt: skip


def _launch_views(
    student: Tensor, teacher: Tensor, target: DINOTarget, lse: Tensor | None, out: Tensor | None
) -> Tensor:
    """The rows' numbers first, then a program for some columns of all views of an image."""
    pairs, weight, row, column, student_temp, teacher_temp = target
    rows, columns = student.shape
    batch = len(teacher) // pairs.shape[1]
    if row is None:
        row = row_lse_parts(teacher, teacher_temp, column)
    if lse is None:
        lse = row_lse_parts(student, student_temp, None)
    blocks = views_blocks(columns, student.dtype, pairs.shape[1])
    programs = batch * triton.cdiv(columns, blocks["BLOCK"])
    loss = torch.empty(programs, dtype=torch.float32, device=student.device)
    dino_views_kernel[(programs,)](
        student, teacher, pairs, weight, row, column, lse, loss, out, rows // batch, batch,
        columns, student.stride(0), teacher.stride(0), 0 if out is None else out.stride(0),
        1 / student_temp, 1 / teacher_temp, PAIRS=pairs.shape[1],
        ROW_PARTS=row[:1].numel(), LSE_PARTS=lse[:1].numel(), HAS_COLUMN=column is not None,
        GRAD=out is not None, **blocks,
    )  # fmt: skip
    return loss


_CHUNK = 1 << 17  # values of the student at a time: half a megabyte stays in a core's cache


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
        x = rows.to(wide) / teacher_temp
        return F.softmax(x if column is None else x.sub_(column), -1)

    shared = distribution(teacher) if pairs.shape[1] > 1 else None
    for start in range(0, len(student) if every else len(places), at_once):
        end = start + at_once
        part = slice(start, end) if every else places[start:end]
        each, count = weight[part, None], counts[part, None]
        if shared is None:
            met = pairs[part]
            wanted = distribution(teacher[met[:, 0].clamp(min=0)])
        else:
            wanted = sum_of_teachers(shared, pairs[part])
        x = student[part].to(wide) / student_temp
        loss[part] = each[:, 0] * -crossed(wanted, F.log_softmax(x, -1))
        if out.numel():
            slope = F.softmax(x, -1).mul_(count).sub_(wanted).mul_(each / student_temp)
            out[part] = slope.to(out.dtype)


def sum_of_teachers(q: Tensor, pairs: Tensor) -> Tensor:
    """[R, N] Σ_p q[pairs[r, p]] of the teacher's distributions [Q, N], leaving out pairs of -1."""
    there, first = pairs >= 0, pairs.clamp(min=0)
    total = q[first[:, 0]].masked_fill_(~there[:, :1], 0.0)
    for t in range(1, pairs.shape[1]):
        total += q[first[:, t]].masked_fill_(~there[:, t : t + 1], 0.0)
    return total


def crossed(q: Tensor, logp: Tensor) -> Tensor:
    """[R] Σ_n q logp; where q is 0 a class adds nothing, whatever logp (a logit may be -inf)."""
    return torch.linalg.vecdot(q, logp.masked_fill(q == 0, 0.0))


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
    logit = teacher.to(wide) / teacher_temp
    logit = logit if column is None else logit - column
    q = F.softmax(logit, -1) if row is None else torch.exp(logit - row[:, None])
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


def prepared(student: Tensor, teacher: Tensor, target: DINOTarget) -> Again | None:
    """What :func:`dino_loss` does for dense logits like these [..., N], in C; or None.

    It takes student, teacher, the centre, which over the temperature is the target's column, and
    dense weights in float32, or None for the target's own.
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
    ):
        return None
    wants = torch.is_grad_enabled() and student.requires_grad
    run, temp = native_dino.prepared(*rows, target, wants), target.teacher_temp

    def outputs(
        student: Tensor, teacher: Tensor, center: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        moved = None if center is None else center.detach().to(torch.float32) / temp
        return run(student, teacher, moved, weight)

    return dino_op.again(outputs) if wants else lambda *given: outputs(*given)[0]
