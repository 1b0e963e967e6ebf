"""VICReg's passes over columns in C: vicreg.c through ctypes; the products are PyTorch's."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.rows import dense_rows


class VICRegStruct(Structure):
    _fields_ = (
        ("z", c_void_p * 2),
        *((name, c_void_p) for name in ("centred", "grad", "sums")),
        ("stride", c_int64 * 2),
        *((name, c_int64) for name in ("rows", "width")),
        *((name, c_float) for name in ("inv", "var", "cov")),
        ("threads", c_int32),
    )


def columns(
    z1: Tensor, z2: Tensor, slopes: tuple[float, float, float], grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(both views centred [2, N, D], the gradient but for the product or empty, sums [3] float64).

    Args:
        z1, z2: [N, D] float32.
        slopes: of z1 - z2, of 1 / std, of a column's sum of squares.
        grad: whether the gradient is made.
    """
    z1, z2 = dense_rows(z1), dense_rows(z2)
    centred = z1.new_empty(2, *z1.shape)
    out = torch.empty_like(centred) if grad else z1.new_empty(0)
    sums = z1.new_empty(3, dtype=torch.float64)
    op = VICRegStruct(
        (c_void_p * 2)(native.pointer(z1), native.pointer(z2)),
        native.pointer(centred),
        native.pointer(out) if grad else None,
        native.pointer(sums),
        (c_int64 * 2)(z1.stride(0), z2.stride(0)),
        *z1.shape,
        *slopes,
        native.threads(centred.numel()),
    )
    native.call("vicreg", op)
    return centred, out, sums
