"""Gram anchoring: the similarities of an image's patches stay those of a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.kernels import gram as _gram
from fastequi.kernels.precision import widened
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    across_images: bool = False,
    clamp: str = "none",
    reduction: str = "mean",
    eps: float = 1e-12,
) -> Tensor:
    """Squared difference of the student's and the teacher's cosines of any two patches.

    The Gram anchoring of DINOv3 (Siméoni et al., arXiv 2508.10104, ‖X_S X_Sᵀ - X_G X_Gᵀ‖_F²), whose
    teacher is an earlier or a published network, frozen. The features themselves may move, and
    even have another width than the teacher's, as long as patches stay as alike as they were::

        x, y = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        loss = F.mse_loss(x @ x.mT, y @ y.mT)

    The similarities are never stored.

    Args:
        student: [B, N, C] features of an image's N patches; floating. Normalised here.
        teacher: [B, N, E] features of the same patches, E = C or another width; gets no gradient.
            Of two types both are taken in the one that holds both.
        across_images: whether patches of all images are compared, [B·N, B·N] similarities, and not
            those of each image alone (DINOv3's `img_level=False`).
        clamp: which negative similarities become 0 before they are compared, where a student's has
            no gradient then: "none"; "both", those of student and teacher (`remove_neg`);
            "teacher", the teacher's, and the student's where the teacher's is negative
            (`remove_only_teacher_neg`).
        reduction: "mean" over all similarities, as DINOv3's code has it; "sum", the squared norm of
            the paper's formula, of all images; "none", the mean of every image, [B].
        eps: the least length that a row is divided by, as in `F.normalize`.

    Returns:
        A float32 scalar or [B] (float64 for float64 features); 0 for an empty batch.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    student, teacher = widened(student, teacher)
    key, again = _CALLS.find((student, teacher), (across_images, clamp, reduction, eps))
    if again is not None:
        return again(student, teacher)
    for name, x in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, x)
        if x.ndim != 3 or 0 in x.shape[1:]:
            raise ValueError(f"{name}: expected [B, N, C], got {tuple(x.shape)}")
    if teacher.shape[:2] != student.shape[:2]:
        batch, patches = student.shape[:2]
        raise ValueError(
            f"teacher: expected [{batch}, {patches}, C] with B and N as in student, "
            f"got {tuple(teacher.shape)}"
        )
    checks.same_device(student=student, teacher=teacher)
    eps = check_gram_options(across_images, clamp, reduction, eps)
    common = torch.promote_types(student.dtype, teacher.dtype)

    def run(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = student.to(common), teacher.detach().to(common)
        if across_images:
            student, teacher = (x.reshape(1, -1, x.shape[2]) for x in (student, teacher))
        return _gram.gram_loss(student, teacher, clamp, reduction, eps)

    if key is None:
        return run(student, teacher)
    again = _gram.prepared(student, teacher, across_images, clamp, reduction, eps)
    return _CALLS.keep(key, again or run)(student, teacher)


def check_gram_options(across_images: bool, clamp: str, reduction: str, eps: float) -> float:
    """Options of :func:`gram_loss`; eps as a number."""
    arguments.flags(across_images=across_images)
    checks.check_names(clamp=clamp, reduction=reduction)
    if across_images and reduction == "none":
        raise ValueError('reduction: "none" is for every image; across_images has one sum for all')
    return arguments.number("eps", eps, least=0)
