"""Self-distillation: cross-entropy of a student's logits against a teacher's distribution.

DINO (Caron et al., ICCV 2021), iBOT (Zhou et al., ICLR 2022), DINOv2 (Oquab et al., TMLR 2024).
Logits come from the prototype layer, before any temperature. The teacher gets no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.functional import arguments, checks, distributed
from fastequi.kernels import dino as _dino
from fastequi.kernels import linear_dino as _linear
from fastequi.kernels import sinkhorn as _sinkhorn
from fastequi.kernels.constants import kept
from fastequi.kernels.precision import is_widened, linear_dtype, widened
from fastequi.kernels.prepared import Again, Calls

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastequi.functional.distributed import Group

TARGETS = ("softmax", "sinkhorn")
_DINO, _IBOT = Calls(), Calls()
MOST_ITERATIONS = 10_000  # one call of C, which Ctrl-C waits for
MOST_TEMP = 1e6  # all prototypes are even long before; from 1e37 on C's float32 overflows


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    prototypes: Tensor | None = None,
    teacher_prototypes: Tensor | None = None,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    targets: str = "softmax",
    iterations: int = 3,
    group: Group = None,
    inplace: bool = False,
) -> Tensor:
    r"""Mean cross-entropy over all pairs of a student's and another teacher's view.

    Equals, without its intermediates::

        q = F.softmax((teacher - center) / teacher_temp, -1)
        pairs = [(t, s) for t in range(T) for s in range(S) if s != t]
        loss = mean(-(q[t] * F.log_softmax(student[s] / student_temp, -1)).sum(-1).mean()
                    for t, s in pairs)

    Given both layers' weights, the rows that enter the layers take the logits' place::

        dino_loss(student, teacher, prototypes=w, teacher_prototypes=v) is
        dino_loss(student @ w.T, teacher @ v.T)

    in value and gradient, but some prototypes at a time: the logits are never stored whole, for two
    more matrix products. DINO's head normalises both factors first: `F.normalize` of rows and
    prototypes.

    Args:
        student: [S, B, N] logits, the global views first, as many as the teacher has; floating.
            With prototypes [S, B, C] rows.
        teacher: [T, B, N] logits of the global views, T <= S; with prototypes [T, B, C] rows.
        prototypes, teacher_prototypes: [N, C] weights of the last layers, in the rows' type
            (autocast sees to that); both or neither.
        student_temp, teacher_temp: temperatures, > 0 and at most 1e6.
        center: [N] subtracted from the teacher's logits, for targets="softmax".
        targets: "softmax", or "sinkhorn": Sinkhorn-Knopp over all T·B rows, as in DINOv2.
        iterations: of Sinkhorn-Knopp, 1 to 10,000.
        group: the processes whose rows are balanced together by Sinkhorn-Knopp: "world" for all, or
            some of them; None: this one alone. The mean is over this process's images, as
            data-parallel training wants it.
        inplace: the gradient takes the memory of `student`, whose values are then gone; autograd
            raises if anything else kept them. Not with prototypes, whose logits are not stored, nor
            where the teacher's logits share the student's memory.

    Returns:
        A float32 scalar (float64 for float64 inputs). Gradients go to `student` and `prototypes`.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    group = distributed.current(group)
    settings = student_temp, teacher_temp, targets, iterations, group, inplace
    layers = prototypes, teacher_prototypes
    if prototypes is None and not inplace:
        student, teacher = widened(student, teacher)
    key, again = _DINO.find((student, teacher, center, *layers), settings)
    if again is not None:
        return again(student, teacher, center, None, *layers)
    student, teacher, layers = _checked(student, teacher, layers, 3)
    _check_views(student, teacher)
    options = _options(student_temp, teacher_temp, center, targets, iterations, group, inplace)
    views, teachers, batch = len(student), len(teacher), student.shape[1]
    pairs = _dino.pairs_of(views, teachers, batch, student.device)
    weight = _even(student, views, teachers, batch)
    given = student, teacher, center, None, *layers
    if key and (in_c := _prepared(student, teacher, layers, pairs, weight, False, options)):
        return _DINO.keep(key, in_c)(*given)
    if key and _few(student, teacher, layers) and not inplace:
        return _DINO.keep(key, functools.partial(_of_few, dino_loss, options))(*given)
    return _cross_entropy(student, teacher, layers, pairs, weight, None, options)


