"""Gram anchoring: the student's similarities of patches stay those of a teacher (DINOv3).

Replaces, for patch features of B images, a student's [B, N, C] and a teacher's [B, N, E]::

    x, y = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    s, t = x @ x.mT, y @ y.mT                               # B·N·N values each
    loss = F.mse_loss(s, t)

Never stored: unit rows and similarities. A tile of both products is made in registers, divided by
the rows' lengths there, and leaves only what the gradient needs, a panel of differences d = s - t
that stays in the L2 cache: memory O(B·N·C) however many patches there are. d is symmetric, so where
a panel holds whole images one product serves two places. With d' = d but for entries that a clamp
holds at zero::

    d loss/d x_i = 4/count Σ_j d'_ij x_j
    d loss/d student_i = 4/count/|student_i| (Σ_j d'_ij x_j - (Σ_j d'_ij s_ij) x_i)

The second sum, the part along the row, is known when the tile is made, so channels of the gradient
may be computed apart. Three products of 2·N²·C, of which autograd makes four.

The identity ‖xxᵀ - yyᵀ‖² = ‖xᵀx‖² - 2‖xᵀy‖² + ‖yᵀy‖², products of C·C, is not used for many
patches: it is a small difference of large numbers where the student is near its anchor. At a
relative distance of 1e-3 of s from t it leaves two digits of float32's seven.

On a CPU, for wide rows of float32 and where there is no Triton: `gram_panels.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_gram, native_unit_rows
from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import (
    INTERPRETED,
    say_type,
    tl,
    transformed,
    triton,
    use_native,
    use_triton,
)
from fastequi.kernels.gram_panels import by_panels, clamped, empty_gradient
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again

PANEL = 1 << 23  # differences at a time: 16 MB of an L2 cache of 40 or more
_WIDEST_FLOAT32 = 64  # channels; beyond them a library's float32 products are faster
_ALIGN = 16  # a panel's rows begin at multiples of it, for loads of 32 bytes
_SCALE = 4096.0  # of differences up to 2 in float16: small ones stay normal numbers


@triton.jit
def inverse_of(norm_ptr, rows, live, eps):
    """1 / max(|row|, eps), as F.normalize divides; NaN stays."""
    norm = tl.load(norm_ptr + rows, mask=live, other=1.0)
    return 1 / tl.where(norm < eps, eps, norm)


@triton.jit
def cosine_tile(
    x_ptr, norm_ptr, top, left, N, C, stride, eps,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Cosines [BLOCK_M, BLOCK_N] of an image's rows from `top` and from `left` on; 0 beyond N."""
    offs_m, offs_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    ours, theirs = top + offs_m < N, left + offs_n < N
    own_ptr = x_ptr + top.to(tl.int64) * stride
    other_ptr = x_ptr + left.to(tl.int64) * stride
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        a = tl.load(
            own_ptr + offs_m[:, None] * stride + c[None, :],
            mask=ours[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            other_ptr + offs_n[:, None] * stride + c[None, :],
            mask=theirs[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:  # the interpreter's products know no bfloat16
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    acc = acc * inverse_of(norm_ptr, top + offs_m, ours, eps)[:, None]
    return acc * inverse_of(norm_ptr, left + offs_n, theirs, eps)[None, :]


@triton.jit
def gram_panel_kernel(
    # pointers
    x_ptr,
    y_ptr,
    x_norm_ptr,
    y_norm_ptr,
    panel_ptr,
    along_ptr,
    parts_ptr,
    # shapes
    R,
    N,
    C,
    E,
    # strides
    stride_xb,
    stride_xn,
    stride_yb,
    stride_yn,
    stride_p,
    # scalars
    start,
    eps,
    # constants
    CLAMP: tl.constexpr,
    GRAD: tl.constexpr,
    MIRROR: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # d = s - t of rows start .. start + R of an image and all its N; parts[tile] = Σ d²,
    # panel[i, j] = d'_ij / |x_j| (or d'_ij SCALE) and 0 from j = N on to the end of the row,
    # along[tile of j, i] = Σ_j d'_ij s_ij; MIRROR: tiles below the diagonal are made above
    across = tl.cdiv(N, BLOCK_N)
    down = tl.cdiv(R, BLOCK_M)
    column = tl.program_id(0) % across
    row = tl.program_id(0) // across % down
    image = (tl.program_id(0) // (across * down)).to(tl.int64)
    top, left = row * BLOCK_M, column * BLOCK_N
    made_above = left < top if MIRROR else False
    if made_above:
        return
    x_ptr += image * stride_xb
    y_ptr += image * stride_yb
    x_norm_ptr += image * N
    y_norm_ptr += image * N
    s = cosine_tile(
        x_ptr, x_norm_ptr, start + top, left, N, C, stride_xn, eps,
        BLOCK_M, BLOCK_N, BLOCK_C, PRECISION, WIDEN,
    )  # fmt: skip
    t = cosine_tile(
        y_ptr, y_norm_ptr, start + top, left, N, E, stride_yn, eps,
        BLOCK_M, BLOCK_N, BLOCK_C, PRECISION, WIDEN,
    )  # fmt: skip
    if CLAMP == "both":
        d = tl.where(s < 0, 0.0, s) - tl.where(t < 0, 0.0, t)
    elif CLAMP == "teacher":
        d = tl.where(t < 0, tl.where(s < 0, 0.0, s), s - t)
    else:
        d = s - t
    i, j = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    square = tl.sum(tl.where((i < R)[:, None], d * d, 0.0))
    mirrored = left >= top + BLOCK_M if MIRROR else False
    tl.store(parts_ptr + tl.program_id(0), tl.where(mirrored, 2 * square, square))
    if GRAD:
        if CLAMP == "both":
            d = tl.where(s < 0, 0.0, d)
        along_ptr += image * across * R
        panel_ptr += image * R * stride_p
        tl.store(along_ptr + column * R + i, tl.sum(d * s, 1), mask=i < R)
        w = d * SCALE
        if SCALE == 1:
            w = d * inverse_of(x_norm_ptr, j, j < N, eps)[None, :]
        at = i[:, None] * stride_p + j[None, :]
        live = (i < R)[:, None] & (j < stride_p)[None, :]
        tl.store(panel_ptr + at, w.to(panel_ptr.dtype.element_ty), mask=live)
        if mirrored:
            tl.store(along_ptr + top // BLOCK_N * R + j, tl.sum(d * s, 0), mask=j < R)
            w = d * SCALE
            if SCALE == 1:
                w = d * inverse_of(x_norm_ptr, i, i < N, eps)[:, None]
            at = j[None, :] * stride_p + i[:, None]
            live = (j < R)[None, :] & (i < stride_p)[:, None]
            tl.store(panel_ptr + at, w.to(panel_ptr.dtype.element_ty), mask=live)


@triton.jit
def gram_grad_kernel(
    # pointers
    x_ptr,
    x_norm_ptr,
    panel_ptr,
    along_ptr,
    grad_ptr,
    # shapes
    R,
    N,
    C,
    # strides
    stride_xb,
    stride_xn,
    stride_p,
    # scalars
    start,
    eps,
    factor,
    # constants
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # grad[i] = factor / |x_i| (Σ_j panel_ij x_j - along_i x_i / |x_i|), along_i = Σ_tile along
    down = tl.cdiv(R, BLOCK_M)
    i = tl.program_id(0) % down * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (tl.program_id(0) // down).to(tl.int64)
    x_ptr += image * stride_xb
    x_norm_ptr += image * N
    panel_ptr += image * R * stride_p
    along_ptr += image * tl.cdiv(N, BLOCK_N) * R
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    along = tl.zeros([BLOCK_M], tl.float32)
    for left in range(0, N, BLOCK_N):
        j = left + tl.arange(0, BLOCK_N)
        w = tl.load(
            panel_ptr + i[:, None] * stride_p + j[None, :],
            mask=(i < R)[:, None] & (j < stride_p)[None, :], other=0.0,
        )  # fmt: skip
        x = tl.load(
            x_ptr + j.to(tl.int64)[:, None] * stride_xn + c[None, :],
            mask=(j < N)[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        if SCALE != 1:
            x = (x * inverse_of(x_norm_ptr, j, j < N, eps)[:, None]).to(x.dtype)
        if WIDEN:
            w = w.to(tl.float32)
            x = x.to(tl.float32)
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
        along += tl.load(along_ptr + left // BLOCK_N * R + i, mask=i < R, other=0.0)
    at = (start + i).to(tl.int64)
    mask = (i < R)[:, None] & (c < C)[None, :]
    own = tl.load(x_ptr + at[:, None] * stride_xn + c[None, :], mask=mask, other=0.0)
    norm = tl.load(x_norm_ptr + at, mask=i < R, other=1.0)
    length = tl.where(norm < eps, eps, norm)
    along = tl.where(norm < eps, 0.0, along / length)  # eps has no direction
    grad = (acc / SCALE - along[:, None] * own.to(tl.float32)) * (factor / length)[:, None]
    grad_ptr += (image * N + at)[:, None] * C + c[None, :]
    tl.store(grad_ptr, grad.to(grad_ptr.dtype.element_ty), mask=mask)


def launch_config(student: Tensor, grad: bool = False) -> dict[str, Any]:
    """Of the panel's kernel, or of the gradient's."""
    full = student.dtype == torch.float32
    tall = student.shape[1] >= 512 and not full
    wide = grad and student.dtype == torch.bfloat16  # float16's rows take registers to scale
    return {
        "SCALE": _SCALE if student.dtype == torch.float16 else 1.0,
        "BLOCK_M": 128 if tall else 64,
        "BLOCK_N": 64,
        "BLOCK_C": 32 if full else 128 if wide else 64,
        "PRECISION": "tf32x3" if full else "tf32",
        "WIDEN": INTERPRETED and student.dtype == torch.bfloat16,
        "num_warps": 8 if tall else 4,
        "num_stages": 1 if full else 3,
    }


def panels(images: int, rows: int, block: int) -> Iterator[tuple[slice, slice]]:
    """(images, their rows) whose differences make up a panel: some images' or a part of one's."""
    if rows * rows <= PANEL:
        at_once = PANEL // (rows * rows)
        for first in range(0, images, at_once):
            yield slice(first, min(first + at_once, images)), slice(0, rows)
        return
    step = max(PANEL // rows // block, 1) * block
    for image in range(images):
        for start in range(0, rows, step):
            yield slice(image, image + 1), slice(start, min(start + step, rows))


def _fused(
    student: Tensor, teacher: Tensor, clamp: str, eps: float, factor: float, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """(Σ d² of every image [B], d Σ d²/d student times `factor` / 4 or None)."""
    images, rows, channels = student.shape
    config, grad_config = launch_config(student), launch_config(student, True)
    block, narrow = config["BLOCK_M"], config["BLOCK_N"]
    norms = [torch.linalg.vector_norm(x, dim=2, dtype=torch.float32) for x in (student, teacher)]
    sums = student.new_zeros(images, dtype=torch.float32)
    out = empty_gradient(student) if grad else None
    across, width = triton.cdiv(rows, narrow), triton.cdiv(rows, _ALIGN) * _ALIGN
    for part, own in panels(images, rows, block):
        count, height = part.stop - part.start, own.stop - own.start
        down = triton.cdiv(height, block)
        squares = sums.new_zeros(count, down * across)  # zeros for what is not made below
        panel = student.new_empty((count, height, width) if grad else 0)
        along = sums.new_zeros((count, across, height) if grad else 0)
        x, y = student[part], teacher[part]
        x_norm, y_norm = norms[0][part], norms[1][part]
        with torch.cuda.device_of(student):
            gram_panel_kernel[(squares.numel(),)](
                x, y, x_norm, y_norm, panel, along, squares, height, rows, channels,
                teacher.shape[2], x.stride(0), x.stride(1), y.stride(0), y.stride(1), width,
                own.start, eps, CLAMP=clamp, GRAD=grad, MIRROR=height == rows, **config,
            )  # fmt: skip
            if out is not None:
                grid = count * down, triton.cdiv(channels, grad_config["BLOCK_C"])
                gram_grad_kernel[grid](
                    x, x_norm, panel, along, out[part], height, rows, channels, x.stride(0),
                    x.stride(1), width, own.start, eps, factor, **grad_config,
                )  # fmt: skip
        sums[part] += squares.sum(1)
    return sums, out


def _dense(x: Tensor) -> Tensor:
    x = x.resolve_neg()
    return x if x.stride(2) == 1 else x.contiguous()


def _runs_fused(student: Tensor, teacher: Tensor) -> bool:
    if student.dtype == torch.float64 or not student.numel():
        return False
    narrow = max(student.shape[2], teacher.shape[2]) <= _WIDEST_FLOAT32
    return use_triton(student) and (narrow or student.dtype != torch.float32)


def _compute(
    student: Tensor, teacher: Tensor, clamp: str, reduction: str, eps: float, grad: bool
) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient by student or empty)."""
    count = _count(student, reduction)
    if use_native(student) and native_gram.reads(student, teacher):
        student, teacher = _dense(student), _dense(teacher)
        options = clamp, eps, count, reduction == "none", student.shape if grad else None
        loss, by_student = native_gram.prepared(student, teacher, *options)(student, teacher)
        return loss, student.new_empty(0) if by_student is None else by_student
    run = by_panels
    if _runs_fused(student, teacher):
        run, student, teacher = _fused, _dense(student), _dense(teacher)
    sums, by_student = run(student, teacher, clamp, eps, 4 / count, grad)
    loss = (sums if reduction == "none" else sums.sum()) / count
    return loss, student.new_empty(0) if by_student is None else by_student


def _count(student: Tensor, reduction: str) -> int:
    """What Σ d² is divided by; 1 for an empty batch, whose loss is 0."""
    images, rows, _ = student.shape
    return {"sum": 1, "none": rows**2, "mean": max(images, 1) * rows**2}[reduction] or 1


def _fake(student, teacher, clamp, reduction, eps, grad) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(student.dtype, torch.float32)
    loss = student.new_empty(student.shape[:1] if reduction == "none" else (), dtype=wide)
    return loss, empty_gradient(student) if grad else student.new_empty(0)


gram_op = FusedLoss("gram_loss", _compute, _fake, {0: 1})


def prepared(
    student: Tensor, teacher: Tensor, across_images: bool, clamp: str, reduction: str, eps: float
) -> Again | None:
    """What :func:`gram_loss` does for the value of features like these, in C; or None."""
    ours, theirs = student.detach(), teacher.detach()
    if across_images:
        ours, theirs = (x.reshape(1, -1, x.shape[2]) for x in (ours, theirs))
    same = ours.data_ptr() == student.data_ptr() and theirs.data_ptr() == teacher.data_ptr()
    dense = ours.stride(2) == theirs.stride(2) == 1 and not (ours.is_neg() or theirs.is_neg())
    if not (same and dense and use_native(ours) and native_gram.reads(ours, theirs)):
        return None
    grad = torch.is_grad_enabled() and student.requires_grad
    options = clamp, eps, _count(ours, reduction), reduction == "none"
    run = native_gram.prepared(ours, theirs, *options, student.shape if grad else None)
    return gram_op.again(run) if grad else lambda student, teacher: run(student, teacher)[0]


@without_autocast
def gram_loss_ref(
    student: Tensor, teacher: Tensor, clamp: str, reduction: str, eps: float
) -> Tensor:
    """The lines above in plain PyTorch, every similarity stored, differentiable in the student."""
    wide = torch.promote_types(student.dtype, torch.float32)
    x, y = (F.normalize(z.to(wide), dim=-1, eps=eps) for z in (student, teacher.detach()))
    s, t = clamped(x @ x.mT, y @ y.mT, clamp)
    sums = (s - t).square().sum((1, 2))
    return (sums if reduction == "none" else sums.sum()) / _count(student, reduction)


def gram_loss(student: Tensor, teacher: Tensor, clamp: str, reduction: str, eps: float) -> Tensor:
    """Of features [B, N, C] and [B, N, E] of one type; arguments already checked."""
    teacher = teacher.detach()
    if transformed():
        return gram_loss_ref(student, teacher, clamp, reduction, eps)
    if use_native(student) and not native_unit_rows.reads(student, teacher):
        say_type("gram_loss", student.dtype)
    grad = torch.is_grad_enabled() and student.requires_grad
    return gram_op(student, teacher, clamp, reduction, eps, grad)[0]
