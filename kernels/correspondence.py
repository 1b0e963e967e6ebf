"""GTSA's patch correspondence: every patch's best match in another view, by cosine.

Replaces, for unit rows s [P, M, C] and t [P, N, C] of P pairs of views (Kim et al., 2023, equations
of the patch correspondence loss)::

    similarity = s @ t.mT                                                  # P·M·N values
    forth = similarity.amax(2).topk(n, 1).values.mean()                    # each s to its best t
    back = similarity.amax(1).topk(n, 1).values.mean()                     # each t to its best s
    loss = -(forth + back) / 2

Never materialised: the similarities. One pass over tiles of them keeps every row's and column's
maximum and where it lies; which of them count is found among those alone. The gradient by s is a
matrix product with the few t that were matched, whose matrix of weights is made tile by tile from
the places, so nothing is added to the same memory twice: no atomics, the same bits in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.kernels.backend import INTERPRETED, tl, triton, use_triton
from fastequi.kernels.direct import direct
from fastequi.kernels.pixel_loss import scaled

_CHUNK = 1 << 20  # similarities at a time where there is no kernel: 4 MB of float32


@triton.jit
def _best_matches_kernel(
    # pointers
    s_ptr,
    t_ptr,
    high_ptr,
    at_ptr,
    # shapes
    M,
    N,
    C,
    # strides
    stride_sp,
    stride_sm,
    stride_tp,
    stride_tn,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # high[p, m] = max_n s_m · t_n, at[p, m] = argmax, the first of equals
    p = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK_M], tl.int32)
    for start in range(0, N, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            s = tl.load(
                s_ptr + p * stride_sp + rows[:, None] * stride_sm + c[None, :],
                mask=(rows < M)[:, None] & (c < C)[None, :], other=0.0,
            )  # fmt: skip
            t = tl.load(
                t_ptr + p * stride_tp + cols[:, None] * stride_tn + c[None, :],
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
def _matched_kernel(
    # pointers
    t_ptr,
    forth_ptr,
    forth_weight_ptr,
    back_ptr,
    back_weight_ptr,
    grad_ptr,
    # shapes
    M,
    N,
    C,
    # strides
    stride_tp,
    stride_tn,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # grad[m] = Σ_n (forth_weight[m] [forth[m] = n] + back_weight[n] [back[n] = m]) t_n
    p = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    forth = tl.load(forth_ptr + p * M + rows, mask=rows < M, other=-1)
    forth_weight = tl.load(forth_weight_ptr + p * M + rows, mask=rows < M, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, N, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        back = tl.load(back_ptr + p * N + cols, mask=cols < N, other=-1)
        back_weight = tl.load(back_weight_ptr + p * N + cols, mask=cols < N, other=0.0)
        weight = tl.where(forth[:, None] == cols[None, :], forth_weight[:, None], 0.0)
        weight += tl.where(back[None, :] == rows[:, None], back_weight[None, :], 0.0)
        t = tl.load(
            t_ptr + p * stride_tp + cols[:, None] * stride_tn + c[None, :],
            mask=(cols < N)[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:
            t = t.to(tl.float32)
        acc = tl.dot(weight.to(t.dtype), t, acc, input_precision=PRECISION)
    places = grad_ptr + (p * M + rows[:, None]) * C + c[None, :]
    mask = (rows < M)[:, None] & (c < C)[None, :]
    tl.store(places, acc.to(grad_ptr.dtype.element_ty), mask=mask)


def _launch_config(s: Tensor) -> dict[str, object]:
    full = s.dtype == torch.float32
    return {
        "BLOCK_M": 32,
        "BLOCK_N": 64,
        "BLOCK_C": 32 if full else 64,
        "PRECISION": "ieee" if full else "tf32",
        "WIDEN": INTERPRETED and s.dtype == torch.bfloat16,
        "num_warps": 4,
    }


def _fused(s: Tensor) -> bool:
    return use_triton(s) and s.dtype != torch.float64 and s.numel() > 0


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _best(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum [P, M] over t and its place, int32."""
    pairs, m, _ = s.shape
    wide = torch.promote_types(s.dtype, torch.float32)
    high = torch.empty(pairs, m, dtype=wide, device=s.device)
    at = torch.empty(pairs, m, dtype=torch.int32, device=s.device)
    if _fused(s):
        config = _launch_config(s)
        with torch.cuda.device_of(s):
            _best_matches_kernel[(triton.cdiv(m, config["BLOCK_M"]), pairs)](
                s, t, high, at, m, t.shape[1], s.shape[2], s.stride(0), s.stride(1), t.stride(0),
                t.stride(1), **config,
            )  # fmt: skip
        return high, at
    at_once = max(_CHUNK // max(m * t.shape[1], 1), 1)
    for start in range(0, pairs, at_once):
        part = slice(start, start + at_once)
        found, place = (s[part].to(wide) @ t[part].to(wide).mT).max(2)
        high[part], at[part] = found, place.int()
    return high, at


def _counted(high: Tensor, top: int, weight: float) -> Tensor:
    """`weight` where a maximum is among its pair's `top` largest, else 0: [P, M]."""
    best = high.topk(top, 1).indices
    return torch.zeros_like(high).scatter_(1, best, weight)


def _compute(student: Tensor, teacher: Tensor, top: int, grad: bool) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient by student or empty)."""
    student, teacher = _dense(student), _dense(teacher)
    pairs = max(len(student), 1)
    forth, forth_at = _best(student, teacher)
    back, back_at = _best(teacher, student)
    weight = -0.5 / (top * pairs)
    of_forth, of_back = _counted(forth, top, weight), _counted(back, top, weight)
    loss = (forth * of_forth).sum() + (back * of_back).sum()
    if not grad:
        return loss, student.new_empty(0)
    out = torch.empty_like(student, memory_format=torch.contiguous_format)
    m, n, channels = student.shape[1], teacher.shape[1], student.shape[2]
    if _fused(student):
        config = _launch_config(student)
        rows, columns = triton.cdiv(m, config["BLOCK_M"]), triton.cdiv(channels, config["BLOCK_C"])
        with torch.cuda.device_of(student):
            _matched_kernel[(rows, len(student), columns)](
                teacher, forth_at, of_forth, back_at, of_back, out, m, n, channels,
                teacher.stride(0), teacher.stride(1), **config,
            )  # fmt: skip
        return loss, out
    at_once = max(_CHUNK // max(m * n, 1), 1)
    for start in range(0, len(student), at_once):
        part = slice(start, start + at_once)
        match = torch.zeros(len(forth_at[part]), m, n, dtype=forth.dtype, device=student.device)
        match.scatter_(2, forth_at[part, :, None].long(), of_forth[part, :, None])
        match.mT.scatter_add_(2, back_at[part, :, None].long(), of_back[part, :, None])
        out[part] = (match @ teacher[part].to(match.dtype)).to(out.dtype)
    return loss, out


_correspondence_op = torch.library.custom_op(
    "fastequi::correspondence_loss", _compute, mutates_args=()
)


@_correspondence_op.register_fake
def _(student, teacher, top, grad) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(student.dtype, torch.float32)
    dense = torch.empty_like(student, memory_format=torch.contiguous_format)
    return student.new_empty((), dtype=wide), dense if grad else student.new_empty(0)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, g_loss, g_grad):
    (grad,) = ctx.saved_tensors
    return (None if g_loss is None else scaled(ctx, grad, g_loss), None, None, None)


_correspondence_op.register_autograd(_backward, setup_context=_setup_context)
_correspondence = direct(_correspondence_op, _compute, _setup_context, _backward)


def correspondence_loss_ref(student: Tensor, teacher: Tensor, top: int) -> Tensor:
    """The chain in plain PyTorch, every similarity stored, differentiable in the student."""
    wide = torch.promote_types(student.dtype, torch.float32)
    similarity = student.to(wide) @ teacher.detach().to(wide).mT
    forth = similarity.amax(2).topk(top, 1).values
    back = similarity.amax(1).topk(top, 1).values
    return -(forth.mean() + back.mean()) / 2


def correspondence_loss(student: Tensor, teacher: Tensor, top: int) -> Tensor:
    """Of unit rows [P, M, C] and [P, N, C]; arguments already checked. A gradient for student."""
    grad = torch.is_grad_enabled() and student.requires_grad
    loss, _ = _correspondence(student, teacher.detach(), top, grad)
    return loss
