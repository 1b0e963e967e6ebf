"""GTSA's patch correspondence: every patch's best match in another view, by cosine.

Replaces, for unit rows of a student's views [S, B, M, C] and a teacher's [T, B, N, C] of B images,
and P pairs of them (Kim et al., 2023, equations of the patch correspondence loss)::

    s, t = student[of_student], teacher[of_teacher]                        # [P, B, ·, C]
    similarity = s @ t.mT                                                  # P·B·M·N values
    forth = similarity.amax(3).topk(n, 2).values.mean()                    # each s to its best t
    back = similarity.amax(2).topk(n, 2).values.mean()                     # each t to its best s
    loss = -(forth + back) / 2

Never materialised: the similarities, the views of each pair. One pass over tiles keeps every row's
and column's maximum and where it lies; which of them count is found among those alone. The gradient
by s is a matrix product with the few t that were matched, whose matrix of weights is made tile by
tile from the places, so nothing is added to the same memory twice: no atomics, the same bits in
every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastequi.kernels import native_correspondence
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
from fastequi.kernels.constants import constants
from fastequi.kernels.precision import without_autocast

_RANKED = 64  # maxima that a program compares with the others of their pair
CHUNK = 1 << 20  # similarities at a time where there is no kernel: 4 MB of float32


@triton.jit
def best_matches_kernel(
    # pointers
    s_ptr,
    t_ptr,
    pairs_ptr,
    high_ptr,
    at_ptr,
    # shapes
    P,
    B,
    M,
    N,
    C,
    # strides
    stride_sv,
    stride_sb,
    stride_sm,
    stride_tv,
    stride_tb,
    stride_tn,
    # constants
    FLIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # high[p, b, m] = max_n s_m · t_n, at[p, b, m] = argmax, the first of equals; FLIP: the first
    # of a pair is t's
    pair = tl.program_id(1) % P  # the pairs of an image follow each other: it stays in the cache
    b = (tl.program_id(1) // P).to(tl.int64)
    p = pair * B + b
    s_ptr += tl.load(pairs_ptr + 2 * pair + FLIP) * stride_sv + b * stride_sb
    t_ptr += tl.load(pairs_ptr + 2 * pair + 1 - FLIP) * stride_tv + b * stride_tb
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, N, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            s = tl.load(
                s_ptr + rows[:, None] * stride_sm + c[None, :],
                mask=(rows < M)[:, None] & (c < C)[None, :], other=0.0,
            )  # fmt: skip
            t = tl.load(
                t_ptr + cols[:, None] * stride_tn + c[None, :],
                mask=(cols < N)[:, None] & (c < C)[None, :], other=0.0,
            )  # fmt: skip
            if WIDEN:  # the interpreter's products know no bfloat16
                s = s.to(tl.float32)
                t = t.to(tl.float32)
            acc = tl.dot(s, tl.trans(t), acc, input_precision=PRECISION)
        acc = tl.where((cols < N)[None, :], acc, float("-inf"))
        high = tl.max(acc, 1)
        at = tl.argmax(acc, 1, tie_break_left=True).to(tl.int32) + start
        where = tl.where(high > best, at, where)
        best = tl.maximum(best, high)
    tl.store(high_ptr + p * M + rows, best, mask=rows < M)
    tl.store(at_ptr + p * M + rows, where, mask=rows < M)


@triton.jit
def counted_kernel(
    # pointers
    high_ptr,
    weight_ptr,
    parts_ptr,
    # shapes
    M,
    # scalars
    top,
    weight,
    # constants
    BLOCK: tl.constexpr,
):
    # weight[r, m] = weight where high[r, m] is among its row's `top` largest, the first of equals,
    # else 0; the parts add up to Σ weight[r, m] high[r, m]
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    high = tl.load(high_ptr + row * M + offs, mask=offs < M, other=float("-inf"))
    ahead = tl.zeros([BLOCK], tl.int32)
    for start in range(0, M, BLOCK):
        at = start + tl.arange(0, BLOCK)
        other = tl.load(high_ptr + row * M + at, mask=at < M, other=float("-inf"))[None, :]
        first = (other == high[:, None]) & (at[None, :] < offs[:, None])
        ahead += tl.sum(((other > high[:, None]) | first).to(tl.int32), 1)
    counts = (offs < M) & (ahead < top)
    tl.store(weight_ptr + row * M + offs, tl.where(counts, weight, 0.0), mask=offs < M)
    part = tl.sum(tl.where(counts, high * weight, 0.0), 0)
    tl.store(parts_ptr + row * tl.num_programs(1) + tl.program_id(1), part)


@triton.jit
def matched_kernel(
    # pointers
    t_ptr,
    forth_ptr,
    forth_weight_ptr,
    back_ptr,
    back_weight_ptr,
    pairs_ptr,
    grad_ptr,
    # shapes
    P,
    B,
    M,
    N,
    C,
    # strides
    stride_tv,
    stride_tb,
    stride_tn,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # grad[m] = Σ_p [p's student is this view]
    #           Σ_n (forth_weight[m] [forth[m] = n] + back_weight[n] [back[n] = m]) t_n
    view = tl.program_id(1) // B
    b = (tl.program_id(1) % B).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for pair in range(P):
        if tl.load(pairs_ptr + 2 * pair) == view:
            p = pair * B + b
            rows_ptr = t_ptr + tl.load(pairs_ptr + 2 * pair + 1) * stride_tv + b * stride_tb
            forth = tl.load(forth_ptr + p * M + rows, mask=rows < M, other=-1)
            forth_weight = tl.load(forth_weight_ptr + p * M + rows, mask=rows < M, other=0.0)
            for start in range(0, N, BLOCK_N):
                cols = start + tl.arange(0, BLOCK_N)
                back = tl.load(back_ptr + p * N + cols, mask=cols < N, other=-1)
                back_weight = tl.load(back_weight_ptr + p * N + cols, mask=cols < N, other=0.0)
                weight = tl.where(forth[:, None] == cols[None, :], forth_weight[:, None], 0.0)
                weight += tl.where(back[None, :] == rows[:, None], back_weight[None, :], 0.0)
                t = tl.load(
                    rows_ptr + cols[:, None] * stride_tn + c[None, :],
                    mask=(cols < N)[:, None] & (c < C)[None, :], other=0.0,
                )  # fmt: skip
                if WIDEN:
                    t = t.to(tl.float32)
                acc = tl.dot(weight.to(t.dtype), t, acc, input_precision=PRECISION)
    at = (view.to(tl.int64) * B + b) * M + rows[:, None]
    mask = (rows < M)[:, None] & (c < C)[None, :]
    tl.store(grad_ptr + at * C + c[None, :], acc.to(grad_ptr.dtype.element_ty), mask=mask)


def launch_config(s: Tensor) -> dict[str, object]:
    full = s.dtype == torch.float32
    return {
        "BLOCK_M": 32,
        "BLOCK_N": 64,
        "BLOCK_C": 32 if full else 64,
        "PRECISION": "tf32x3" if full else "tf32",
        "WIDEN": INTERPRETED and s.dtype == torch.bfloat16,
        "num_warps": 4,
        "num_stages": 1 if full else 3,  # float32 products are bound by arithmetic, and would spill
    }


def _fused(s: Tensor) -> bool:
    return use_triton(s) and s.dtype != torch.float64 and s.numel() > 0


def _in_c(student: Tensor, teacher: Tensor) -> bool:
    """Whether the C kernels take such features [S, B, M, C] and [T, B, N, C]; says if not."""
    if not use_native(student) or student.numel() == 0:
        return False
    if not native_correspondence.reads(student, teacher):
        say_type("correspondence_loss", student.dtype, teacher.dtype)
        return False
    return True


def _dense(x: Tensor) -> Tensor:
    x = x.resolve_neg()
    return x if x.stride(3) == 1 else x.contiguous()


def _matches(student: Tensor, teacher: Tensor, pairs: Sequence[int]) -> tuple[Tensor, ...]:
    """Of every pair, both ways: maxima [P, B, M], their places int32; [P, B, N], their places."""
    batch, m, channels = student.shape[1:]
    count, n = len(pairs) // 2, teacher.shape[2]
    wide = torch.promote_types(student.dtype, torch.float32)

    def empty(size: int) -> tuple[Tensor, Tensor]:
        high = torch.empty(count, batch, size, dtype=wide, device=student.device)
        return high, torch.empty(high.shape, dtype=torch.int32, device=student.device)

    forth, back = empty(m), empty(n)
    if _fused(student):
        config, places = (
            launch_config(student),
            constants(tuple(pairs), student.device, torch.int32),
        )
        with torch.cuda.device_of(student):
            for flip, s, t, (high, at) in (
                (0, student, teacher, forth),
                (1, teacher, student, back),
            ):
                rows = high.shape[2]
                best_matches_kernel[(triton.cdiv(rows, config["BLOCK_M"]), count * batch)](
                    s, t, places, high, at, count, batch, rows, t.shape[2], channels,
                    s.stride(0), s.stride(1), s.stride(2), t.stride(0), t.stride(1), t.stride(2),
                    FLIP=flip, **config,
                )  # fmt: skip
        return *forth, *back
    for p, part in _parts(count, batch, m, n):
        of_s, of_t = pairs[2 * p], pairs[2 * p + 1]
        similarity = student[of_s, part].to(wide) @ teacher[of_t, part].to(wide).mT
        for axis, (high, at) in ((2, forth), (1, back)):
            found, place = similarity.max(axis)
            high[p, part], at[p, part] = found, place.int()
    return *forth, *back


def _parts(count: int, batch: int, m: int, n: int) -> Iterator[tuple[int, slice]]:
    """(pair, images) whose similarities are made at a time where there is no kernel."""
    at_once = max(CHUNK // max(m * n, 1), 1)
    for p in range(count):
        for start in range(0, batch, at_once):
            yield p, slice(start, start + at_once)


def _counted(forth: Tensor, back: Tensor, top: int, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """`weight` where a maximum is among its pair's `top` largest, else 0: [P, B, M], [P, B, N].

    And the loss, the sum of the maxima times these.
    """
    if not _fused(forth):
        of_forth, of_back = (
            torch.zeros_like(high).scatter_(2, high.topk(top, 2).indices, weight)
            for high in (forth, back)
        )
        return of_forth, of_back, (forth * of_forth).sum() + (back * of_back).sum()
    of_forth, of_back = torch.empty_like(forth), torch.empty_like(back)
    pairs = forth.shape[0] * forth.shape[1]
    blocks = [triton.cdiv(high.shape[2], _RANKED) for high in (forth, back)]
    parts = forth.new_empty(pairs * sum(blocks))
    of_parts = parts.split([pairs * count for count in blocks])
    with torch.cuda.device_of(parts):
        for high, out, part, count in zip(
            (forth, back), (of_forth, of_back), of_parts, blocks, strict=True
        ):
            counted_kernel[(pairs, count)](
                high, out, part, high.shape[2], top, weight, BLOCK=_RANKED
            )
    return of_forth, of_back, parts.sum()


def _compute(
    student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int, grad: bool
) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient by student or empty)."""
    student, teacher = _dense(student), _dense(teacher)
    if _in_c(student, teacher):
        run = native_correspondence.prepared(student, teacher, pairs, top, grad, None, CHUNK)
        loss, found = run(student, teacher)
        return loss, student.new_empty(0) if found is None else found
    views, batch, m, channels = student.shape
    count, n = len(pairs) // 2, teacher.shape[2]
    forth, forth_at, back, back_at = _matches(student, teacher, pairs)
    weight = -0.5 / _matches_in_all(student, pairs, top)
    of_forth, of_back, loss = _counted(forth, back, top, weight)
    if not grad:
        return loss, student.new_empty(0)
    if _fused(student):
        out = torch.empty_like(student, memory_format=torch.contiguous_format)
        config = launch_config(student)
        rows, columns = triton.cdiv(m, config["BLOCK_M"]), triton.cdiv(channels, config["BLOCK_C"])
        with torch.cuda.device_of(student):
            matched_kernel[(rows, views * batch, columns)](
                teacher, forth_at, of_forth, back_at, of_back,
                constants(tuple(pairs), student.device, torch.int32), out, count,
                batch, m, n, channels,
                teacher.stride(0), teacher.stride(1), teacher.stride(2), **config,
            )  # fmt: skip
        return loss, out
    total = torch.zeros(student.shape, dtype=forth.dtype, device=student.device)
    for p, part in _parts(count, batch, m, n):
        forth_to, back_to = forth_at[p, part, :, None].long(), back_at[p, part, :, None].long()
        match = torch.zeros(len(forth_to), m, n, dtype=forth.dtype, device=student.device)
        match.scatter_(2, forth_to, of_forth[p, part, :, None])
        match.mT.scatter_add_(2, back_to, of_back[p, part, :, None])
        total[pairs[2 * p], part] += match @ teacher[pairs[2 * p + 1], part].to(match.dtype)
    return loss, total.to(student.dtype)


