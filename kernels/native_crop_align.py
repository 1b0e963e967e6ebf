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
    grad: bool,
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """(student, teacher, their boxes, turns) to (the cosines [P, B, bins²], the gradient by the
    student, dense, or None), for tensors like these.

    Args:
        student, teacher: [V, B, h·w, C], channels together.
        sizes: (h, w) of the student's maps and of the teacher's.
        boxes: the student's and the teacher's, float32 [P, B, 4], dense.
        turns: [P, B] int32, dense.
        pairs: view of the student, view of the teacher, and so on.
        bins, scale: along each side of a box; cells of the maps per unit of the boxes.
        weight: of every cosine in the loss.
        grad: whether the gradient is made.
    """
    count, (views, batch, _, channels), dtype = len(pairs) // 2, student.shape, student.dtype
    places = constants(tuple(pairs), student.device, torch.int32)
    op = CropAlignStruct(
        _maps(student, sizes[0], boxes[0]),
        _maps(teacher, sizes[1], boxes[1]),
        *(native.pointer(tensor) for tensor in (turns, places, None, None)),
        *(count, views, batch, channels, bins),
        scale,
        weight,
        native.DTYPES[dtype],
        native.threads(student.numel()),
    )
    op.kept = places  # type: ignore[attr-defined]
    names = "student.data", "teacher.data", "student.boxes", "teacher.boxes", "turns"
    run = native.Filled("crop_align", op, *names, "cosine", "grad")
    shape = (views, batch, *sizes[0], channels)

    def call(
        student: Tensor, teacher: Tensor, own: Tensor, other: Tensor, turns: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        cosine = torch.empty((count, batch, bins**2), dtype=torch.float32, device="cpu")
        out = torch.empty(shape, dtype=dtype, device="cpu") if grad else None
        run(student, teacher, own, other, turns, cosine, out)
        return cosine, out

    return call


def _maps(maps: Tensor, size: tuple[int, int], boxes: Tensor) -> MapsStruct:
    return MapsStruct(native.pointer(maps), native.pointer(boxes), *maps.stride()[:3], *size)
