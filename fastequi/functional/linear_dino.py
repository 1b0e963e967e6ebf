"""The losses of DINO and iBOT with the last layers' weights by position, as F.linear takes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastequi.functional.dino import dino_loss, ibot_loss


def linear_dino_loss(
    student: Tensor, prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor, **options: Any
) -> Tensor:
    """:func:`dino_loss` of rows, with the prototypes by position.

    Args:
        student: [S, B, C] rows that enter the student's last layer, the global views first, as many
            as the teacher has; floating.
        prototypes: [N, C] weights of that layer, in the rows' type.
        teacher: [T, B, C] rows of the global views, T <= S.
        teacher_prototypes: [N, C] weights of the teacher's last layer, in the rows' type.
        **options: as of :func:`dino_loss`: student_temp and teacher_temp, > 0; center [N]; targets,
            "softmax" or "sinkhorn"; iterations; group. Not inplace: no logits are stored.

    Returns:
        A float32 scalar (float64 for float64 inputs). Gradients go to `student` and `prototypes`.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    return dino_loss(
        student, teacher, prototypes=prototypes, teacher_prototypes=teacher_prototypes, **options
    )


def linear_ibot_loss(
    student: Tensor, prototypes: Tensor, teacher: Tensor, teacher_prototypes: Tensor, **options: Any
) -> Tensor:
    """:func:`ibot_loss` of rows, with the prototypes by position.

    Args:
        student: [..., C] rows that enter the student's last layer; floating.
        prototypes: [N, C] weights of that layer, in the rows' type.
        teacher: [..., C] rows of the teacher, of the same shape.
        teacher_prototypes: [N, C] weights of the teacher's last layer, in the rows' type.
        **options: as of :func:`ibot_loss`: weight [...]; student_temp and teacher_temp, > 0;
            center [N]; targets, "softmax" or "sinkhorn"; iterations; group. Not inplace.

    Returns:
        A float32 scalar (float64 for float64 inputs). Gradients go to `student` and `prototypes`.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    return ibot_loss(
        student, teacher, prototypes=prototypes, teacher_prototypes=teacher_prototypes, **options
    )
