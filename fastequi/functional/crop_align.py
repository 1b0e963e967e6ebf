"""GTSA's crop loss: what two crops of an image share has the same features."""

from __future__ import annotations

from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.functional.view_pairs import Pairs, as_option, flat, view_pairs
from fastequi.kernels import crop_align as _crop_align
from fastequi.kernels.precision import widened
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


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
            network saw it, turned or not. What lies beyond the crop is cut off. Boxes are not
            looked at: x0 < x1, y0 < y1 and some of a box within its crop are taken for granted.
        teacher_boxes: [P, B, 4] the same region within the teacher's crop. Boxes get no gradient.
        turns: [P, B] integers: quarter turns counter-clockwise that bring the teacher's region into
            the student's orientation, the difference of their crops' turns. Taken modulo 4.
        bins: n, along each side. Each is the mean of bilinear samples, along a side as many as it
            has cells, rounded up (torchvision's `sampling_ratio=-1`, `aligned=True`; a side may be
            a thousandth of a cell longer, so that no rounding decides).
        scale: cells of the maps per unit of the boxes; 1 / 16 for pixels and patches of 16.
        pairs: P times (student's view, teacher's view); None pairs view i with view i.

    Returns:
        A float32 scalar (float64 for float64 maps), the mean over pairs, images and bins.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    student, teacher = widened(student, teacher)
    given = student, teacher, student_boxes, teacher_boxes, turns
    key, again = _CALLS.find(given, (bins, scale, as_option(pairs)))
    if again is not None:
        return again(*given)
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
    chosen = view_pairs(student, teacher, pairs)
    shape = (len(chosen), batch)
    for name, boxes in (("student_boxes", student_boxes), ("teacher_boxes", teacher_boxes)):
        checks.check_floating(name, boxes)
        if boxes.shape != (*shape, 4):
            raise ValueError(f"{name}: expected {[*shape, 4]}, got {tuple(boxes.shape)}")
    checks.check_integers("turns", turns)
    if turns.shape != shape:
        raise ValueError(f"turns: expected integers {[*shape]}, got {tuple(turns.shape)}")
    bins = arguments.integer("bins", bins)
    scale = arguments.number("scale", scale, above=0)
    checks.same_device(
        student=student,
        teacher=teacher,
        student_boxes=student_boxes,
        teacher_boxes=teacher_boxes,
        turns=turns,
    )
    where = _crop_align.Regions(student_boxes.detach(), teacher_boxes.detach(), turns)
    pooling = _crop_align.Pooling(flat(chosen), bins, scale)
    if key is not None:
        again = _crop_align.prepared(student, teacher, where, pooling)
        if again is not None:
            return _CALLS.keep(key, again)(*given)
    like = teacher.to(student.dtype)
    return _crop_align.crop_align_loss(student, like, where, pooling)