def ibot_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    weight: Tensor | None = None,
    prototypes: Tensor | None = None,
    teacher_prototypes: Tensor | None = None,
    student_temp: float = 0.1,
    teacher_temp: float = 0.04,
    center: Tensor | None = None,
    targets: str = "softmax",
    iterations: int = 3,
    group: Group = None,
    inplace: bool = False,
) -> Tensor:
    """Weighted sum over rows of the cross-entropy with the same row of the teacher.

    Masked image modelling: rows are patch tokens, and the weight of a token that was masked is
    1 / (masked tokens of its image · images). Rows of weight 0 are not read, so logits of all
    tokens may be given, with weight=mask / mask.sum() for one mean over all; there is nothing to
    gather.

    Args:
        student, teacher: [..., N] logits of the same shape; with prototypes [..., C] rows.
        weight: [...] float, 0 for tokens that do not count; by default 1 / rows for all.
        prototypes, teacher_prototypes, student_temp, teacher_temp, center, targets, iterations,
            group, inplace: as in :func:`dino_loss`. Sinkhorn-Knopp balances the rows that count.

    Returns:
        A float32 scalar (float64 for float64 inputs). Gradients go to `student` and `prototypes`.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    group = distributed.current(group)
    settings = student_temp, teacher_temp, targets, iterations, group, inplace
    layers = prototypes, teacher_prototypes
    if prototypes is None and weight is None and not inplace:
        student, teacher = widened(student, teacher)
    key, again = _IBOT.find((student, teacher, center, weight, *layers), settings)
    if again is not None:
        return again(student, teacher, center, weight, *layers)
    student, teacher, layers = _checked(student, teacher, layers, None)
    _check_rows(student, teacher, weight)
    options = _options(student_temp, teacher_temp, center, targets, iterations, group, inplace)
    if weight is not None and prototypes is None and not inplace and is_widened(student):
        counts, given = weight.flatten() != 0, (student.flatten(0, -2), teacher.flatten(0, -2))
        some = widened(*(rows[counts] for rows in given))
        return ibot_loss(*some, weight=weight.flatten()[counts], **options._asdict())
    each = _each(student, weight)
    pairs = _dino.own_pairs(each.shape[0], student.device)
    if (
        key
        and _plain(weight)
        and (in_c := _prepared(student, teacher, layers, pairs, each, True, options))
    ):
        return _IBOT.keep(key, in_c)(student, teacher, center, weight, *layers)
    if key and _few(student, teacher, layers) and not inplace:
        again = functools.partial(_of_few, ibot_loss, options)
        return _IBOT.keep(key, again)(student, teacher, center, weight, *layers)
    return _cross_entropy(student, teacher, layers, pairs, each, each, options)


class _Options(NamedTuple):
    """Arguments of :func:`dino_loss` of these names."""

    student_temp: float
    teacher_temp: float
    center: Tensor | None
    targets: str
    iterations: int
    group: ProcessGroup | None
    inplace: bool


def _options(
    student_temp: float,
    teacher_temp: float,
    center: Tensor | None,
    targets: str,
    iterations: int,
    group: ProcessGroup | None,
    inplace: bool,
) -> _Options:
    """The same, checked as far as they can be without the rows."""
    arguments.one_of("targets", targets, TARGETS)
    arguments.flags(inplace=inplace)
    distributed.check_group(group)
    if center is not None:
        checks.check_floating("center", center)
        if targets == "sinkhorn":
            raise ValueError("center: Sinkhorn-Knopp centres by itself, leave it out")
    return _Options(
        arguments.number("student_temp", student_temp, above=0, most=MOST_TEMP),
        arguments.number("teacher_temp", teacher_temp, above=0, most=MOST_TEMP),
        center,
        targets,
        arguments.integer("iterations", iterations, most=MOST_ITERATIONS),
        group,
        inplace,
    )


def _prepared(
    student: Tensor,
    teacher: Tensor,
    layers: _Weights,
    pairs: Tensor,
    weight: Tensor,
    weighted: bool,
    options: _Options,
) -> Again | None:
    """What to call for tensors like these, once they have been checked; None for most options.

    `weighted`: Sinkhorn-Knopp balances the rows that have a weight.
    """
    if layers[0] is not None or options.inplace or options.group is not None:
        return None
    iterations, column = options.iterations, None
    if options.targets == "softmax":
        iterations = 0
        _, column = _distribution(teacher.flatten(0, -2).detach(), None, None, options)
    temps = options.student_temp, options.teacher_temp
    target = _dino.DINOTarget(pairs, weight, None, column, *temps)
    in_c = _dino.prepared(student, teacher, target, iterations, weighted)
    return None if in_c is None else lambda *given: in_c(*given[:4])


def _few(student: Tensor, teacher: Tensor, layers: _Weights) -> bool:
    """Whether the logits of rows and layers are so few that they may as well be stored."""
    if layers[0] is None or student.device.type != "cpu":
        return False
    rows = student.shape[:-1].numel() + teacher.shape[:-1].numel()
    fits = rows * len(layers[0]) * student.element_size() <= _FEW_BYTES
    return fits and student.dtype in (torch.float32, torch.bfloat16) and student.numel() > 0


def _of_few(
    loss: Callable[..., Tensor],
    options: _Options,
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    weight: Tensor | None,
    prototypes: Tensor,
    teacher_prototypes: Tensor,
) -> Tensor:
    """A loss of rows and layers by their logits, whose gradient goes through F.linear's."""
    weights = {} if weight is None else {"weight": weight}
    student = student if weight is None else _dino.counted_rows(student, weight)
    with torch.no_grad():
        theirs = F.linear(teacher, teacher_prototypes)
    ours = F.linear(student, prototypes)
    return loss(ours, theirs, **weights, **{**options._asdict(), "center": center})


