"""The Triton kernels of dino.py: rows with a teacher each, or views that share some.

Several views of an image meet the same teachers (DINO): their distributions are computed once, in
a program that has some columns of all views of one image; a pass before it has read all rows for
their numbers. Bytes per value: the student's read twice, the second time in part from the L2 cache,
and the gradient written; the teachers' read twice. Rows that each meet their own (iBOT) are a
program's, which reads the student's and the teacher's once from memory and again from the caches.
There a row of weight 0 is not read, nor its teacher's.

On an H200 10 views of 64 images at 65,536 prototypes in bfloat16 take 31 and 10 µs for the rows'
numbers and 62 for the columns, where the bytes, each once, need 43 (bench/results/h200/notes.txt).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.rows import dense_rows
from fastequi.kernels.sinkhorn import VEC, load_float32, lse_of_row, row_blocks, row_lse_parts
from fastequi.kernels.target import DINOTarget


@triton.jit
def _store(ptr, places, values, live, FULL: tl.constexpr):
    values = values.to(ptr.dtype.element_ty)
    if FULL:
        tl.store(ptr + places, values)
    else:
        tl.store(ptr + places, values, mask=live)


@triton.jit
def _log_share(x, scale, lse):
    """(x - lse) scale, bounded: a class that is masked out adds 0 times a number, in one
    instruction."""
    return tl.maximum((x - lse) * scale, -1e30, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _wanted(dot):
    """A sum of shares times those, infinite where a logit of -inf was wanted by more than 1e-10."""
    return tl.where(dot < -1e20, float("-inf"), dot)


@triton.jit
def dino_kernel(
    # pointers
    student_ptr,
    teacher_ptr,
    own_ptr,
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
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    HAS_LSE: tl.constexpr,
    GRAD: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    # loss[r] = weight[r] Σ_n q (LSE(x) - x), x = student / temp, of the teacher's row own[r], if
    # any; without row numbers its softmax is found beside the student's; with the student's LSE
    # given these are some of its columns. Numbers and powers as in sinkhorn.py.
    LOG2E: tl.constexpr = 1.4426950408889634
    r = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + r)
    own = tl.load(own_ptr + r).to(tl.int64)
    LANES: tl.constexpr = BLOCK // VEC
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    student = student_ptr + r * stride_s
    grad = grad_ptr
    if GRAD:
        grad += r * stride_g
    to_x = student_scale * LOG2E
    to_y = teacher_scale * LOG2E
    if (weight == 0.0) | (own < 0):
        tl.store(loss_ptr + r, 0.0)
        if GRAD:
            for start in range(0, N, BLOCK):
                zeros = tl.zeros([LANES, VEC], tl.float32)
                _store(grad + start, offs, zeros, start + offs < N, FULL)
    else:
        teacher = teacher_ptr + own * stride_t
        if HAS_LSE:
            lse = tl.load(lse_ptr + r)
        else:
            lse = lse_of_row(student, None, N, to_x, False, FULL, BLOCK, VEC)
        if HAS_ROW:
            lse_t = tl.load(row_ptr + own)
        else:
            lse_t = lse_of_row(teacher, column_ptr, N, to_y, HAS_COLUMN, FULL, BLOCK, VEC)
        dot = tl.zeros([LANES], tl.float32)
        for start in range(0, N, BLOCK):
            live = start + offs < N
            x = load_float32(student + start, offs, live, FULL)
            y = load_float32(teacher + start, offs, live, FULL)
            if HAS_COLUMN:
                y -= load_float32(column_ptr + start, offs, live, FULL)
            q = tl.exp2((y - lse_t) * to_y)
            if not FULL:
                q = tl.where(live, q, 0.0)
            x = _log_share(x, to_x, lse)
            dot += tl.sum(q * x, 1)
            if GRAD:
                slope = (tl.exp2(x) - q) * (student_scale * weight)
                _store(grad + start, offs, slope, live, FULL)
        tl.store(loss_ptr + r, -weight * _wanted(tl.sum(dot, 0)) / LOG2E)


@triton.jit
def _whole(parts_ptr, row, scale, PARTS: tl.constexpr):
    """The log-sum-exp of a row from those of its parts."""
    high = tl.load(parts_ptr + row * PARTS)
    if PARTS > 1:
        for i in tl.static_range(1, PARTS):
            high = tl.maximum(high, tl.load(parts_ptr + row * PARTS + i))
        high = tl.where(high == float("-inf"), 0.0, high)
        total = 0.0
        for i in tl.static_range(PARTS):
            total += tl.exp2((tl.load(parts_ptr + row * PARTS + i) - high) * scale)
        high += tl.log2(total) / scale
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
    # loss[program] = Σ_s weight[s] Σ_n Q (LSE(x_s) - x_s), Q = Σ_t q_t, of some columns of one
    # image, whose views s meet the same teachers t, each but its own. Row numbers in parts.
    LOG2E: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0)
    # the last columns first: those that the pass before this one, for LSE, has read last
    first = (tl.num_programs(0) // B - 1 - pid // B) * BLOCK
    b = pid % B
    LANES: tl.constexpr = BLOCK // VEC
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    live = first + offs < N
    to_x = student_scale * LOG2E
    to_y = teacher_scale * LOG2E
    column = tl.zeros([LANES, VEC], tl.float32)
    if HAS_COLUMN:
        column = load_float32(column_ptr + first, offs, live, FULL)
    q = ()
    for t in tl.static_range(PAIRS):
        row = t * B + b
        y = load_float32(teacher_ptr + row.to(tl.int64) * stride_t + first, offs, live, FULL)
        y = tl.exp2((y - column - _whole(row_ptr, row, to_y, ROW_PARTS)) * to_y)
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
                _store(grad_ptr + at, offs, tl.zeros([LANES, VEC], tl.float32), live, FULL)
        else:
            x = load_float32(student_ptr + r.to(tl.int64) * stride_s + first, offs, live, FULL)
            x = _log_share(x, to_x, _whole(lse_ptr, r, to_x, LSE_PARTS))
            total += weight * _wanted(tl.sum(wanted * x, 1))
            if GRAD:
                slope = (count * tl.exp2(x) - wanted) * (student_scale * weight)
                _store(grad_ptr + at, offs, slope, live, FULL)
    tl.store(loss_ptr + pid, -tl.sum(total, 0) / LOG2E)


def launch(
    student: Tensor, teacher: Tensor, target: DINOTarget, lse: Tensor | None, out: Tensor | None
) -> Tensor:
    """Numbers that add up to the loss; fills the gradient `out` [R, N], if there is one.

    `lse` [R]: of the student's whole rows, where these are some columns.
    """
    student, teacher = dense_rows(student), dense_rows(teacher)
    with torch.cuda.device_of(student):
        if target.pairs.shape[1] > 1:
            return _launch_views(student, teacher, target, lse, out)
        return _launch_rows(student, teacher, target, lse, out)


def _launch_rows(
    student: Tensor, teacher: Tensor, target: DINOTarget, lse: Tensor | None, out: Tensor | None
) -> Tensor:
    """A program a row, which it reads twice, and the teacher's that is its own."""
    own, weight, row, column, student_temp, teacher_temp = target
    rows, columns = student.shape
    loss = torch.empty(rows, dtype=torch.float32, device=student.device)
    dino_kernel[(rows,)](
        student, teacher, own, weight, row, column, lse, loss, out, columns,
        student.stride(0), teacher.stride(0), 0 if out is None else out.stride(0),
        1 / student_temp, 1 / teacher_temp, HAS_ROW=row is not None,
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
