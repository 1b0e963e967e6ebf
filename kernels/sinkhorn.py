"""Log-sum-exps of logits along rows and columns, and Sinkhorn-Knopp's balancing made of them.

Replaces, for logits x [R, N] (the listing of Caron et al., SwAV, NeurIPS 2020; DINOv2's teacher)::

    q = torch.exp(x / temp).T
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * len(q)           # every prototype alike
        q /= q.sum(0, keepdim=True) * q.shape[1]       # every row alike
    q = (q * q.shape[1]).T

Never materialised: q, which is known by one number per row and one per column. Each half of an
iteration reads the logits once; in sinkhorn.c, on a CPU, an iteration reads them once in all.

The numbers are in the logits' own unit, before the temperature: q = exp((x - column - row) / temp).
Where a prototype is masked by a number, -1e6 say, its column's is nearly the same; taken away from
each other these two cancel exactly, and their multiples by 1 / temp, each rounded, would not.
Powers are those of two, since an exponential is one instruction then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_sinkhorn
from fastequi.kernels.autograd import Operator
from fastequi.kernels.backend import say_type, tl, triton, use_native, use_triton
from fastequi.kernels.rows import dense_rows


@triton.jit
def _lse_step(high, acc, x, scale):
    """Running maximum and sum of 2^((x - maximum) scale), lane by lane."""
    above = tl.maximum(high, x)
    # a lane that has seen nothing yet has no finite maximum to subtract
    base = tl.where(above == float("-inf"), 0.0, above)
    return above, acc * tl.exp2((high - base) * scale) + tl.exp2((x - base) * scale)


@triton.jit
def _lse_step_of_rows(high, acc, x, scale):
    """The same for [LANES, VEC]: one maximum, and one rescaling, for a thread's VEC values."""
    above = tl.maximum(high, tl.max(x, 1))
    base = tl.where(above == float("-inf"), 0.0, above)
    powers = tl.exp2((x - base[:, None]) * scale)
    return above, acc * tl.exp2((high - base) * scale) + tl.sum(powers, 1)


@triton.jit
def _lse_end(high, acc, scale):
    """log2 Σ 2^(x scale) / scale over the lanes of axis 0."""
    top = tl.max(high, 0)
    part = tl.exp2((high - tl.expand_dims(top, 0)) * scale)
    part = tl.where(high == float("-inf"), 0.0, part)
    return top + tl.log2(tl.sum(acc * part, 0)) / scale


@triton.jit
def load_float32(ptr, places, live, FULL: tl.constexpr):
    """Values as float32; 0 beyond the end of a row that does not fill its blocks."""
    if FULL:
        x = tl.load(ptr + places)
    else:
        x = tl.load(ptr + places, mask=live, other=0.0)
    return x.to(tl.float32)


@triton.jit
def lse_of_row(
    x_ptr, column_ptr, N, scale,
    HAS_COLUMN: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """log2 Σ_n 2^((x[n] - column[n]) scale) / scale of one row."""
    LANES: tl.constexpr = BLOCK // VEC
    offs = tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    high = tl.full([LANES], float("-inf"), tl.float32)
    acc = tl.zeros([LANES], tl.float32)
    for start in range(0, N, BLOCK):
        live = start + offs < N
        x = load_float32(x_ptr + start, offs, live, FULL)
        if HAS_COLUMN:
            x -= load_float32(column_ptr + start, offs, live, FULL)
        if not FULL:
            x = tl.where(live, x, float("-inf"))
        high, acc = _lse_step_of_rows(high, acc, x, scale)
    return _lse_end(high, acc, scale)


@triton.jit
def row_lse_kernel(
    # pointers
    x_ptr,
    column_ptr,
    out_ptr,
    # shapes
    N,
    SPAN,
    # strides
    stride_r,
    # scalars
    inverse_temp,
    # constants
    HAS_COLUMN: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
    VEC: tl.constexpr,
):
    # out[r, i] = temp log Σ_n exp((x[r, n] - column[n]) / temp) over the i-th SPAN columns
    LOG2E: tl.constexpr = 1.4426950408889634
    r = tl.program_id(0)
    part = tl.program_id(1)
    first = part * SPAN
    x = x_ptr + r.to(tl.int64) * stride_r + first
    column = column_ptr
    if HAS_COLUMN:
        column += first
    size = tl.minimum(SPAN, N - first)
    lse = lse_of_row(x, column, size, inverse_temp * LOG2E, HAS_COLUMN, FULL, BLOCK, VEC)
    tl.store(out_ptr + r * tl.num_programs(1) + part, lse)


@triton.jit
def column_lse_kernel(
    # pointers
    x_ptr,
    row_ptr,
    out_ptr,
    # shapes
    R,
    N,
    # strides
    stride_r,
    # scalars
    inverse_temp,
    # constants
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # out[n] = temp log Σ_r exp((x[r, n] - row[r]) / temp)
    LOG2E: tl.constexpr = 1.4426950408889634
    scale = inverse_temp * LOG2E
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offs < N
    rows = tl.arange(0, ROWS)
    high = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, R, ROWS):
        at = start + rows
        mask = (at < R)[:, None] & live[None, :]
        places = at.to(tl.int64)[:, None] * stride_r + offs[None, :]
        x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32)
        row = tl.load(row_ptr + at, mask=at < R, other=float("inf"))
        x -= row[:, None]
        counts = (row < float("inf"))[:, None] & live[None, :]  # a row left out may hold NaN
        high, acc = _lse_step(high, acc, tl.where(counts, x, float("-inf")), scale)
    tl.store(out_ptr + offs, _lse_end(high, acc, scale), mask=live)