_FEW_BYTES = 1 << 20


def _plain(weight: Tensor | None) -> bool:
    """Whether C reads the weights of rows where they lie; not to be asked under a compiler."""
    return weight is None or (
        weight.dtype == torch.float32 and weight.is_contiguous() and not weight.is_neg()
    )


_Weights = tuple[Tensor | None, Tensor | None]  # of the student's and the teacher's layer


def _cross_entropy(
    student: Tensor,
    teacher: Tensor,
    layers: _Weights,
    pairs: Tensor,
    weight: Tensor,
    balanced: Tensor | None,
    options: _Options,
) -> Tensor:
    """Σ_r weight[r] Σ_t CE(q_t, student_r); `balanced`: weights of Sinkhorn-Knopp's rows."""
    prototypes, teacher_prototypes = layers
    inplace = options.inplace
    if inplace and prototypes is not None:
        raise ValueError("inplace: with prototypes no logits are stored, leave it out")
    if inplace and student.requires_grad and student.is_leaf:
        raise ValueError("inplace: student is a leaf of the graph, whose values must stay")
    student, rows = student.flatten(0, -2), teacher.flatten(0, -2).detach()
    if inplace and checks.share_memory(student, rows):
        raise ValueError("inplace: teacher shares the student's memory, which is overwritten")
    if inplace and options.center is not None and checks.share_memory(student, options.center):
        raise ValueError("inplace: center shares the student's memory, which is overwritten")
    row, column = _distribution(rows, teacher_prototypes, balanced, options)
    temps = options.student_temp, options.teacher_temp
    target = _dino.DINOTarget(pairs, weight, row, column, *temps)
    if prototypes is None or teacher_prototypes is None:
        return _dino.dino_loss(student, rows, target, inplace)
    given = _linear.Layers(student, prototypes, rows, teacher_prototypes)
    return _linear.linear_dino_loss(given, target)


@torch.no_grad()
def _distribution(
    rows: Tensor, layer: Tensor | None, weight: Tensor | None, options: _Options
) -> tuple[Tensor | None, Tensor | None]:
    """What makes exp((logits - column - row) / temp) the teacher's distribution: (row, column).

    The logits are the rows, or their products with a layer's weight.
    """
    _, temp, center, targets, iterations, group, _ = options
    if targets == "softmax":
        width = rows.shape[1:] if layer is None else layer.shape[:1]
        if center is not None and center.shape != width:
            raise ValueError(f"center: expected {tuple(width)}, got {tuple(center.shape)}")
        checks.same_device(student=rows, center=center)
        return None, None if center is None else center.detach().to(_wide(rows))
    across = None  # of one process an iteration takes one pass over the logits
    if group is not None and group.size() > 1:
        across = functools.partial(distributed.all_reduce_logsumexp, temp=temp, group=group)
    shared = temp, iterations, across, weight
    if layer is None:
        return _sinkhorn.sinkhorn(rows, *shared)
    return _linear.linear_sinkhorn(rows, layer.detach(), *shared)


