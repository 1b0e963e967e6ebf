"""GTSA's crop loss: RoIAlign of two maps over what two crops share, one turned, and their cosine.

Replaces, for every pair p = (s, t) of a student's and a teacher's view and every image b::

    ours = roi_align(student[s], student_boxes[p], bins, aligned=True)     # [B, C, bins, bins]
    theirs = roi_align(teacher[t], teacher_boxes[p], bins, aligned=True)
    theirs = rot90(theirs, turns[p], each image by its own)
    loss = -cosine_similarity(ours, theirs, dim=1).mean()

The pooling is that of `roi_align.py`, and a turn is another order of the bins. A map of height h
and width w has its patches as rows [h·w, C], as a ViT gives them.

Never materialised: the maps of each pair, turned or not, pooled features (without a gradient). The
gradient by the pooled student features [P, B, bins², C] is stored, since a view's map gathers those
of all its pairs: (Wy ⊗ Wx)ᵀ, again a matrix product. No atomics, the same bits in every run.

Bytes: the boxes' rows of both maps, twice with a gradient (the second time from the L2 cache), the
pooled gradient written and read, the maps' gradient written. A program has some channels of a pair
of one image, so that few pairs keep a GPU busy too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native, native_crop_align
from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import (
    INTERPRETED,
    say_type,
    tl,
    transformed,
    triton,
    use_native,
    use_triton,
)
from fastequi.kernels.constants import constants
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.roi_align import (
    bin_hats,
    bin_samples,
    first_row,
    pool_bins,
    pooled,
    roi_box,
    roi_weights,
)

_EPS = 1e-8  # of norms, as F.cosine_similarity has it


class Regions(NamedTuple):
    """What P pairs of views of B images have in common.

    Attributes:
        own, other: [P, B, 4] boxes within the student's and the teacher's view.
        turns: [P, B] quarter turns counter-clockwise from the teacher's to the student's.
    """

    own: Tensor
    other: Tensor
    turns: Tensor


class Pooling(NamedTuple):
    """Which views are compared, and how their maps are pooled.

    Attributes:
        pairs: P times the student's view and the teacher's, one after the other.
        bins: along each side of a box.
        scale: cells of the maps per unit of the boxes.
    """

    pairs: Sequence[int]
    bins: int
    scale: float


@triton.jit
def _turned(row, column, turn, bins: tl.constexpr):
    # the bin of the unturned grid that ends at (row, column)
    last = bins - 1
    from_row = tl.where(turn == 0, row, tl.where(turn == 1, column, last - row))
    from_row = tl.where(turn == 3, last - column, from_row)
    from_column = tl.where(turn == 0, column, tl.where(turn == 1, last - row, last - column))
    from_column = tl.where(turn == 3, row, from_column)
    return from_row, from_column


@triton.jit
def crop_align_kernel(
    # pointers
    student_ptr,
    teacher_ptr,
    student_boxes_ptr,
    teacher_boxes_ptr,
    turns_ptr,
    pairs_ptr,
    sums_ptr,
    pooled_ptr,
    # shapes
    P,
    B,
    H,
    W,
    HT,
    WT,
    C,
    # strides
    stride_sv,
    stride_sb,
    stride_sm,
    stride_tv,
    stride_tb,
    stride_tm,
    # constants
    scale,
    weight,
    BINS: tl.constexpr,
    MOST: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_XT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # Some channels of s, t [o, c], ours and theirs pooled.
    # First: sums[block, :, p, b, o] = Σ_c s·t, s·s, t·t of these channels.
    # With the sums over all channels: pooled = weight · (t / |s||t| - cos · s / |s|²).
    p = tl.program_id(0) % P  # the pairs of an image follow each other: its maps stay in the cache
    b = (tl.program_id(0) // P).to(tl.int64)
    place = p * B + b
    student_ptr += tl.load(pairs_ptr + 2 * p) * stride_sv + b * stride_sb
    teacher_ptr += tl.load(pairs_ptr + 2 * p + 1) * stride_tv + b * stride_tb
    ours = roi_box(student_boxes_ptr, place, scale, H, W)
    theirs = roi_box(teacher_boxes_ptr, place, scale, HT, WT)
    o = tl.arange(0, BLOCK_O)
    row, column = o // BINS, o % BINS
    row_t, column_t = _turned(row, column, tl.load(turns_ptr + place) & 3, BINS)
    row, row_t = row.to(tl.float32), row_t.to(tl.float32)
    cells = tl.arange(0, BLOCK_X).to(tl.float32)[None, :]
    width, count = bin_samples(ours[0], ours[2], BINS)
    wx = bin_hats(column.to(tl.float32)[:, None], cells, ours[0], width, count, W, MOST)
    cells = tl.arange(0, BLOCK_XT).to(tl.float32)[None, :]
    width, count = bin_samples(theirs[0], theirs[2], BINS)
    wxt = bin_hats(column_t.to(tl.float32)[:, None], cells, theirs[0], width, count, WT, MOST)

    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = pool_bins(
        student_ptr, stride_sm, row, wx, c, C, ours, H, W,
        BINS, BLOCK_O, BLOCK_X, BLOCK_C, MOST, PRECISION, WIDEN,
    )  # fmt: skip
    t = pool_bins(
        teacher_ptr, stride_tm, row_t, wxt, c, C, theirs, HT, WT,
        BINS, BLOCK_O, BLOCK_XT, BLOCK_C, MOST, PRECISION, WIDEN,
    )  # fmt: skip
    inside = o < BINS * BINS
    sums_ptr += place * BINS * BINS + o
    each = P * B * BINS * BINS
    if not GRAD:
        sums_ptr += tl.program_id(1) * 3 * each
        tl.store(sums_ptr, tl.sum(s * t, 1), mask=inside)
        tl.store(sums_ptr + each, tl.sum(s * s, 1), mask=inside)
        tl.store(sums_ptr + 2 * each, tl.sum(t * t, 1), mask=inside)
    else:
        both = tl.load(sums_ptr, mask=inside, other=0.0)
        norm_s = tl.load(sums_ptr + each, mask=inside, other=0.0)
        norm_t = tl.load(sums_ptr + 2 * each, mask=inside, other=0.0)
        length = tl.maximum(tl.sqrt(norm_s), 1e-8)  # _EPS
        lengths = length * tl.maximum(tl.sqrt(norm_t), 1e-8)
        of_t = weight / lengths
        of_s = tl.where(norm_s > 1e-16, weight * (both / lengths) / (length * length), 0.0)
        pooled = of_t[:, None] * t - of_s[:, None] * s
        tl.store(
            pooled_ptr + (place * BINS * BINS + o[:, None]) * C + c[None, :],
            pooled.to(pooled_ptr.dtype.element_ty),
            mask=inside[:, None] & (c < C)[None, :],
        )


@triton.jit
def spread_kernel(
    # pointers
    pooled_ptr,
    boxes_ptr,
    pairs_ptr,
    grad_ptr,
    # shapes
    P,
    B,
    H,
    W,
    C,
    # constants
    scale,
    BINS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # grad[s, b, y, x] = Σ_p [p's student is s] Σ_o Wy[o, y] · Wx[o, x] · pooled[p, b, o]
    y = tl.program_id(0) % H
    view = tl.program_id(0) // H
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    o = tl.arange(0, BLOCK_O)
    row, column = (o // BINS).to(tl.float32), (o % BINS).to(tl.float32)
    x = tl.arange(0, BLOCK_X)
    acc = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    for p in range(P):
        if tl.load(pairs_ptr + 2 * p) == view:
            place = p * B + b
            x0, y0, x1, y1 = roi_box(boxes_ptr, place, scale, H, W)
            if (y >= first_row(y0, H)) & (y <= first_row(y1, H) + 1):
                width, count = bin_samples(x0, x1, BINS)
                wx = bin_hats(
                    column[None, :], x.to(tl.float32)[:, None], x0, width, count, W, MOST
                )  # [BLOCK_X, BLOCK_O]
                width, count = bin_samples(y0, y1, BINS)
                wy = bin_hats(row, y, y0, width, count, H, MOST)
                pooled = tl.load(
                    pooled_ptr + (place * BINS * BINS + o[:, None]) * C + c[None, :],
                    mask=(o < BINS * BINS)[:, None] & (c < C)[None, :], other=0.0,
                )  # fmt: skip
                if WIDEN:
                    pooled = pooled.to(tl.float32)
                weight = (wx * wy[None, :]).to(pooled.dtype)
                acc = tl.dot(weight, pooled, acc, input_precision=PRECISION)
    at = ((view.to(tl.int64) * B + b) * H + y) * W + x[:, None]
    mask = (x < W)[:, None] & (c < C)[None, :]
    tl.store(grad_ptr + at * C + c[None, :], acc.to(grad_ptr.dtype.element_ty), mask=mask)


def launch_config(dtype: torch.dtype, bins: int, cells: int) -> dict[str, Any]:
    """For maps so wide. More places than 128, and float32, leave room for fewer channels."""
    full = dtype == torch.float32
    places = max(triton.next_power_of_2(bins * bins), 16)
    large = places > 64 or cells > 32
    return {
        "BINS": bins,
        "BLOCK_O": places,
        "BLOCK_C": (32 if full else 64) // (2 if places > 128 else 1),
        "PRECISION": "ieee" if full else "tf32",
        "WIDEN": INTERPRETED and dtype == torch.bfloat16,
        "num_warps": 8 if large else 4,
        "maxnreg": 255 if large else None,  # or ptxas aims at 128, and spills
    }


def block_of(cells: int) -> int:
    return max(triton.next_power_of_2(cells), 16)


def _compute(
    student: Tensor,
    teacher: Tensor,
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    turns: Tensor,
    pairs: Sequence[int],
    bins: int,
    scale: float,
    divisor: int,
    grad: bool,
) -> tuple[Tensor, Tensor]:
    """By a kernel: (minus the sum of cosines over `divisor`, its gradient or empty).

    Flat: `Regions`, then `Pooling`.
    """
    views, batch, height, width, channels = student.shape
    height_t, width_t = teacher.shape[2:4]
    shape = student.shape if grad else (0,)
    student, teacher = _rows(student), _rows(teacher)
    count, places = len(pairs) // 2, bins * bins
    if count * batch * places == 0:
        return student.new_zeros((), dtype=torch.float32), student.new_zeros(shape)
    boxes = [native.floats(x) for x in (student_boxes, teacher_boxes)]
    turns, weight = turns.int().resolve_neg().contiguous(), -1.0 / divisor
    if use_native(student):
        sizes = (height, width), (height_t, width_t)
        like = student, teacher, sizes, boxes, turns, pairs, bins, scale, weight, grad
        cosine, found = native_crop_align.prepared(*like)(student, teacher, *boxes, turns)
        return cosine.sum() * weight, student.new_empty(0) if found is None else found
    out = torch.empty(shape, dtype=student.dtype, device=student.device)
    config = launch_config(student.dtype, bins, max(width, width_t))
    pooled = student.new_empty((count, batch, places, channels) if grad else (0,))
    most = max(-(-cells // bins) for cells in (height, width, height_t, width_t))
    chosen = constants(tuple(pairs), student.device, torch.int32)
    parts = triton.cdiv(channels, config["BLOCK_C"])
    sums = student.new_empty(parts, 3, count, batch, places, dtype=torch.float32)
    with torch.cuda.device_of(student):
        for gradient in range(1 + grad):  # norms have to be known before it
            crop_align_kernel[(count * batch, parts)](
                student, teacher, *boxes, turns, chosen, sums, pooled, count,
                batch, height, width, height_t, width_t, channels, student.stride(0),
                student.stride(1), student.stride(2), teacher.stride(0), teacher.stride(1),
                teacher.stride(2), scale, weight, MOST=most, GRAD=bool(gradient),
                BLOCK_X=block_of(width), BLOCK_XT=block_of(width_t), **config,
            )  # fmt: skip
            if not gradient:
                sums = sums.sum(0)
        if grad:
            spread_kernel[(views * height, batch, parts)](
                pooled, boxes[0], chosen, out, count, batch, height, width, channels, scale,
                MOST=most, BLOCK_X=block_of(width), **config,
            )  # fmt: skip
    lengths = sums[1:].sqrt_().clamp_(min=_EPS)
    return (sums[0] / lengths[0] / lengths[1]).sum() * weight, out


def prepared(student: Tensor, teacher: Tensor, where: Regions, pooling: Pooling) -> Again | None:
    """(student, teacher, the boxes of both, turns) to what :func:`crop_align_loss` gives, in C, for
    maps like these; or None."""
    pairs, bins, scale = pooling
    given = student, teacher, where.own, where.other
    plain = not any(tensor.is_neg() for tensor in (*given, where.turns))
    plain = plain and all(native.plain(boxes) for boxes in given[2:])
    if not (use_native(student) and native_crop_align.reads(student, teacher) and plain):
        return None
    rows = _rows(student.detach()), _rows(teacher.detach())
    copied = any(a.data_ptr() != b.data_ptr() for a, b in zip(rows, given, strict=False))
    if copied or not student.numel():
        return None
    grad = torch.is_grad_enabled() and student.requires_grad
    sizes = tuple(student.shape[2:4]), tuple(teacher.shape[2:4])
    weight = -1.0 / (where.turns.numel() * bins**2)

    def turned(turns: Tensor) -> Tensor:
        return turns.to(torch.int32).contiguous()

    like = *rows, sizes, given[2:], turned(where.turns), pairs, bins, scale, weight, grad
    kernel = native_crop_align.prepared(*like)  # type: ignore[arg-type]

    def run(*given: Tensor) -> tuple[Tensor, Tensor | None]:
        cosine, out = kernel(*given[:4], turned(given[4]))
        return cosine.sum() * weight, out

    return crop_align_op.again(run) if grad else lambda *given: run(*given)[0]


def _rows(maps: Tensor) -> Tensor:
    """[V, B, h·w, C] of [V, B, h, w, C]: a copy unless cells are evenly apart, channels together.

    PyTorch makes the axis of cells: it knows that the stride of an axis of one says nothing.
    """
    cells = maps.resolve_neg().flatten(2, 3)
    return cells if cells.stride(3) == 1 else cells.contiguous()


def _fake(
    student, teacher, student_boxes, teacher_boxes, turns, pairs, bins, scale, divisor, grad
) -> tuple[Tensor, Tensor]:
    size = student.shape if grad else (0,)
    return student.new_empty((), dtype=torch.float32), student.new_empty(size)


crop_align_op = FusedLoss("crop_align_loss", _compute, _fake, {0: 1})


@without_autocast
def crop_align_loss_ref(
    student: Tensor, teacher: Tensor, where: Regions, pooling: Pooling
) -> Tensor:
    """The chain in plain PyTorch, no map copied for its pairs, differentiable in the student."""
    pairs, bins, scale = pooling
    wide = torch.promote_types(student.dtype, torch.float32)
    sides = []
    for maps, boxes, views in (
        (student, where.own, pairs[::2]),
        (teacher.detach(), where.other, pairs[1::2]),
    ):
        down, across = roi_weights(boxes.to(wide), bins, scale, maps.shape[2:4])
        each = maps.to(wide).unbind()
        shown = [pooled(each[v], down[p], across[p]) for p, v in enumerate(views)]
        sides.append(torch.stack(shown).flatten(2, 3))  # [P, B, bins², C]
    places = torch.arange(bins * bins, device=student.device).view(bins, bins)
    order = torch.stack([places.rot90(k) for k in range(4)]).flatten(1)[(where.turns % 4).long()]
    theirs = sides[1].gather(2, order[..., None].expand(sides[1].shape))
    cosine = F.cosine_similarity(sides[0], theirs, dim=-1, eps=_EPS)
    return -cosine.sum() / max(cosine.numel(), 1)


def crop_align_loss(student: Tensor, teacher: Tensor, where: Regions, pooling: Pooling) -> Tensor:
    """See `fastequi.functional.crop_align_loss`; arguments already checked."""
    in_c = use_native(student) and native_crop_align.reads(student, teacher)
    if use_native(student) and not in_c:
        say_type("crop_align_loss", student.dtype, teacher.dtype)
    on_gpu = use_triton(student) and student.dtype != torch.float64
    if transformed() or not (in_c or on_gpu):
        return crop_align_loss_ref(student, teacher, where, pooling)
    grad = torch.is_grad_enabled() and student.requires_grad
    divisor = max(where.turns.numel() * pooling.bins**2, 1)
    # in half precision a gradient so small would vanish before a scaler sees it
    inside = 1 if student.dtype == torch.float16 else divisor
    loss, _ = crop_align_op(student, teacher.detach(), *where, *pooling, inside, grad)
    return loss if inside is divisor else loss / divisor
