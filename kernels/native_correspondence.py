"""GTSA's correspondence on a CPU: correspondence.c and similarities.c through ctypes.

The products are PyTorch's, of float32. Views that meet the same view of the teacher and follow one
another are multiplied with it at once, image by image, a few images at a time: similarities stay in
the caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from fastequi.kernels import native, native_similarities
from fastequi.kernels.constants import constants

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

_TYPES = (torch.float32, torch.bfloat16)


class FeaturesStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "unit")),
        ("stride", c_int64 * 3),
        *((name, c_int64) for name in ("views", "rows")),
        ("dtype", c_int32),
    )


class CorrespondenceStruct(Structure):
    _fields_ = (
        *((name, FeaturesStruct) for name in ("student", "teacher")),
        *((name, c_void_p) for name in ("inverse", "pairs", "forth", "back")),
        *((name, c_void_p) for name in ("forth_at", "back_at", "total", "grad")),
        *((name, c_int64) for name in ("batch", "width", "count", "top")),
        ("eps", c_float),
        *((name, c_int32) for name in ("rounds", "threads")),
    )


class _Step(NamedTuple):
    """Some images' views, one after the other, by one view of the teacher.

    Attributes:
        images: which.
        own: rows of the student's, of all its views.
        other: of the teacher's, the same.
        shape: of the similarities [images, views · M, N].
        best: finds the highest of them.
    """

    images: slice
    own: slice
    other: slice
    shape: tuple[int, int, int]
    best: Callable[..., None]


def reads(student: Tensor, teacher: Tensor) -> bool:
    """Whether the C kernels take such features: types, and channels side by side."""
    known = student.dtype in _TYPES and teacher.dtype in _TYPES and student.numel() > 0
    dense = student.stride(-1) == teacher.stride(-1) == 1 or student.shape[-1] == 1
    return known and dense and not (student.is_neg() or teacher.is_neg())


def prepared(
    student: Tensor,
    teacher: Tensor,
    pairs: Sequence[int],
    top: int,
    grad: bool,
    eps: float | None,
    at_once: int,
) -> Run:
    """(student, teacher) to (the loss, its gradient by student, dense, or None).

    Args:
        student, teacher: features [S, B, M, C] and [T, B, N, C] like those of later calls.
        pairs: view of the student, view of the teacher, and so on.
        top: matches of a pair and direction that count.
        eps: the least length that rows are divided by; None: they have unit length already.
        at_once: similarities that are made at a time, or those of one pair.
    """
    (_, batch, m, width), n = student.shape, teacher.shape[2]
    chosen = sorted(zip(pairs[::2], pairs[1::2], strict=True), key=lambda pair: pair[::-1])
    order = constants(tuple(view for pair in chosen for view in pair), student.device, torch.int32)
    op = CorrespondenceStruct(
        _features(student),
        _features(teacher),
        *(None, native.pointer(order)),
        *[None] * 6,
        *(batch, width, len(chosen), top),
        0.0 if eps is None else eps,
        student.dtype == torch.bfloat16,
        native.threads(student.numel() + teacher.numel()),
    )
    op.kept = order  # type: ignore[attr-defined]  # C reads it
    if native_similarities.few(len(chosen) * batch, m, n, width):
        return _at_once(op, student, grad, eps is not None)
    steps = _steps(chosen, batch, m, n, at_once)
    return _by_products(op, steps, student, grad, eps is not None)


def _at_once(op: CorrespondenceStruct, student: Tensor, grad: bool, lengths: bool) -> Run:
    """In one call, which multiplies by itself."""
    shape, dtype = student.shape, student.dtype
    op.inverse = op.pairs if lengths else None  # any address
    run = native.Filled("correspondence_small", op, "student.x", "teacher.x", "total", "grad")

    def call(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
        total = torch.empty((), dtype=torch.float32, device="cpu")
        out = torch.empty(shape, dtype=dtype, device="cpu") if grad else None
        run(student, teacher, total, out)
        return total, out

    return call


def _by_products(
    op: CorrespondenceStruct, steps: Sequence[_Step], student: Tensor, grad: bool, lengths: bool
) -> Run:
    """Around PyTorch's products."""
    units = "student.x", "teacher.x", "student.unit", "teacher.unit", "inverse"
    found = "forth", "back", "forth_at", "back_at"
    begin = native.Filled("correspondence_rows", op, *units, *found)
    end = native.Filled("correspondence", op, *units, *found, "total", "grad")
    sides = op.student, op.teacher
    rows = [(op.batch, side.views * side.rows, op.width) for side in sides]
    highest = [(op.batch, op.count, side.rows) for side in sides]
    most = max(math.prod(step.shape) for step in steps)
    shape, dtype = student.shape, student.dtype

    def call(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
        ours, theirs = (torch.empty(size, dtype=torch.float32, device="cpu") for size in rows)
        lengths_of = torch.empty(rows[0][:2], dtype=torch.float32, device="cpu")
        given = student, teacher, ours, theirs, lengths_of if lengths else None
        high = [torch.empty(size, dtype=torch.float32, device="cpu") for size in highest]
        at = [torch.empty(size, dtype=torch.int32, device="cpu") for size in highest]
        begin(*given, *high, *at)
        buffer = torch.empty(most, dtype=torch.float32, device="cpu")
        for images, own, other, shape_of_s, best in steps:
            s = buffer[: math.prod(shape_of_s)].view(shape_of_s)
            torch.bmm(ours[images, own], theirs[images, other].mT, out=s)
            best(s, *high, *at)
        total = torch.empty((), dtype=torch.float32, device="cpu")
        out = torch.empty(shape, dtype=dtype, device="cpu") if grad else None
        end(*given, *high, *at, total, out)
        return total, out

    return call


def _features(x: Tensor) -> FeaturesStruct:
    strides = (c_int64 * 3)(*x.stride()[:3])
    return FeaturesStruct(None, None, strides, x.shape[0], x.shape[2], native.DTYPES[x.dtype])


def _steps(
    pairs: Sequence[tuple[int, int]], batch: int, m: int, n: int, at_once: int
) -> list[_Step]:
    """All pairs, which are in the order of the teacher's views, a few of them and images each."""
    steps, first = [], 0
    while first < len(pairs):
        view, other = pairs[first]
        views = 1
        while (
            pairs[first + views : first + views + 1] == [(view + views, other)]
            and (views + 1) * m * n <= at_once
        ):
            views += 1
        own, wanted = slice(view * m, (view + views) * m), slice(other * n, (other + 1) * n)
        images = max(at_once // (views * m * n), 1)
        for start in range(0, batch, images):
            some = slice(start, min(start + images, batch))
            count = some.stop - start
            places = start * len(pairs) + first, views, len(pairs)
            best = native_similarities.prepared_best((count * views, m, n), *places)
            steps.append(_Step(some, own, wanted, (count, views * m, n), best))
        first += views
    return steps