def _wide(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _even(student: Tensor, views: int, teachers: int, batch: int) -> Tensor:
    """[S·B] weights that make the sum over all pairs of different views their mean."""
    pairs = views * teachers - teachers
    weight = 1 / max(pairs * batch, 1)
    return _filled(views * batch, weight, _wide(student), student.device)


@kept
def _filled(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((size,), value, dtype=dtype, device=device)


def _each(student: Tensor, weight: Tensor | None) -> Tensor:
    """[R] weights of rows [..., N]: those given, or those of the mean."""
    if weight is not None:
        return weight.detach().to(_wide(student)).flatten()
    rows = student.flatten(0, -2).shape[0]
    return _filled(rows, 1 / max(rows, 1), _wide(student), student.device)


def _checked(
    student: Tensor,
    teacher: Tensor,
    layers: _Weights,
    ndim: int | None,
) -> tuple[Tensor, Tensor, _Weights]:
    """Rows and weights in the type that they are multiplied in."""
    if (layers[0] is None) != (layers[1] is None):
        raise ValueError("prototypes, teacher_prototypes: expected both or neither")
    last = "N" if layers[0] is None else "C"
    for name, tensor in (("student", student), ("teacher", teacher)):
        checks.check_floating(name, tensor)
        if tensor.ndim < 2 or (ndim is not None and tensor.ndim != ndim):
            what = f"[views, B, {last}]" if ndim else f"[..., {last}]"
            raise ValueError(f"{name}: expected {what}, got {tuple(tensor.shape)}")
    checks.same_device(student=student, teacher=teacher)
    if layers[0] is None or layers[1] is None:
        return student, teacher, layers
    return _checked_layers(student, teacher, layers[0], layers[1])


def _checked_layers(
    student: Tensor, teacher: Tensor, prototypes: Tensor, teacher_prototypes: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    width = student.shape[-1]
    for name, layer in (("prototypes", prototypes), ("teacher_prototypes", teacher_prototypes)):
        checks.check_floating(name, layer)
        if layer.ndim != 2 or layer.shape[1] != width or len(layer) < 1:
            raise ValueError(f"{name}: expected [N, {width}], N >= 1, got {tuple(layer.shape)}")
    if prototypes.shape != teacher_prototypes.shape:
        raise ValueError(
            f"teacher_prototypes: expected {tuple(prototypes.shape)} as prototypes, "
            f"got {tuple(teacher_prototypes.shape)}"
        )
    checks.same_device(
        student=student, prototypes=prototypes, teacher_prototypes=teacher_prototypes
    )
    for name, rows, layer in (
        ("prototypes", student, prototypes),
        ("teacher_prototypes", teacher, teacher_prototypes),
    ):
        if linear_dtype(layer) != linear_dtype(rows):
            raise TypeError(f"{name}: expected the rows' {rows.dtype}, got {layer.dtype}")
    given = student, teacher, prototypes, teacher_prototypes
    student, teacher, *layers = (tensor.to(linear_dtype(tensor)) for tensor in given)
    return student, teacher, (layers[0], layers[1])


def _check_views(student: Tensor, teacher: Tensor) -> None:
    views, batch, width = student.shape
    if student.shape[1:] != teacher.shape[1:] or not 1 <= len(teacher) <= views:
        raise ValueError(
            f"teacher: expected [T, {batch}, {width}] with 1 <= T <= {views} views, "
            f"got {tuple(teacher.shape)}"
        )
    if views == len(teacher) == 1:
        raise ValueError("student: expected a view that the teacher does not have, got one alone")


def _check_rows(student: Tensor, teacher: Tensor, weight: Tensor | None) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )
    if weight is not None:
        if getattr(weight, "dtype", None) is torch.bool:
            raise TypeError(
                "weight: expected floats, got torch.bool; of a mask the mean over its rows is "
                "weight=mask / mask.sum()"
            )
        checks.check_floating("weight", weight)
        checks.same_device(student=student, weight=weight)
        if weight.shape != student.shape[:-1]:
            raise ValueError(
                f"weight: expected {tuple(student.shape[:-1])}, got {tuple(weight.shape)}"
            )
        if weight.requires_grad:
            raise ValueError("weight: expected none that requires a gradient; it gets none")
