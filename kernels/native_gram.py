"""Gram anchoring of images of few patches in C: gram.c through ctypes."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native

_CLAMPS = {"none": 0, "both": 1, "teacher": 2}
_MOST = 256  # patches; of more a library's products are faster
_LEAST = 8  # images for the threads, one each, unless they are small:
_SMALL = 1 << 20  # B·N·N·C of calls that one thread makes sooner than a library's products begin


class GramStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("student", "teacher", "grad", "sums")),
        *((name, c_int64) for name in ("image_stride", "stride")),
        *((name, c_int64) for name in ("teacher_image_stride", "teacher_stride")),
        *((name, c_int64) for name in ("batch", "rows", "width", "teacher_width")),
        *((name, c_float) for name in ("eps", "factor")),
        *((name, c_int32) for name in ("clamp", "dtype", "threads")),
    )


def reads(student: Tensor, teacher: Tensor) -> bool:
    """Whether C takes such features, whatever the number of threads: its results' bits differ."""
    if student.dtype != teacher.dtype or student.dtype not in (torch.float32, torch.bfloat16):
        return False
    few = len(student) < _LEAST and student.numel() * student.shape[1] > _SMALL
    return student.shape[1] <= _MOST and not few


def gram(
    student: Tensor, teacher: Tensor, clamp: str, eps: float, factor: float, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """(Σ d² of every image [B], d Σ d²/d student times `factor` / 4 or None)."""
    sums = student.new_empty(len(student), dtype=torch.float32)
    out = torch.empty_like(student, memory_format=torch.contiguous_format) if grad else None
    op = GramStruct(
        *(native.pointer(tensor) for tensor in (student, teacher, out, sums)),
        *student.stride()[:2],
        *teacher.stride()[:2],
        *student.shape,
        teacher.shape[2],
        eps,
        factor,
        _CLAMPS[clamp],
        native.DTYPES[student.dtype],
        _threads(student),
    )
    native.call("gram", op)
    return sums, out


def _threads(student: Tensor) -> int:
    """A thread for products that take as long as a kernel's share of values does elsewhere."""
    return native.threads(student.numel() * student.shape[1] // 16)
