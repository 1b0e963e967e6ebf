"""VICReg's passes over columns in C: vicreg.c through ctypes, around PyTorch's own products; of few
rows, whole."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_similarities import few
from fastequi.kernels.rows import dense_rows


class VICRegStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("z1", "z2", "centred", "grad", "sums")),
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
    return prepared(z1, z2, slopes, grad)(z1, z2)


def prepared(
    z1: Tensor, z2: Tensor, slopes: tuple[float, float, float], grad: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """:func:`columns` for views like these, whose rows are dense."""
    shape, op = (2, *z1.shape), _struct(z1, z2, slopes)
    run = native.Filled("vicreg", op, "z1", "z2", "centred", "grad", "sums")

    def call(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred = torch.empty(shape, dtype=torch.float32, device="cpu")
        out = torch.empty(shape if grad else 0, dtype=torch.float32, device="cpu")
        sums = torch.empty(3, dtype=torch.float64, device="cpu")
        run(native.readable(z1), native.readable(z2), centred, out if grad else None, sums)
        return centred, out, sums

    return call


def prepared_whole(
    z1: Tensor, z2: Tensor, slopes: tuple[float, float, float], grad: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """(z1, z2) to (the whole gradient or empty, the sums and that of all squares of both Gram
    matrices [4] float64), for few rows like these, which are dense; None for many."""
    if not few(2, len(z1), *z1.shape):
        return None
    shape = (2, *z1.shape) if grad else 0
    names = "z1", "z2", "grad", "sums"
    run = native.Filled("vicreg_small", _struct(z1, z2, slopes), *names)

    def call(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
        sums = torch.empty(4, dtype=torch.float64, device="cpu")
        run(native.readable(z1), native.readable(z2), out if grad else None, sums)
        return out, sums

    return call


def _struct(z1: Tensor, z2: Tensor, slopes: tuple[float, float, float]) -> VICRegStruct:
    strides = (c_int64 * 2)(z1.stride(0), z2.stride(0))
    return VICRegStruct(*[None] * 5, strides, *z1.shape, *slopes, native.threads(2 * z1.numel()))
