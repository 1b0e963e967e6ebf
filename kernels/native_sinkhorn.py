"""Log-sum-exps along rows and columns in C: sinkhorn.c through ctypes."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.rows import dense_rows

_PER_ROW = 192  # bytes of scratch memory for each row and thread, where there are many rows
_FREE = 1 << 20


class LseStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "other", "out", "log2")),
        *((name, c_int64) for name in ("stride", "rows", "columns")),
        ("scale", c_float),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


class BalanceStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "row", "before", "weight", "column", "next")),
        *((name, c_int64) for name in ("stride", "rows", "columns")),
        ("scale", c_float),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


def reads(x: Tensor) -> bool:
    """Whether the C kernels take such logits."""
    return x.dtype in (torch.float32, torch.bfloat16)


def balances(x: Tensor) -> bool:
    """Whether an iteration in one pass takes little memory beside the logits: an eighth at most."""
    return torch.get_num_threads() * len(x) * _PER_ROW <= x.numel() * x.element_size() // 8 + _FREE


def row_lse(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    """log Σ_n exp(x[r, n] / temp - column[n]), [R] float32."""
    return _run("row_lse", x, temp, column, len(x))


def row_log2(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    """The same as powers of two, [R] float64: as exact as the scaled logits themselves."""
    return _run("row_lse", x, temp, column, len(x), torch.float64)


def column_lse(x: Tensor, temp: float, row: Tensor) -> Tensor:
    """log Σ_r exp(x[r, n] / temp - row[r]), [N] float32; rows of infinite number add nothing."""
    return _run("column_lse", x, temp, row, x.shape[1])


def _run(
    name: str,
    x: Tensor,
    temp: float,
    other: Tensor | None,
    size: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    x = dense_rows(x)
    other = None if other is None else other.float().resolve_neg().contiguous()
    out = x.new_empty(size, dtype=dtype)
    op = LseStruct(
        native.pointer(x),
        native.pointer(other),
        native.pointer(out) if dtype == torch.float32 else None,
        native.pointer(out) if dtype == torch.float64 else None,
        x.stride(0),
        *x.shape,
        1 / temp,
        native.DTYPES[x.dtype],
        native.threads(x.numel()),
    )
    native.call(name, op)
    return out


def balance(
    x: Tensor, temp: float, row: Tensor, before: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One iteration of Sinkhorn-Knopp after the first: the next (row [R], column [N]).

    Args:
        x: [R, N] logits.
        temp: their temperature.
        row, before: [R], [N] such that exp(x / temp - row[:, None] - before) sums to one in every
            row; then one power of two per logit is enough.
        weight: [R]; rows of weight 0 are left out of the columns.
    """
    x = dense_rows(x)
    row, before = (v.float().resolve_neg().contiguous() for v in (row, before))
    weight = None if weight is None else weight.float().resolve_neg().contiguous()
    column, after = row.new_empty(x.shape[1]), torch.empty_like(row)
    op = BalanceStruct(
        native.pointer(x),
        native.pointer(row),
        native.pointer(before),
        native.pointer(weight),
        native.pointer(column),
        native.pointer(after),
        x.stride(0),
        *x.shape,
        1 / temp,
        native.DTYPES[x.dtype],
        native.threads(x.numel()),
    )
    native.call("balance", op)
    return after, column
