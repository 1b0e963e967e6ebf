"""Log-sum-exps along rows and columns in C: sinkhorn.c through ctypes.

What they are is said in sinkhorn.py.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.rows import dense_rows

_PER_ROW = 192  # bytes of scratch memory for each row and thread, where there are many rows
_FREE = 1 << 20


class LseStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "other", "out", "wide")),
        *((name, c_int64) for name in ("stride", "rows", "columns")),
        ("scale", c_float),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


class SinkhornStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "row", "column")),
        *((name, c_int64) for name in ("stride", "rows", "columns")),
        ("scale", c_float),
        *((name, c_int32) for name in ("iterations", "dtype", "threads")),
    )


def reads(x: Tensor) -> bool:
    """Whether the C kernels take such logits."""
    return x.dtype in (torch.float32, torch.bfloat16)


def takes(x: Tensor) -> bool:
    """Whether :func:`sinkhorn` does: an iteration in one pass takes little memory beside the
    logits, an eighth at most. By one thread: as many work as fit into that, so that the way does
    not depend on them."""
    return reads(x) and x.numel() > 0 and _fitting(x) > 0


def _fitting(x: Tensor) -> int:
    """Threads whose scratch memory is an eighth of the logits, or little."""
    return (x.numel() * x.element_size() // 8 + _FREE) // (len(x) * _PER_ROW)


def row_lse(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    """temp log Σ_n exp((x[r, n] - column[n]) / temp), [R] float32."""
    return _run("row_lse", x, temp, column, len(x))


def wide_row_lse(x: Tensor, temp: float, column: Tensor | None) -> Tensor:
    """The same in float64, [R]: as exact as the logits themselves."""
    return _run("row_lse", x, temp, column, len(x), torch.float64)


def column_lse(x: Tensor, temp: float, row: Tensor) -> Tensor:
    """temp log Σ_r exp((x[r, n] - row[r]) / temp), [N] float32; rows of infinite number add
    nothing."""
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
    other = None if other is None else native.floats(other)
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


def sinkhorn(
    x: Tensor, temp: float, iterations: int, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(row [R], column [N]) of logits [R, N]; rows of weight 0 are left out of the columns.

    Their numbers are infinite. An iteration takes one power of two per logit.
    """
    x = dense_rows(x)
    weight = None if weight is None else native.floats(weight)
    row, column = (x.new_empty(size, dtype=torch.float32) for size in x.shape)
    op = _struct(x, temp, iterations)
    for name, tensor in (("weight", weight), ("row", row), ("column", column)):
        setattr(op, name, native.pointer(tensor))
    native.call("sinkhorn", op)
    return row, column


def prepared(x: Tensor, temp: float, iterations: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """(x, weight) to the column of :func:`sinkhorn`, of dense logits like these.

    Weights are dense and float32, or None for rows that all count.
    """
    run = native.Filled("sinkhorn", _struct(x, temp, iterations), "x", "weight", "column")
    size = x.shape[1]

    def call(x: Tensor, weight: Tensor | None) -> Tensor:
        column = torch.empty(size, dtype=torch.float32, device="cpu")
        run(x, weight, column)
        return column

    return call


def _struct(x: Tensor, temp: float, iterations: int) -> SinkhornStruct:
    scale, threads = 1 / temp, max(min(native.threads(x.numel()), _fitting(x)), 1)
    sizes = x.stride(0), *x.shape, scale, iterations, native.DTYPES[x.dtype], threads
    return SinkhornStruct(native.pointer(x), None, None, None, *sizes)
