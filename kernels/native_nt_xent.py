"""NT-Xent in C: nt_xent.c through ctypes, around PyTorch's own products; of few rows, whole."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, addressof, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_similarities import Panel, few, panels
from fastequi.kernels.native_unit_rows import unit_rows, unit_rows_grad
from fastequi.kernels.rows import dense_rows

_LEAST_TEMP = 0.0242  # down to it exp(-2 / temp) is a normal number of float32
_EPS = 1e-12  # of F.normalize
_KEPT = 8  # squares of similarities that are not made twice: 8 MB, however many rows there are


class ContrastStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("s", "own", "positive", "alike", "sum", "row", "column")),
        *((name, c_int64) for name in ("rows", "columns", "first_row", "first_column")),
        *((name, c_int64) for name in ("mirrored", "half")),
        ("scale", c_float),
        *((name, c_int32) for name in ("bounded", "threads")),
    )


class SettleStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("sum", "alike", "unit", "row", "pull", "grad", "loss")),
        *((name, c_int64) for name in ("half", "width")),
        ("scale", c_float),
        *((name, c_int32) for name in ("bounded", "threads")),
    )


class SmallStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("z1", "z2", "grad1", "grad2", "loss")),
        *((name, c_int64) for name in ("stride1", "stride2", "half", "width")),
        *((name, c_float) for name in ("eps", "scale")),
        *((name, c_int32) for name in ("dtype", "rounds", "bounded", "threads")),
    )


def prepared(
    z1: Tensor, z2: Tensor, temp: float, grad: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor | None]] | None:
    """(z1, z2) to (the loss, its gradients or None), for few rows like these; None for many."""
    half, width = z1.shape
    if not few(2 * half, 2 * half, width) or any(z.stride(1) != 1 or z.is_neg() for z in (z1, z2)):
        return None
    op = SmallStruct(
        *[None] * 5,
        z1.stride(0),
        z2.stride(0),
        half,
        width,
        _EPS,
        1 / temp,
        native.DTYPES[z1.dtype],
        z1.dtype != torch.float32,
        temp >= _LEAST_TEMP,
        native.threads(4 * half * half),
    )
    run = native.Filled("nt_xent_small", op, "z1", "z2", "loss", "grad1", "grad2")
    dtype = z1.dtype

    def call(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        loss = torch.empty((), dtype=torch.float32, device="cpu")
        by_z1, by_z2 = (
            torch.empty(half, width, dtype=dtype, device="cpu") if grad else None for _ in range(2)
        )
        run(z1, z2, loss, by_z1, by_z2)
        return loss, by_z1, by_z2

    return call


def nt_xent(z1: Tensor, z2: Tensor, temp: float, grad: bool) -> tuple[Tensor, list[Tensor]]:
    """(the loss of two views [N, D], its gradients by them or none), normalisation included."""
    z1, z2 = dense_rows(z1), dense_rows(z2)
    if small := prepared(z1, z2, temp, grad):
        mean, *grads = small(z1, z2)
        return mean, [grad for grad in grads if grad is not None]
    rows = unit_rows((z1, z2), _EPS, True)
    unit, bounded, count = rows.unit, temp >= _LEAST_TEMP, len(rows.unit)
    total, alike = unit.new_zeros(count, dtype=torch.float64), torch.empty_like(rows.inverse)
    similarities = panels(unit, unit, bounded, _KEPT if grad else 1)
    for panel in similarities:
        _contrast("contrast", panel, temp, bounded, alike=alike, total=total, half=len(z1))
    factors, pull = torch.empty_like(alike), torch.empty_like(alike)
    by_unit = torch.empty_like(unit) if grad else None
    loss = c_double()
    op = SettleStruct(
        *(native.pointer(t) for t in (total, alike, unit, factors, pull)),
        native.pointer(by_unit),
        addressof(loss),
        len(z1),
        unit.shape[1],
        1 / temp,
        bounded,
        native.threads(unit.numel()),
    )
    native.call("settle", op)
    value = unit.new_tensor(loss.value / count)
    if by_unit is None:
        return value, []
    for panel in similarities if bounded else panels(unit, unit, False):
        _contrast("weigh", panel, temp, bounded, row=factors, column=factors, half=len(z1))
        _add_products(by_unit, panel, unit, unit)
    return value, unit_rows_grad(rows, by_unit, 1 / (temp * count))


def logits(
    z: Tensor, every: Tensor, ids: Tensor, positives: Tensor, temp: float
) -> tuple[Tensor, Tensor]:
    """(log Σ_{negatives} exp(s_ij), s_{i positives[i]}), [M] each, s = z · every / temp."""
    bounded = temp >= _LEAST_TEMP
    wide, others = z.float(), every.float()
    total, alike = wide.new_zeros(len(z), dtype=torch.float64), wide.new_empty(len(z))
    places = ids, positives
    for panel in panels(wide, others, False):
        _contrast("contrast", panel, temp, bounded, alike=alike, total=total, places=places)
    return (total.log().add_(1 / temp) if bounded else total).float(), alike


def grad(
    z: Tensor, every: Tensor, ids: Tensor, positives: Tensor, lse: Tensor, every_lse: Tensor,
    pull: Tensor, temp: float,
) -> Tensor:  # fmt: skip
    """d Σ loss/d z [M, D]; as `fastequi.kernels.nt_xent` describes it."""
    bounded = temp >= _LEAST_TEMP
    wide, others, places = z.float(), every.float(), (ids, positives)
    row, column = lse, every_lse
    if bounded:
        row, column = (torch.exp(1 / temp - part) for part in (lse, every_lse))
    out = others[positives].mul_(-pull[:, None])
    for panel in panels(wide, others, False):
        _contrast("weigh", panel, temp, bounded, row=row, column=column, places=places)
        _add_products(out, panel, wide, others)
    return out.div_(temp)


def _add_products(out: Tensor, panel: Panel, z: Tensor, every: Tensor) -> None:
    part, first, weights, mirrored = panel
    last = first + weights.shape[1]
    out[part].addmm_(weights, every[first:last])
    if first + mirrored < last:
        out[first + mirrored : last].addmm_(weights[:, mirrored:].T, z[part])


def _contrast(
    name: str,
    panel: Panel,
    temp: float,
    bounded: bool,
    *,
    alike: Tensor | None = None,
    total: Tensor | None = None,
    row: Tensor | None = None,
    column: Tensor | None = None,
    places: tuple[Tensor, Tensor] | None = None,
    half: int = 0,
) -> None:
    part, first, s, mirrored = panel
    own, positive = (None, None) if places is None else (ids[part] for ids in places)
    row = None if row is None else row[part]
    column = None if column is None else column[first:]
    op = ContrastStruct(
        native.pointer(s),
        *(native.pointer(t) for t in (own, positive, alike, total, row, column)),
        *s.shape,
        part.start,
        first,
        mirrored,
        half,
        1 / temp,
        bounded,
        native.threads(s.numel()),
    )
    native.call(name, op)
