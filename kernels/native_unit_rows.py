"""Embeddings made rows of unit length, and back: unit_rows.c through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.rows import dense_rows


class UnitRowsStruct(Structure):
    _fields_ = (
        ("z", c_void_p * 2),
        ("grad", c_void_p * 2),
        *((name, c_void_p) for name in ("unit", "inverse", "by_unit")),
        ("stride", c_int64 * 2),
        *((name, c_int64) for name in ("rows", "width")),
        *((name, c_float) for name in ("eps", "factor")),
        *((name, c_int32) for name in ("views", "dtype", "rounds", "threads")),
    )


class UnitRows(NamedTuple):
    """Rows z / max(|z|, eps) of one view or two, one behind the other.

    Attributes:
        z: [n, D] each.
        unit: [views · n, D] float32.
        inverse: [views · n] 1 / |z|; negative where eps divides.
        eps: as in `F.normalize`.
        rounds: whether `unit` was rounded to z's type.
    """

    z: Sequence[Tensor]
    unit: Tensor
    inverse: Tensor
    eps: float
    rounds: bool


def reads(*z: Tensor) -> bool:
    return z[0].dtype in (torch.float32, torch.bfloat16) and len({part.dtype for part in z}) == 1


def unit_rows(z: Sequence[Tensor], eps: float, rounds: bool) -> UnitRows:
    z = [dense_rows(part) for part in z]
    count, width = len(z) * len(z[0]), z[0].shape[1]
    unit = z[0].new_empty(count, width, dtype=torch.float32)
    rounds = rounds and z[0].dtype != torch.float32
    rows = UnitRows(z, unit, unit.new_empty(count), eps, rounds)
    _run("unit_rows", rows, None, (), 1.0)
    return rows


def unit_rows_grad(
    rows: UnitRows, by_unit: Tensor, factor: float, out: list[Tensor] | None = None
) -> list[Tensor]:
    """`factor` times the gradients by each z, of z's type, from those by its unit rows.

    Args:
        out: where they are written, dense [n, D] each; new tensors if None.
    """
    dense = torch.contiguous_format
    grads = [torch.empty_like(z, memory_format=dense) for z in rows.z] if out is None else out
    _run("unit_rows_grad", rows, by_unit, grads, factor)
    return grads


def _run(
    name: str, rows: UnitRows, by_unit: Tensor | None, grads: Sequence[Tensor], factor: float
) -> None:
    z = rows.z
    op = UnitRowsStruct(
        (c_void_p * 2)(*(native.pointer(part) for part in z)),
        (c_void_p * 2)(*(native.pointer(part) for part in grads)),
        native.pointer(rows.unit),
        native.pointer(rows.inverse),
        native.pointer(by_unit),
        (c_int64 * 2)(*(part.stride(0) for part in z)),
        *z[0].shape,
        rows.eps,
        factor,
        len(z),
        native.DTYPES[z[0].dtype],
        rows.rounds,
        native.threads(rows.unit.numel()),
    )
    native.call(name, op)
