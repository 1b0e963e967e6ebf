"""GTSA's crop loss in C: crop_align.c through ctypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.constants import constants


class MapsStruct(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("boxes", c_void_p),
        *((name, c_int64) for name in ("view", "image", "cell", "height", "width")),
    )


class CropAlignStruct(Structure):
    _fields_ = (
        ("student", MapsStruct),
        ("teacher", MapsStruct),
        *((name, c_void_p) for name in ("turns", "pairs", "cosine", "grad")),
        *((name, c_int64) for name in ("count", "views", "batch", "channels", "bins")),
        ("scale", c_float),
        ("weight", c_float),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


def reads(student: Tensor, teacher: Tensor) -> bool:
    """Whether the C kernel takes such maps."""
    return student.dtype in (torch.float32, torch.bfloat16) and teacher.dtype == student.dtype


def crop_align(
    student: Tensor,
    teacher: Tensor,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    boxes: Sequence[Tensor],
    turns: Tensor,
    pairs: Sequence[int],
    bins: int,
    scale: float,
    weight: float,
    cosine: Tensor,
    grad: Tensor | None,
) -> None:
    """Fills cosine [P, B, bins²] and, if there is one, the gradient by the student, dense.

    Args:
        student, teacher: [V, B, h·w, C], channels together.
        sizes: (h, w) of the student's maps and of the teacher's.
        boxes: the student's and the teacher's, float32 [P, B, 4], dense.
        turns: [P, B] int32, dense.
        pairs: view of the student, view of the teacher, and so on.
        bins, scale: along each side of a box; cells of the maps per unit of the boxes.
        weight: of every cosine in the loss.
    """
    op = _struct(student, teacher, sizes, boxes, turns, pairs, bins, scale, weight, cosine, grad)
    native.call("crop_align", op)


def prepared(
    student: Tensor,
    teacher: Tensor,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    boxes: Sequence[Tensor],
    turns: Tensor,
    pairs: Sequence[int],
    bins: int,
    scale: float,
    weight: float,
    cosine: Tensor,
    grad: Tensor | None,
) -> Callable[..., None]:
    """(student, teacher, their boxes, turns, cosine, grad) as of :func:`crop_align`, for tensors
    like these."""
    op = _struct(student, teacher, sizes, boxes, turns, pairs, bins, scale, weight, cosine, grad)
    op.kept = constants(tuple(pairs), student.device, torch.int32)  # type: ignore[attr-defined]
    names = "student.data", "teacher.data", "student.boxes", "teacher.boxes", "turns"
    return native.Filled("crop_align", op, *names, "cosine", "grad")


def _struct(
    student: Tensor,
    teacher: Tensor,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    boxes: Sequence[Tensor],
    turns: Tensor,
    pairs: Sequence[int],
    bins: int,
    scale: float,
    weight: float,
    cosine: Tensor,
    grad: Tensor | None,
) -> CropAlignStruct:
    places = constants(tuple(pairs), student.device, torch.int32)
    return CropAlignStruct(
        _maps(student, sizes[0], boxes[0]),
        _maps(teacher, sizes[1], boxes[1]),
        *(native.pointer(tensor) for tensor in (turns, places, cosine, grad)),
        len(pairs) // 2,
        *student.shape[:2],
        student.shape[3],
        bins,
        scale,
        weight,
        native.DTYPES[student.dtype],
        native.threads(student.numel()),
    )


def _maps(maps: Tensor, size: tuple[int, int], boxes: Tensor) -> MapsStruct:
    return MapsStruct(native.pointer(maps), native.pointer(boxes), *maps.stride()[:3], *size)
