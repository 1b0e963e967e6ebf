"""The gradient of patch correspondence in C: correspondence.c through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.constants import constants


class MatchedStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("teacher", "pairs", "forth", "back")),
        *((name, c_void_p) for name in ("forth_weight", "back_weight", "grad")),
        *((name, c_int64) for name in ("view_stride", "image_stride", "stride")),
        *((name, c_int64) for name in ("count", "views", "batch", "m", "n", "width")),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


def reads(student: Tensor, teacher: Tensor) -> bool:
    return student.dtype == teacher.dtype and student.dtype in (torch.float32, torch.bfloat16)


def matched(
    student: Tensor,
    teacher: Tensor,
    pairs: Sequence[int],
    forth: tuple[Tensor, Tensor],
    back: tuple[Tensor, Tensor],
) -> Tensor:
    """The gradient by student [S, B, M, C], dense: weights times the teacher's rows they matched.

    Args:
        teacher: [T, B, N, C], its last axis dense.
        pairs: view of the student, view of the teacher, and so on.
        forth, back: int32 places and float32 weights, dense, [P, B, M] and [P, B, N].
    """
    out = torch.empty_like(student, memory_format=torch.contiguous_format)
    views, batch, m, width = student.shape
    places = constants(tuple(pairs), student.device, torch.int32)
    tensors = teacher, places, forth[0], back[0], forth[1], back[1], out
    op = MatchedStruct(
        *(native.pointer(tensor) for tensor in tensors),
        *teacher.stride()[:3],
        len(pairs) // 2,
        views,
        batch,
        m,
        teacher.shape[2],
        width,
        native.DTYPES[student.dtype],
        native.threads(out.numel()),
    )
    native.call("matched", op)
    return out
