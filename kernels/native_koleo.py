"""KoLeo in C: koleo.c through ctypes, around PyTorch's own products; of few rows, whole."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, addressof, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_similarities import few, nearest
from fastequi.kernels.native_unit_rows import unit_rows, unit_rows_grad
from fastequi.kernels.rows import dense_rows


class KoLeoStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("unit", "at", "distance", "grad", "loss")),
        *((name, c_int64) for name in ("rows", "width")),
        ("eps", c_float),
        ("threads", c_int32),
    )


class SmallStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("z", "grad", "loss")),
        *((name, c_int64) for name in ("stride", "rows", "width")),
        *((name, c_float) for name in ("unit_eps", "eps")),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


def prepared(
    z: Tensor, eps: float, grad: bool
) -> Callable[[Tensor], tuple[Tensor, Tensor | None]] | None:
    """z to (the loss, its gradient or None), for few rows like these; None for many."""
    if not few(len(z), *z.shape) or z.stride(1) != 1 or z.is_neg():
        return None
    shape, dtype = z.shape, z.dtype
    sizes = z.stride(0), *shape, eps, eps, native.DTYPES[dtype], native.threads(len(z) ** 2)
    run = native.Filled("koleo_small", SmallStruct(None, None, None, *sizes), "z", "loss", "grad")

    def call(z: Tensor) -> tuple[Tensor, Tensor | None]:
        loss = torch.empty((), dtype=torch.float32, device="cpu")
        by_z = torch.empty(shape, dtype=dtype, device="cpu") if grad else None
        run(z, loss, by_z)
        return loss, by_z

    return call


def koleo(z: Tensor, eps: float, grad: bool) -> tuple[Tensor, Tensor | None]:
    """(-mean log of the distance to the nearest other row, its gradient by z [N, D] or None)."""
    z = dense_rows(z)
    if small := prepared(z, eps, grad):
        return small(z)
    rows = unit_rows((z,), eps, False)
    unit, count = rows.unit, len(z)
    at = nearest(unit, unit, torch.arange(count, device=z.device))
    distance, by_unit = torch.empty_like(rows.inverse), torch.empty_like(unit) if grad else None
    loss = c_double()
    op = KoLeoStruct(
        native.pointer(unit),
        native.pointer(at),
        native.pointer(distance),
        native.pointer(by_unit),
        addressof(loss),
        *unit.shape,
        eps,
        native.threads(unit.numel()),
    )
    native.call("koleo", op)
    value = unit.new_tensor(-loss.value / count)
    if by_unit is None:
        return value, None
    return value, unit_rows_grad(rows, by_unit, -1 / count)[0]
