"""Losses between feature maps of crops of one image: GTSA's crop and correspondence losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.functional import checks
from fastequi.kernels import correspondence as _correspondence
from fastequi.kernels import crop_align as _crop_align

Pairs = Sequence[tuple[int, int]]


def crop_align_loss(
    student: Tensor,
    teacher: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    turns: Tensor,
    *,
    bins: int,
    scale: float = 1.0,
    pairs: Pairs | None = None,
) -> Tensor:
    """Negative cosine of what two crops share, each seen by its own network and turned by its own.

    Both maps are pooled over the shared box to bins × bins (RoIAlign, aligned: He et al., 2017),
    the teacher's is turned as the student's crop is against its own, and the cosines of equal bins
    are averaged: the crop loss of GTSA (Kim et al., arXiv 2304.08014; 10 bins for global crops, 4
    for local ones). :func:`fastequi.data.views.boxes.shared_boxes` gives the boxes, and
    :func:`fastequi.data.views.boxes.turn_boxes` their places in turned crops.

    Args:
        student: [S, B, h, w, C] maps of S views of B images; floating. Needs no normalisation.
        teacher: [T, B, H, W, C] maps of T views; gets no gradient.
        student_boxes: [P, B, 4] of every pair, (x0, y0, x1, y1) within the student's crop as its
            network saw it, turned or not. What lies beyond the crop is cut off.
        teacher_boxes: [P, B, 4] the same region within the teacher's crop.
        turns: [P, B] integers: quarter turns counter-clockwise that bring the teacher's region into
            the student's orientation, the difference of their crops' turns. Taken modulo 4.
        bins: n, along each side.
        scale: cells of the maps per unit of the boxes; 1 / 16 for pixels and patches of 16.
        pairs: P times (student's view, teacher's view); None pairs view i with view i.

    Returns:
        A float32 scalar (float64 for float64 maps), the mean over pairs, images and bins.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, x)
        if x.ndim != 5 or 0 in x.shape[2:]:
            raise ValueError(f"{name}: expected [views, B, height, width, C], got {tuple(x.shape)}")
    batch, channels = student.shape[1], student.shape[4]
    if teacher.shape[1] != batch or teacher.shape[4] != channels:
        raise ValueError(
            f"teacher: expected [views, {batch}, height, width, {channels}], "
            f"got {tuple(teacher.shape)}"
        )
    chosen = _pairs(student, teacher, pairs)
    shape = (len(chosen), batch)
    for name, boxes in (("student_boxes", student_boxes), ("teacher_boxes", teacher_boxes)):
        checks.check_floating(name, boxes)
        if boxes.shape != (*shape, 4):
            raise ValueError(f"{name}: expected {[*shape, 4]}, got {tuple(boxes.shape)}")
    if turns.shape != shape or turns.is_floating_point() or turns.dtype == torch.bool:
        raise ValueError(
            f"turns: expected integers {[*shape]}, got {turns.dtype} {tuple(turns.shape)}"
        )
    if bins < 1:
        raise ValueError(f"bins: expected >= 1, got {bins}")
    if scale <= 0:
        raise ValueError(f"scale: expected > 0, got {scale}")
    checks.same_device(
        student,
        teacher=teacher,
        student_boxes=student_boxes,
        teacher_boxes=teacher_boxes,
        turns=turns,
    )
    where = _crop_align.Regions(student_boxes, teacher_boxes, turns)
    like = teacher.to(student.dtype)
    return _crop_align.crop_align_loss(student, like, where, _flat(chosen), bins, scale)


def correspondence_loss(
    student: Tensor, teacher: Tensor, *, top: int, pairs: Pairs | None = None
) -> Tensor:
    """Negative cosine of the patches that match best, from student to teacher and back.

    Every student patch finds the nearest teacher patch, the `top` best of those matches count; the
    same the other way round; the mean of both. Since a match is a maximum this is::

        cosine = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT
        forth = cosine.amax(-1).topk(top, -1).values.mean()
        back = cosine.amax(-2).topk(top, -1).values.mean()
        loss = -(forth + back) / 2

    The similarities are never stored. (Kim et al., GTSA, arXiv 2304.08014: 98 of 196 patches of
    global crops, 18 of 36 of local ones.)

    Args:
        student: [S, ..., M, C] patch features of S views; floating. Normalised here.
        teacher: [T, ..., N, C] patch features of T views; gets no gradient.
        top: matches that count in each direction, 1 .. min(M, N).
        pairs: (student's view, teacher's view), any number of them, so that no view has to be
            copied for its pairs; None pairs all leading indices one to one.

    Returns:
        A float32 scalar (float64 for float64 features), the mean over pairs and images.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    for name, x in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, x)
        if x.ndim < 2 + (pairs is not None):
            views = "views, " if pairs is not None else ""
            raise ValueError(f"{name}: expected [{views}..., patches, C], got {tuple(x.shape)}")
    if pairs is None:
        student, teacher = student[None], teacher[None]
    lead, channels = student.shape[1:-2], student.shape[-1]
    if teacher.shape[1:-2] != lead or teacher.shape[-1] != channels:
        views = "" if pairs is None else "views, "
        raise ValueError(
            f"teacher: expected [{views}{', '.join(map(str, lead))}, N, {channels}], "
            f"got {tuple(teacher.shape[pairs is None :])}"
        )
    most = min(student.shape[-2], teacher.shape[-2])
    if not 1 <= top <= most:
        raise ValueError(f"top: expected 1 .. {most}, got {top}")
    chosen = [(0, 0)] if pairs is None else _pairs(student, teacher, pairs)
    checks.same_device(student, teacher=teacher)
    with torch.autocast(student.device.type, enabled=False):
        # float16's rounding would decide between matches; bfloat16 was asked for with its products
        dtype = torch.float32 if student.dtype == torch.float16 else student.dtype
        wide = torch.promote_types(dtype, torch.float32)
        unit = [F.normalize(x.to(wide), dim=-1).to(dtype) for x in (student, teacher)]
        rows = [x.reshape(len(x), -1, *x.shape[-2:]) for x in unit]
        return _correspondence.correspondence_loss(rows[0], rows[1], _flat(chosen), top)


def _pairs(student: Tensor, teacher: Tensor, pairs: Pairs | None) -> list[tuple[int, int]]:
    """The pairs of views, checked against the views there are."""
    views = len(student), len(teacher)
    if pairs is None:
        if views[0] != views[1]:
            raise ValueError(f"teacher: expected {views[0]} views without pairs, got {views[1]}")
        return [(view, view) for view in range(views[0])]
    chosen = [(int(s), int(t)) for s, t in pairs]
    if not chosen or any(not (0 <= s < views[0] and 0 <= t < views[1]) for s, t in chosen):
        raise ValueError(
            f"pairs: expected (student's, teacher's view) below {views[0]} and {views[1]}, "
            f"got {chosen}"
        )
    return chosen


def _flat(pairs: list[tuple[int, int]]) -> list[int]:
    return [view for pair in pairs for view in pair]