BLOCK, WARPS, VEC = 4096, 8, 8  # sixteen values a thread and pass: no spills
_PARTS, _PROGRAMS = 8, 1024  # parts of a row at most; programs that keep a GPU's memory busy


def row_blocks(width: int, dtype: torch.dtype) -> dict[str, Any]:
    """How a row of that many columns is walked through.

    No warp repeats another's values: in place, one that is late would read what the other wrote.
    """
    block = max(min(BLOCK, triton.next_power_of_2(width)), 2 * VEC)
    warps = max(min(WARPS, block // VEC // 32), 1)
    return {"FULL": width % block == 0, "BLOCK": block, "VEC": VEC, "num_warps": warps,
            "maxnreg": 96 if dtype == torch.float32 else None}  # fmt: skip


def log_sum_exp(x: Tensor, axis: int, temp: float) -> Tensor:
    """temp log Σ exp(x / temp), in which the largest x is not rounded.

    By a softmax: torch.logsumexp's exp takes ten times as long on what it underflows to.
    """
    if x.shape[axis] == 0:
        return x.logsumexp(axis)
    top, at = x.max(axis, keepdim=True)
    lse = top - temp * F.log_softmax(x / temp, axis).gather(axis, at)
    return torch.where(top == -torch.inf, top, lse).squeeze(axis)


def _in_c(x: Tensor) -> bool:
    if not use_native(x) or x.numel() == 0:
        return False
    if not native_sinkhorn.reads(x):
        say_type("Sinkhorn-Knopp", x.dtype)
        return False
    return True


def compute_row_lse(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    if _in_c(x):
        return native_sinkhorn.row_lse(x, temp, column)
    if not use_triton(x) or x.dtype == torch.float64 or x.numel() == 0:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return log_sum_exp(wide if column is None else wide - column, 1, temp)
    parts = row_lse_parts(x, temp, column)
    return parts[:, 0] if parts.shape[1] == 1 else log_sum_exp(parts, 1, temp)


def row_lse_parts(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    """[R, parts] float32, whose log-sum-exp is the rows'; few rows are cut so that all
    multiprocessors read. By Triton."""
    x = dense_rows(x)
    rows, width = x.shape
    blocks = row_blocks(width, x.dtype)
    most = triton.cdiv(width, blocks["BLOCK"])
    parts = 1
    while parts < _PARTS and rows * parts < _PROGRAMS and 2 * parts <= most:
        parts *= 2
    span = triton.cdiv(most, parts) * blocks["BLOCK"]
    parts = triton.cdiv(width, span)
    out = torch.empty(rows, parts, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        row_lse_kernel[(rows, parts)](
            x, column, out, width, span, x.stride(0), 1 / temp, HAS_COLUMN=column is not None,
            **blocks,
        )  # fmt: skip
    return out


def compute_column_lse(x: Tensor, temp: float, row: Tensor) -> Tensor:
    if _in_c(x):
        return native_sinkhorn.column_lse(x, temp, row)
    if not use_triton(x) or x.dtype == torch.float64 or x.numel() == 0:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        left_out = (row == torch.inf)[:, None]
        return log_sum_exp((wide - row[:, None]).masked_fill_(left_out, -torch.inf), 0, temp)
    x = dense_rows(x)
    out = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        column_lse_kernel[(triton.cdiv(x.shape[1], 128),)](
            x, row, out, *x.shape, x.stride(0), 1 / temp, ROWS=16, BLOCK=128, num_warps=4
        )
    return out


def compute_sinkhorn(
    x: Tensor, temp: float, iterations: int, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of all iterations: (row, column)."""
    if _in_c(x) and native_sinkhorn.takes(x):
        return native_sinkhorn.sinkhorn(x, temp, iterations, weight)
    if x.device.type == "cpu" and x.numel() and not use_triton(x):
        found = _by_products(x, temp, iterations, weight)
        if found is not None:
            return found
    columns, rows = partial(compute_column_lse, x, temp), partial(compute_row_lse, x, temp)
    return balanced(columns, rows, _zeros(x), iterations, weight=weight)


_LEAST = 1e-290  # of a sum in float64: what was lost to underflow is no part of it


def _by_products(
    x: Tensor, temp: float, iterations: int, weight: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """:func:`balanced` in PyTorch, each power made once: the sums are products of the powers with a
    vector. In float64, whose powers reach far enough down for most logits; None where a sum is too
    small all the same, or a logit is not finite."""
    counts = None if weight is None or bool((weight != 0).all()) else weight != 0
    rows = x if counts is None else x[counts]
    if not len(rows):
        return None
    wide = rows.double() / temp
    top = wide.amax(1)
    powers = wide.sub_(top[:, None]).exp_()
    number = torch.promote_types(x.dtype, torch.float32)
    row, column = torch.zeros_like(top), top.new_empty(0)  # over temp; and not
    for _ in range(iterations):
        column = (_log_products(powers.mT, top - row) * temp).to(number)
        row = top + _log_products(powers, column.double() / -temp)  # of the column that is rounded
    if not (row.isfinite().all() and column.isfinite().all()):
        return None
    if counts is not None:
        row = row.new_full((len(x),), torch.inf).masked_scatter_(counts, row)
    return (row * temp).to(number), column


def _log_products(powers: Tensor, logarithms: Tensor) -> Tensor:
    """log(powers @ exp(logarithms)); NaN where a sum is hardly there."""
    high = logarithms.max()
    sums = powers @ (logarithms - high).exp()
    return torch.where(sums > _LEAST, sums.log() + high, torch.nan)


def _zeros(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.zeros(x.shape[0], dtype=wide, device=x.device)


def _counted(row: Tensor, weight: Tensor | None) -> Tensor:
    return row if weight is None else row.masked_fill(weight == 0, torch.inf)


def _fake_row_lse(x, temp, column) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_column_lse(x, temp, row) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_sinkhorn(x, temp, iterations, weight) -> tuple[Tensor, Tensor]:
    return _fake_row_lse(x, temp, None), _fake_column_lse(x, temp, None)


_sinkhorn_op = Operator("sinkhorn", compute_sinkhorn, _fake_sinkhorn)
_row_lse_op = Operator("row_lse", compute_row_lse, _fake_row_lse)
_column_lse_op = Operator("column_lse", compute_column_lse, _fake_column_lse)


def row_lse(x: Tensor, temp: float, column: Tensor | None = None) -> Tensor:
    """temp log Σ_n exp((x[r, n] - column[n]) / temp), [R] for x [R, N]; float32, without a
    gradient."""
    return _row_lse_op(x.detach(), temp, column)


def column_lse(x: Tensor, temp: float, row: Tensor) -> Tensor:
    """temp log Σ_r exp((x[r, n] - row[r]) / temp), [N] for x [R, N]; float32, without a gradient.

    A row whose number is infinite adds nothing, whatever its values.
    """
    return _column_lse_op(x.detach(), temp, row)


def sinkhorn(
    x: Tensor,
    temp: float,
    iterations: int,
    across: Callable[[Tensor], Tensor] | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sinkhorn-Knopp's balancing of exp(x / temp), x [R, N]: (row [R], column [N]).

    See :func:`balanced`, which has the rest of the arguments.
    """
    x = x.detach()
    if across is None:  # of one process an iteration takes one pass over the logits
        return _sinkhorn_op(x, temp, iterations, weight)
    columns, rows = partial(column_lse, x, temp), partial(row_lse, x, temp)
    return balanced(columns, rows, _zeros(x), iterations, across, weight)


def balanced(
    columns: Callable[[Tensor], Tensor],
    rows: Callable[[Tensor], Tensor],
    row: Tensor,
    iterations: int,
    across: Callable[[Tensor], Tensor] | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sinkhorn-Knopp in logarithms: (row [R], column [N]).

    The assignment exp((x - column - row[:, None]) / temp) sums to one in every row, and over rows
    nearly to R / N in every column (Caron et al., SwAV, NeurIPS 2020, listing; DINOv2's teacher).

    Args:
        columns: row [R] to the columns' log-sum-exps [N], less it; see :func:`column_lse`.
        rows: column [N] to the rows' [R], less it; see :func:`row_lse`.
        row: zeros to begin with.
        iterations: of columns then rows, at least one; 3 in DINOv2.
        across: turns a column's log-sum-exp over this process's rows into that over all processes'.
        weight: [R]; rows of weight 0 are left out, and their numbers infinite.
    """
    for _ in range(iterations):
        column = columns(_counted(row, weight))
        if across is not None:
            column = across(column)
        row = rows(column)
    return _counted(row, weight), column
