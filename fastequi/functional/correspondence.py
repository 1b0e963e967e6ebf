"""GTSA's patch correspondence: the patches of two crops that match best."""

from __future__ import annotations

from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.functional.view_pairs import Pairs, as_option, flat, view_pairs
from fastequi.kernels import correspondence_features as _features
from fastequi.kernels.precision import autocast_off, widened
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


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
        student: [S, ..., M, C] patch features of S views; floating. Normalised here. Of half
            precision the unit rows are rounded to it, as under autocast: where two matches are
            nearly as good, the other one may count, and get the gradient.
        teacher: [T, ..., N, C] patch features of T views; gets no gradient.
        top: matches that count in each direction, 1 .. min(M, N).
        pairs: (student's view, teacher's view), any number of them, so that no view has to be
            copied for its pairs; None pairs all leading indices one to one.

    Returns:
        A float32 scalar (float64 for float64 features), the mean over pairs and images.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    student, teacher = widened(student, teacher)
    key, again = _CALLS.find((student, teacher), (top, as_option(pairs)))
    if again is not None:
        return again(student, teacher)
    for name, x in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, x)
        if x.ndim < 2 + (pairs is not None) or 0 in x.shape[-2:]:
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
    top = arguments.integer("top", top, most=min(student.shape[-2], teacher.shape[-2]))
    chosen = [(0, 0)] if pairs is None else view_pairs(student, teacher, pairs)
    checks.same_device(student=student, teacher=teacher)
    given = student, teacher, flat(chosen), top
    if (run := _features.prepared(*given)) is not None:
        return (run if key is None else _CALLS.keep(key, run))(student, teacher)
    with autocast_off(student.device):
        return _features.features_loss(*given)
