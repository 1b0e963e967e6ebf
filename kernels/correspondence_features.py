"""GTSA's patch correspondence of features of any length; that of unit rows is in correspondence.py.

The gradient by the features follows from that by their unit rows, u = x / |x|::

    d loss/d x = (by_unit - (by_unit · u) u) / |x|

On a GPU it is a kernel of unit_rows.py behind the loss's own. In C it is made with the loss, all in
one call for few patches, else around PyTorch's products; a second derivative goes by steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastequi.kernels import correspondence, native_correspondence
from fastequi.kernels.autograd import needs_operator, scaled
from fastequi.kernels.backend import transformed, use_native
from fastequi.kernels.precision import autocast_off
from fastequi.kernels.prepared import Again
from fastequi.kernels.unit_rows import EPS, unit_rows, unit_rows_grad, unit_rows_op
from fastequi.kernels.unit_rows import fused as fused_rows

Steps = Callable[[Tensor, Tensor], Tensor]


class _OfFeatures(torch.autograd.Function):
    """Of a student's features: the way back through their lengths takes the factor along."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int
    ) -> Tensor:
        unit = _by_view(unit_rows_op(student.detach(), teacher.dtype, EPS))
        loss, by_unit = correspondence.correspondence_op(unit, teacher, pairs, top, True)
        ctx.save_for_backward(student, by_unit.view(student.shape))
        value: Tensor = loss
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        student, by_unit = ctx.saved_tensors
        return unit_rows_grad(student, by_unit, grads[0]), None, None, None


class _InC(torch.autograd.Function):
    """The same in C, which makes the gradient by the features themselves."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, run: Any, steps: Steps) -> Tensor:
        loss, grad = run(student, teacher)
        ctx.save_for_backward(student, grad.view(student.shape))
        # not saved: it may be of inference mode, and is needed for second derivatives alone
        ctx.teacher, ctx.version = teacher.detach(), _version(teacher)
        ctx.steps, ctx.owned = steps, True
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        student, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: by steps that can be differentiated again
            if _version(ctx.teacher) != ctx.version:
                raise RuntimeError(
                    "correspondence_loss: the teacher was changed in place before create_graph=True"
                )
            alias = student.view_as(student)  # which has no hooks: they are called once
            loss = ctx.steps(alias, ctx.teacher)
            (found,) = torch.autograd.grad(loss, alias, grads[0], create_graph=True)
        else:
            found = scaled(ctx, grad, grads[0])
        return found, None, None, None


def _version(x: Tensor) -> int:
    """How often it was written to; 0 of those that do not count."""
    return 0 if x.is_inference() else x._version


def prepared(student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int) -> Again | None:
    """What :func:`features_loss` does for features like these, in C, or None; autocast is ignored.

    It takes features of one view each without the axis of views too.
    """
    if needs_operator(student, teacher) or transformed() or not use_native(student):
        return None
    ours, theirs = _by_view(student.detach()), _by_view(teacher.detach())
    copied = ours.data_ptr() != student.data_ptr() or theirs.data_ptr() != teacher.data_ptr()
    if copied or not native_correspondence.reads(ours, theirs):
        return None
    grad = torch.is_grad_enabled() and student.requires_grad
    run = native_correspondence.prepared(ours, theirs, pairs, top, grad, EPS, correspondence.CHUNK)
    if not grad:
        return lambda student, teacher: run(student, teacher)[0]
    # PyTorch's own without a look for torch.func's transforms: a signature has none
    apply = super(torch.autograd.Function, _InC).apply
    shapes, chosen = (student.shape, teacher.shape), list(pairs)

    def steps(student: Tensor, teacher: Tensor) -> Tensor:
        with autocast_off(student.device):
            return features_loss(student.view(shapes[0]), teacher.view(shapes[1]), chosen, top)

    return lambda student, teacher: apply(student, teacher, run, steps)


def features_loss(student: Tensor, teacher: Tensor, pairs: Sequence[int], top: int) -> Tensor:
    """Of rows of any length [S, ..., M, C] and [T, ..., N, C]: unit rows first, then the loss of
    these; without autocast."""
    # float16's rounding would decide between matches; bfloat16's is accepted
    dtype = torch.float32 if student.dtype == torch.float16 else student.dtype
    pairs, wanted = list(pairs), _by_view(unit_rows(teacher.detach(), dtype))
    grad = torch.is_grad_enabled() and student.requires_grad
    if grad and fused_rows(student) and not torch.compiler.is_compiling():
        loss: Tensor = _OfFeatures.apply(student, wanted, pairs, top)
        return loss
    return correspondence.correspondence_loss(
        _by_view(unit_rows(student, dtype)), wanted, pairs, top
    )


def _by_view(rows: Tensor) -> Tensor:
    """[S, ..., M, C] as [S, B, M, C]."""
    return rows.reshape(len(rows), -1, *rows.shape[-2:])
