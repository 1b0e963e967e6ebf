"""Similarities a panel at a time, and the highest of them: similarities.c through ctypes.

The products are PyTorch's own, of float32. Where rows meet themselves (`every` is z) panels are
squares on and above the diagonal, so that every product and every power of two is made once for
both its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from fastequi.kernels import native

PANEL = 1 << 18  # similarities at a time: 1 MB stays in the second-level cache
SIDE = 512  # of squares, of as many: of all shapes they copy the least before they are multiplied
_FEW = 1 << 21  # products of two values: beyond them a library's matrix product is worth its call


class BestStruct(Structure):
    _fields_ = (
        ("s", c_void_p),
        ("own", c_void_p),
        *((name, c_void_p) for name in ("row_high", "column_high", "row_at", "column_at")),
        *((name, c_int64) for name in ("matrices", "rows", "columns")),
        *((name, c_int64) for name in ("first_row", "first_column", "mirrored")),
        *((name, c_int64) for name in ("place", "side", "apart")),
        ("threads", c_int32),
    )


class Panel(NamedTuple):
    """Similarities of some rows and of some columns.

    Attributes:
        part: the rows.
        first: the first of the columns.
        s: [rows, columns], dense.
        mirrored: the first of these columns that is a row that meets these rows; none if past all.
    """

    part: slice
    first: int
    s: Tensor
    mirrored: int


def few(*sizes: int) -> bool:
    """Whether one call of C, which multiplies by itself, takes less time than several.

    Args:
        sizes: whose product is that of multiplications: matrices, rows, columns, width.
    """
    return math.prod(sizes) <= _FEW


def reads(z: Tensor) -> bool:
    """Whether the C kernels take such rows; products are in float32."""
    return z.dtype in (torch.float32, torch.bfloat16, torch.float16) and z.numel() > 0


def panels(z: Tensor, every: Tensor, once: bool, keep: int = 1) -> Iterable[Panel]:
    """All products z · every, `once`: those of two rows once, for rows that meet themselves.

    These can be gone through a second time, but for `keep` of the squares, which are kept, all are
    made again; in another order.
    """
    return _Squares(z, keep) if once else _rows(z, every)


def _rows(z: Tensor, every: Tensor) -> Iterator[Panel]:
    rows, columns = len(z), len(every)
    buffer = z.new_empty(max(min(PANEL, rows * columns), columns))
    step = max(PANEL // columns, 1)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        s = buffer[: (part.stop - start) * columns].view(-1, columns)
        torch.mm(z[part], every.T, out=s)
        yield Panel(part, 0, s, columns)


class _Squares:
    """Of rows that meet themselves, in the order of their columns for each of them; the second time
    those come first whose similarities are still there, as they were left."""

    def __init__(self, z: Tensor, keep: int) -> None:
        rows = len(z)
        starts = range(0, rows, SIDE)
        self._z = z
        self._places = [(start, first) for start in starts for first in starts if first >= start]
        self._buffers = z.new_empty(min(keep, len(self._places)), min(SIDE, rows) ** 2)
        self._kept: dict[tuple[int, int], Tensor] = {}

    def __iter__(self) -> Iterator[Panel]:
        z, kept = self._z, self._kept
        self._kept = {}
        for number, place in enumerate([*kept, *(p for p in self._places if p not in kept)]):
            start, first = place
            part, others = slice(start, min(start + SIDE, len(z))), z[first : first + SIDE]
            count = part.stop - start
            buffer = self._buffers[number % len(self._buffers)]
            s = kept.get(place)
            if s is None:
                s = buffer[: count * len(others)].view(count, -1)
                torch.mm(z[part], others.T, out=s)
            if not kept:
                self._kept[place] = s
                if len(self._kept) > len(self._buffers):
                    del self._kept[next(iter(self._kept))]
            yield Panel(part, first, s, count if first == start else 0)


def nearest(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    """[M] int32 rows of `every` with the largest product, but for ids[i]; the first of equals."""
    once = native.pointer(z) == native.pointer(every) and z.shape == every.shape
    wide = z.float()
    others = wide if once else every.float()
    high = wide.new_full((len(z),), -torch.inf)
    at = (ids == 0).int()  # some other row, where nothing is above -infinity
    for part, first, s, mirrored in panels(wide, others, once):
        columns = high[first:], at[first:]  # none is written where rows do not meet themselves
        _best(s[None], (high[part], at[part]), columns, ids[part], (part.start, first), mirrored)
    return at


def prepared_best(
    shape: tuple[int, int, int], place: int, side: int, apart: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]:
    """(s, row_high, column_high, row_at, column_at) to every row's and column's highest, and where.

    Args:
        shape: [matrices, M, N] of similarities s.
        place: of the first matrix among those that row_high [places, M] and the others have.
        side: matrices whose places lie side by side.
        apart: places from the first of these to the first of the next.
    """
    threads = native.threads(math.prod(shape))
    op = BestStruct(*[None] * 6, *shape, 0, 0, 0, place, side, apart, threads)
    return native.Filled("best", op, "s", "row_high", "column_high", "row_at", "column_at")


def _best(
    s: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    own: Tensor | None,
    first: tuple[int, int],
    mirrored: int,
) -> None:
    op = BestStruct(
        native.pointer(s),
        native.pointer(own),
        native.pointer(rows[0]),
        native.pointer(columns[0]),
        native.pointer(rows[1]),
        native.pointer(columns[1]),
        *s.shape,
        *first,
        mirrored,
        *(0, 1, 1),
        native.threads(s.numel()),
    )
    native.call("best", op)
