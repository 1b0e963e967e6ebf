"""Gram anchoring of images of few patches in C: gram.c through ctypes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native

_CLAMPS = {"none": 0, "both": 1, "teacher": 2}
_MOST = 256  # patches; of more a library's products are faster
_LEAST = 8  # images for the threads, one each, unless they are small:
_SMALL = 1 << 20  # B·N·N·C of calls that one thread makes sooner than a library's products begin


class GramStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("student", "teacher", "grad", "sums", "total")),
        *((name, c_int64) for name in ("image_stride", "stride")),
        *((name, c_int64) for name in ("teacher_image_stride", "teacher_stride")),
        *((name, c_int64) for name in ("batch", "rows", "width", "teacher_width")),
        ("count", c_double),
        *((name, c_float) for name in ("eps", "factor")),
        *((name, c_int32) for name in ("clamp", "dtype", "threads")),
    )


def reads(student: Tensor, teacher: Tensor) -> bool:
    """Whether C takes such features, whatever the number of threads: its results' bits differ."""
    if student.dtype != teacher.dtype or student.dtype not in (torch.float32, torch.bfloat16):
        return False
    few = len(student) < _LEAST and student.numel() * student.shape[1] > _SMALL
    return student.shape[1] <= _MOST and not few


def prepared(
    student: Tensor,
    teacher: Tensor,
    clamp: str,
    eps: float,
    count: float,
    each: bool,
    shape: tuple[int, ...] | None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """(student, teacher) to (Σ d² over `count`, its gradient by student or None).

    Args:
        student, teacher: features [B, N, C] and [B, N, E] like those of later calls, dense rows.
        clamp: as in `fastequi.functional.gram_loss`.
        eps: the least length that rows are divided by.
        each: of every image, [B], and not of all.
        shape: of the gradient, dense; None without one.
    """
    images, dtype = len(student), student.dtype
    op = GramStruct(
        *[None] * 5,
        *student.stride()[:2],
        *teacher.stride()[:2],
        *student.shape,
        teacher.shape[2],
        count,
        eps,
        4 / count,
        _CLAMPS[clamp],
        native.DTYPES[dtype],
        _threads(student),
    )
    run = native.Filled("gram", op, "student", "teacher", "grad", "sums", "total")

    def call(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor | None]:
        sums = torch.empty(images, dtype=torch.float32, device="cpu")
        total = None if each else torch.empty((), dtype=torch.float32, device="cpu")
        out = None if shape is None else torch.empty(shape, dtype=dtype, device="cpu")
        run(student, teacher, out, sums, total)
        return sums if total is None else total, out

    return call


def _threads(student: Tensor) -> int:
    """A thread for products that take as long as a kernel's share of values does elsewhere."""
    return native.threads(student.numel() * student.shape[1] // 16)
