"""KoLeo in C: koleo.c through ctypes, around PyTorch's own products."""

from __future__ import annotations

from ctypes import Structure, addressof, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_similarities import nearest
from fastequi.kernels.native_unit_rows import unit_rows, unit_rows_grad


class KoLeoStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("unit", "at", "distance", "grad", "loss")),
        *((name, c_int64) for name in ("rows", "width")),
        ("eps", c_float),
        ("threads", c_int32),
    )


def koleo(z: Tensor, eps: float, grad: bool) -> tuple[Tensor, Tensor | None]:
    """(-mean log of the distance to the nearest other row, its gradient by z [N, D] or None)."""
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
