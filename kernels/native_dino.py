"""The losses of DINO and iBOT in C: dino.c through ctypes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native import DTYPES
from fastequi.kernels.rows import dense_rows
from fastequi.kernels.target import DINOTarget

_SHARED = 1 << 16  # logits, from which on a sum of teachers is made once for all rows that meet it


class DinoStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("student", "teacher", "grad", "pairs", "order")),
        *((name, c_void_p) for name in ("weight", "row", "column", "lse", "loss", "total")),
        *((f"{name}_stride", c_int64) for name in ("student", "teacher", "grad")),
        *((name, c_int64) for name in ("rows", "columns")),
        *((name, c_float) for name in ("student_scale", "teacher_scale")),
        *((name, c_int32) for name in ("teachers", "student_dtype", "teacher_dtype")),
        *((name, c_int32) for name in ("stream", "threads")),
    )


def reads(student: Tensor, teacher: Tensor, weight: Tensor) -> bool:
    """Whether the C kernel takes such logits."""
    known = DTYPES.keys() - {torch.uint8}
    return {student.dtype, teacher.dtype} <= known and weight.dtype == torch.float32


def dino(
    student: Tensor,
    teacher: Tensor,
    target: DINOTarget,
    loss: Tensor,
    out: Tensor | None,
    lse: Tensor | None = None,
) -> None:
    """Fills loss [R], or [] with its sum, and the gradient `out` [R, N], if there is one; it may be
    the student.

    With the sums `lse` of all columns given these are some of them, and the loss their share
    without it.
    """
    op, _held = _struct(student, teacher, target, loss, out, lse)
    native.call("dino", op)


def _struct(
    student: Tensor,
    teacher: Tensor,
    target: DINOTarget,
    loss: Tensor,
    out: Tensor | None,
    lse: Tensor | None = None,
) -> tuple[DinoStruct, list[Tensor | None]]:
    """(the struct, tensors whose memory it points to)."""
    pairs, weight, row, column, *temps = target
    if lse is None:  # of whole rows a row number only normalises, and is rounded
        row = None
    student, teacher = dense_rows(student), dense_rows(teacher)
    teachers = pairs.shape[1]
    order = None
    if teachers > 1 and student.numel() >= _SHARED:
        order = _by_teachers(pairs, len(teacher))
    tensors = [
        None if tensor is None else tensor.resolve_neg().contiguous()
        for tensor in (pairs, order, weight, _wide(row), column, _wide(lse))
    ]
    apart = out is not None and out.data_ptr() != student.data_ptr()
    op = DinoStruct(
        native.pointer(student),
        native.pointer(teacher),
        native.pointer(out),
        *(native.pointer(tensor) for tensor in tensors),
        *(native.pointer(x) for x in ((None, loss) if loss.ndim == 0 else (loss, None))),
        student.stride(0),
        teacher.stride(0),
        0 if out is None else out.stride(0),
        *student.shape,
        *(1 / temp for temp in temps),
        teachers,
        DTYPES[student.dtype],
        DTYPES[teacher.dtype],
        apart and student.numel() * student.element_size() > native.STREAM_BYTES,
        native.threads(student.numel()),
    )
    return op, [student, teacher, *tensors]


def _by_teachers(pairs: Tensor, rows: int) -> Tensor:
    """[R] rows of the student, those of one image side by side and within it those that meet the
    same teachers: the first alone, then with the second, then the second alone.

    Args:
        pairs: [R, T] rows of the teacher, -1 for none; those of an image are rows / T apart.
        rows: of the teacher.
    """
    whole = pairs.long()
    key = whole.amax(1) % max(rows // pairs.shape[1], 1)
    for t, met in enumerate(whole.unbind(1)):
        key = key * (rows + 1) + torch.where(met < 0, rows if t == 0 else 0, met)
    return key.argsort().int()


def prepared(
    student: Tensor, teacher: Tensor, target: DINOTarget, grad: bool
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """(student, teacher, column, weight) to (the sum of all rows' losses, its gradient or None).

    For dense logits of these types whose last axis has N values, of as many rows as these in all;
    weights are dense and float32, or None for the target's.
    """
    slopes = torch.empty_like(student) if grad else None
    op, held = _struct(student, teacher, target, target.weight.new_empty(()), slopes)
    pointers = "student", "teacher", "column", "weight", "total", "grad"
    run = native.Filled("dino", op, *pointers)

    def call(
        student: Tensor,
        teacher: Tensor,
        column: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.empty((), dtype=torch.float32, device="cpu")
        slope = torch.empty_like(student) if grad else None
        run(student, teacher, column, weight, total, slope)
        return total, slope

    # pairs, their order and the target's weights, where the struct points; not the logits
    call.held = held[2:]  # type: ignore[attr-defined]
    return call


def _wide(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.double()
