"""Rows of unit length, in one pass each way.

Replaces, for rows of any floating type, whose gradient is wanted in that type::

    unit = F.normalize(x.float(), dim=-1, eps=eps).to(dtype)

Never materialised: float32 copies of half-precision rows, and the products that autograd makes on
the way back, a dozen of them. With u = x / max(|x|, eps)::

    d loss/d x = (by_unit - (by_unit · u) u) / |x|          # by_unit / eps where eps divides

Bytes per value in bfloat16: 2 read and 2 written; backward 4 read and 2 written.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import Operator, batched
from fastequi.kernels.backend import INTERPRETED, tl, triton, use_triton

EPS = 1e-12  # as F.normalize has it
_WIDEST = 8192  # channels, which a program holds at once


@triton.jit
def _length_of(x, eps):
    """max(|row|, eps) of rows [R, C], as F.normalize divides, and whether eps is the larger."""
    norm = tl.sqrt_rn(tl.sum(x * x, 1))
    return tl.where(norm < eps, eps, norm), norm < eps  # NaN stays


@triton.jit
def _rows(
    x_ptr, R, M, C, stride_xb, stride_xm, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """This program's rows as float32, their places where they are dense, and which are there."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)[None, :]
    mask = (rows < R)[:, None] & (c < C)
    at = (rows // M) * stride_xb + (rows % M) * stride_xm
    x = tl.load(x_ptr + at[:, None] + c, mask=mask, other=0.0).to(tl.float32)
    return x, rows[:, None] * C + c, mask


@triton.jit
def unit_rows_kernel(
    # pointers
    x_ptr,
    out_ptr,
    # shapes
    R,
    M,
    C,
    # strides
    stride_xb,
    stride_xm,
    # scalars
    eps,
    # constants
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # out[r] = x[r // M, r % M] / max(|x[r // M, r % M]|, eps)
    x, dense, mask = _rows(x_ptr, R, M, C, stride_xb, stride_xm, BLOCK_R, BLOCK_C)
    length, _ = _length_of(x, eps)
    unit = x * tl.div_rn(1.0, length)[:, None]
    tl.store(out_ptr + dense, unit, mask=mask)


@triton.jit
def unit_rows_grad_kernel(
    # pointers
    x_ptr,
    by_unit_ptr,
    factor_ptr,
    out_ptr,
    # shapes
    R,
    M,
    C,
    # strides
    stride_xb,
    stride_xm,
    # scalars
    eps,
    scale,
    # constants
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # out[r] = scale factor (by_unit[r] - (by_unit[r] · u) u) / |x[r]|
    x, dense, mask = _rows(x_ptr, R, M, C, stride_xb, stride_xm, BLOCK_R, BLOCK_C)
    by_unit = tl.load(by_unit_ptr + dense, mask=mask, other=0.0).to(tl.float32)
    length, short = _length_of(x, eps)
    inverse = tl.div_rn(1.0, length)
    unit = x * inverse[:, None]
    along = tl.where(short, 0.0, tl.sum(by_unit * unit, 1))  # eps has no direction
    if factor_ptr is not None:
        scale *= tl.load(factor_ptr).to(tl.float32)
    grad = (by_unit - along[:, None] * unit) * (inverse * scale)[:, None]
    tl.store(out_ptr + dense, grad.to(out_ptr.dtype.element_ty), mask=mask)


def launch_config(channels: int) -> dict[str, int]:
    block = max(triton.next_power_of_2(channels), 16)
    rows = max(4096 // block, 1)
    return {"BLOCK_R": rows, "BLOCK_C": block, "num_warps": 8 if block > 4096 else 4}


def fused(x: Tensor) -> bool:
    """Whether kernels take such rows, each held by one program."""
    return use_triton(x) and x.dtype != torch.float64 and x.numel() > 0 and x.shape[-1] <= _WIDEST


def _strided(x: Tensor) -> Tensor:
    """[..., C] as [B, M, C] with its channels side by side, copied where that is no view."""
    x = x.resolve_neg()
    x = x[None] if x.ndim == 2 else x.flatten(0, -3)
    return x if x.stride(2) == 1 else x.contiguous()


def _unit(x: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
    if not fused(x):
        return unit_rows_ref(x, dtype, eps)
    written = (
        torch.float32 if INTERPRETED else dtype
    )  # the interpreter cuts off, and does not round
    out, rows = torch.empty(x.shape, dtype=written, device=x.device), _strided(x)
    config = launch_config(x.shape[-1])
    count = rows.shape[0] * rows.shape[1]
    with torch.cuda.device_of(x):
        unit_rows_kernel[(triton.cdiv(count, config["BLOCK_R"]),)](
            rows, out, count, *rows.shape[1:], *rows.stride()[:2], eps, **config
        )
    return out.to(dtype)


def _grad(x: Tensor, by_unit: Tensor, factor: Tensor | None, scale: float, eps: float) -> Tensor:
    if not fused(x):
        by_unit = by_unit * scale if factor is None else by_unit * (factor * scale)
        return unit_rows_grad_ref(x, by_unit, eps)
    out, rows = torch.empty(x.shape, dtype=x.dtype, device=x.device), _strided(x)
    config = launch_config(x.shape[-1])
    count = rows.shape[0] * rows.shape[1]
    with torch.cuda.device_of(x):
        unit_rows_grad_kernel[(triton.cdiv(count, config["BLOCK_R"]),)](
            rows, by_unit.contiguous(), factor, out, count, *rows.shape[1:], *rows.stride()[:2],
            eps, scale, **config,
        )  # fmt: skip
    return out


def _fake_unit(x, dtype, eps) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _fake_grad(x, by_unit, factor, scale, eps) -> Tensor:
    return x.new_empty(x.shape)


unit_rows_op = Operator("unit_rows", _unit, _fake_unit)
unit_rows_grad_op = Operator("unit_rows_grad", _grad, _fake_grad)


def unit_rows_ref(x: Tensor, dtype: torch.dtype, eps: float = EPS) -> Tensor:
    """The line above."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.normalize(x.to(wide), dim=-1, eps=eps).to(dtype)


def unit_rows_grad_ref(x: Tensor, by_unit: Tensor, eps: float = EPS) -> Tensor:
    """The gradient by x, of its type, in plain PyTorch, itself differentiable."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, by_unit = x.to(wide), by_unit.to(wide)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    length = norm.clamp_min(eps)
    unit = rows / length
    along = (by_unit * unit).sum(-1, keepdim=True).masked_fill(norm < eps, 0)
    return ((by_unit - along * unit) / length).to(x.dtype)


def unit_rows_grad(
    x: Tensor, by_unit: Tensor, factor: Tensor | None = None, scale: float = 1.0, eps: float = EPS
) -> Tensor:
    """The gradient by x, of its type, from that by its unit rows times `factor` and `scale`.

    Args:
        factor: a scalar, which may be a gradient that is differentiated again or a batch of them.
    """
    if torch.is_grad_enabled() or any(map(_is_batch, (by_unit, factor))):
        by_unit = by_unit * scale if factor is None else by_unit * (factor * scale)
        return unit_rows_grad_ref(x, by_unit, eps)
    found: Tensor = unit_rows_grad_op(x, by_unit, factor, scale, eps)
    return found


def _is_batch(grad: Tensor | None) -> bool:
    return grad is not None and not torch.compiler.is_compiling() and batched(grad)


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.eps = eps
        unit: Tensor = unit_rows_op(x, dtype, eps)
        return unit

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return unit_rows_grad(x, grads[0], eps=ctx.eps), None, None


def unit_rows(x: Tensor, dtype: torch.dtype, eps: float = EPS) -> Tensor:
    """x / max(|x|, eps) of every row of x [..., C], in `dtype`; autocast must be off."""
    if torch.compiler.is_compiling() or not fused(x):
        return unit_rows_ref(x, dtype, eps)
    unit: Tensor = _UnitRows.apply(x, dtype, eps)
    return unit
