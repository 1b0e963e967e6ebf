"""Gram anchoring by a library's matrix products, a panel of differences at a time.

A difference is the same for both its rows, so a block of rows meets itself and the rows behind it
alone: half of the products of similarities. On a CPU a panel stays in the caches, and C makes the
rows unit (unit_rows.c).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastequi.kernels import native_unit_rows
from fastequi.kernels.backend import use_native

PANEL = 1 << 18  # differences at a time on a CPU: 1 MB
GPU_PANEL = 1 << 26  # 256 MB: launches that are longer than the host's time to start them
_LEAST, _MOST = 64, 256  # rows of a block on a CPU: thinner products are slow, thicker ones double


def by_panels(
    student: Tensor, teacher: Tensor, clamp: str, eps: float, factor: float, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """(Σ d² of every image [B], d Σ d²/d student times `factor` / 4 or None)."""
    images, count, width = student.shape
    in_c = use_native(student) and native_unit_rows.reads(student, teacher)
    unit = _unit_in_c if in_c else _unit
    dtype = torch.promote_types(student.dtype, torch.float32)
    sums = torch.zeros(images, dtype=dtype, device=student.device)
    out = empty_gradient(student) if grad else None
    if not student.numel():
        return sums, out
    at_once, step = _sizes(count, width, student.is_cuda)
    scratch = sums.new_empty(1 if clamp == "none" else 2, at_once * step * count)
    for first in range(0, images, at_once):
        part = slice(first, first + at_once)
        x, y, back = unit(student[part], teacher[part], eps)
        by_x = torch.empty_like(x) if grad else None
        for start in range(0, count, step):
            sums[part] += _block(x, y, slice(start, start + step), clamp, scratch, by_x)
        if out is not None and by_x is not None:
            back(by_x, factor, out[part])
    return sums, out


def _sizes(count: int, width: int, cuda: bool) -> tuple[int, int]:
    """(images, rows of each) whose differences make a panel."""
    entries = GPU_PANEL if cuda else PANEL
    step = max(entries // count, _LEAST)
    step = min(step if cuda else min(step, _MOST), count)
    return max(entries // (max(step, width // 4) * count), 1), step


def _block(
    x: Tensor, y: Tensor, own: slice, clamp: str, scratch: Tensor, by_x: Tensor | None
) -> Tensor:
    """Σ d² [B] of some rows of unit rows [B, N, ·] with those from their first one on.

    Adds what these differences add to d (Σ d² / 4)/d x, or writes it from the first rows on.
    """
    ours, behind = x[:, own], x[:, own.start :]
    images, height, rest = *ours.shape[:2], behind.shape[1] - ours.shape[1]
    shape = images, height, height + rest
    d, *other = (buffer[: images * height * shape[2]].view(shape) for buffer in scratch)
    torch.bmm(ours, behind.mT, out=d)
    held = None
    if clamp == "none":
        d.baddbmm_(y[:, own], y[:, own.start :].mT, alpha=-1)
    else:
        torch.bmm(y[:, own], y[:, own.start :].mT, out=other[0])
        held = _clamp(d, other[0], clamp)
    total = _squares(d[:, :, :height])
    if rest:
        total += 2 * _squares(d[:, :, height:])
    if by_x is None:
        return total
    if held is not None:
        d.masked_fill_(held, 0)
    beta = 0 if own.start == 0 else 1
    by_x[:, own].baddbmm_(d, behind, beta=beta)
    if rest:
        by_x[:, own.stop :].baddbmm_(d[:, :, height:].mT, ours, beta=beta)
    return total


def _squares(d: Tensor) -> Tensor:
    return torch.linalg.vector_norm(d, dim=2).square().sum(1)


def _clamp(s: Tensor, t: Tensor, clamp: str) -> Tensor | None:
    """Makes s the difference of what `clamped` gives; where it does not depend on s, if it may."""
    if clamp == "teacher":
        s.masked_fill_((s < 0) & (t < 0), 0).sub_(t.clamp_min_(0))
        return None
    held = s < 0
    s.clamp_min_(0).sub_(t.clamp_min_(0))
    return held


def clamped(s: Tensor, t: Tensor, clamp: str) -> tuple[Tensor, Tensor]:
    """Similarities of student and teacher without negative ones, as `gram_loss` describes it."""
    if clamp == "both":
        return s.masked_fill(s < 0, 0), t.masked_fill(t < 0, 0)
    if clamp == "teacher":
        return s.masked_fill((s < 0) & (t < 0), 0), t.masked_fill(t < 0, 0)
    return s, t


def empty_gradient(student: Tensor) -> Tensor:
    """Dense; float32 for float16, where a mean's gradient would vanish before a loss scale."""
    dtype = torch.float32 if student.dtype == torch.float16 else student.dtype
    return torch.empty_like(student, dtype=dtype, memory_format=torch.contiguous_format)


Back = Callable[[Tensor, float, Tensor], None]


def _unit(student: Tensor, teacher: Tensor, eps: float) -> tuple[Tensor, Tensor, Back]:
    """(unit rows of both, what turns the gradient by the student's into that by the student).

    That one takes the gradient by unit rows, a factor and where the result is written.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    (x, norm), (y, _) = (_divided(z.to(wide), eps) for z in (student, teacher))

    def back(by_x: Tensor, factor: float, out: Tensor) -> None:
        along = (by_x * x).sum(2, keepdim=True).masked_fill_(norm < eps, 0)
        out.copy_((by_x - along * x) * (factor / norm.clamp_min(eps)))

    return x, y, back


def _divided(z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(z, dim=2, keepdim=True)
    return z / norm.clamp_min(eps), norm


def _unit_in_c(student: Tensor, teacher: Tensor, eps: float) -> tuple[Tensor, Tensor, Back]:
    flat = [z.flatten(0, 1) for z in (student, teacher)]
    if student.shape == teacher.shape:
        both = native_unit_rows.unit_rows(flat, eps, False)
        n = len(flat[0])
        ours = both._replace(z=both.z[:1], unit=both.unit[:n], inverse=both.inverse[:n])
        y = both.unit[n:]
    else:
        ours, theirs = (native_unit_rows.unit_rows((z,), eps, False) for z in flat)
        y = theirs.unit
    x = ours.unit

    def back(by_x: Tensor, factor: float, out: Tensor) -> None:
        into = [out.flatten(0, 1)]
        native_unit_rows.unit_rows_grad(ours, by_x.flatten(0, 1), factor, into)

    return x.view(student.shape), y.view(teacher.shape), back