def _fake(student, teacher, pairs, top, grad) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(student.dtype, torch.float32)
    dense = torch.empty_like(student, memory_format=torch.contiguous_format)
    return student.new_empty((), dtype=wide), dense if grad else student.new_empty(0)


correspondence_op = FusedLoss("correspondence_loss", _compute, _fake, {0: 1}, piecewise_linear=True)


@without_autocast
def correspondence_loss_ref(
    student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int
) -> Tensor:
    """The chain in plain PyTorch, every similarity stored, differentiable in the student."""
    wide = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = student[list(pairs[::2])], teacher.detach()[list(pairs[1::2])]
    similarity = ours.to(wide) @ theirs.to(wide).mT
    forth = similarity.amax(3).topk(top, 2).values
    back = similarity.amax(2).topk(top, 2).values
    return -(forth.sum() + back.sum()) / (2 * _matches_in_all(student, pairs, top))


def correspondence_loss(student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int) -> Tensor:
    """Of unit rows [S, B, M, C] and [T, B, N, C]; arguments already checked. A student gradient."""
    teacher, pairs = teacher.detach(), list(pairs)
    if transformed():
        return correspondence_loss_ref(student, teacher, pairs, top)
    grad = torch.is_grad_enabled() and student.requires_grad
    loss, _ = correspondence_op(student, teacher, pairs, top, grad)
    return loss


def _matches_in_all(student: Tensor, pairs: Sequence[int], top: int) -> int:
    """Of one direction; 1 for an empty batch, whose loss is 0."""
    return max(len(pairs) // 2 * student.shape[1], 1) * top
