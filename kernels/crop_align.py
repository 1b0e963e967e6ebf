"""GTSA's crop loss: RoIAlign of two maps over what two crops share, one turned, and their cosine.

Replaces, for every pair p = (s, t) of a student's and a teacher's view and every image b::

    ours = roi_align(student[s], student_boxes[p], bins, aligned=True)     # [B, C, bins, bins]
    theirs = roi_align(teacher[t], teacher_boxes[p], bins, aligned=True)
    theirs = rot90(theirs, turns[p], each image by its own)
    loss = -cosine_similarity(ours, theirs, dim=1).mean()

Bilinear sampling over a grid of bins is one small matrix per axis, and a turn is another order of
the bins. So a bin's feature is Σ_y Σ_x Wy[bin, y] · Wx[bin, x] · map[y, x], a product of matrices
over the rows and columns of the map that the box touches; nothing else of it is read. A map of
height h and width w has its patches as rows [h·w, C], as a ViT gives them.

Never materialised: the maps of each pair, turned or not, pooled features (without a gradient). The
gradient by the pooled student features [P, B, bins², C] is stored, since a view's map gathers those
of all its pairs: (Wy ⊗ Wx)ᵀ, again a matrix product. No atomics, the same bits in every run.

Bytes: the boxes' rows of both maps, twice with a gradient (the second time from the L2 cache), the
pooled gradient written and read, the maps' gradient written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import INTERPRETED, tl, transformed, triton, use_triton
from fastequi.kernels.constants import constants
from fastequi.kernels.precision import without_autocast

_EPS = 1e-8  # of norms, as F.cosine_similarity has it
_SLACK = 1e-3  # cells that a bin may exceed n by and still get n samples: rounding must not decide


@triton.jit
def _samples(lo, hi, bins: tl.constexpr):
    # width of a bin in cells, samples along it
    width = tl.maximum(hi - lo, 0.0) / bins
    count = tl.maximum(tl.ceil(width - 0.001), 1.0)  # _SLACK
    return width, count


@triton.jit
def _hats(bins_at, cells_at, lo, width, count, cells, MOST: tl.constexpr):
    # mean over a bin's samples of the bilinear weight of a cell: W[bin, cell]
    weight = tl.zeros_like(bins_at + cells_at + lo)
    for k in range(MOST):
        at = lo + width * (bins_at + (k + 0.5) / count)
        at = tl.minimum(tl.maximum(at, 0.0), cells - 1.0)
        hat = tl.maximum(1.0 - tl.abs(at - cells_at), 0.0)
        weight += tl.where(k < count, hat, 0.0)
    return weight / count


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
def _edge(ptr, scale, cells):
    # in cells, a cell's centre at its index, no further than the map
    return tl.minimum(tl.maximum(tl.load(ptr) * scale, 0.0), cells) - 0.5


@triton.jit
def _box(boxes_ptr, place, scale, height, width):
    # x0, y0, x1, y1
    ptr = boxes_ptr + place * 4
    x0, y0 = _edge(ptr, scale, width), _edge(ptr + 1, scale, height)
    return x0, y0, _edge(ptr + 2, scale, width), _edge(ptr + 3, scale, height)


@triton.jit
def _first_row(lo, cells):
    return tl.minimum(tl.maximum(tl.floor(lo), 0.0), cells - 1.0).to(tl.int32)


@triton.jit
def _pooled(
    map_ptr, stride_m, rows_at, wx, c, C, box, H, W,
    BINS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
    MOST: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    # [BLOCK_O, BLOCK_C] features of all bins: Σ_y Wy Wx · map[y], over the box's rows alone
    x0, y0, x1, y1 = box
    width, count = _samples(y0, y1, BINS)
    x = tl.arange(0, BLOCK_X)
    seen = (x >= _first_row(x0, W)) & (x <= _first_row(x1, W) + 1) & (x < W)
    acc = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    for y in range(_first_row(y0, H), tl.minimum(_first_row(y1, H) + 2, H)):
        wy = _hats(rows_at, y, y0, width, count, H, MOST)
        cells = tl.load(
            map_ptr + (y * W + x[:, None]) * stride_m + c[None, :],
            mask=seen[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:  # the interpreter's products know no bfloat16
            cells = cells.to(tl.float32)
        weight = (wx * wy[:, None]).to(cells.dtype)
        acc = tl.dot(weight, cells, acc, input_precision=PRECISION)
    return acc


@triton.jit
def crop_align_kernel(
    # pointers
    student_ptr,
    teacher_ptr,
    student_boxes_ptr,
    teacher_boxes_ptr,
    turns_ptr,
    pairs_ptr,
    cosine_ptr,
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
    # cosine[p, b, o] = cos(ours_o, theirs_o); pooled = weight · (t / |s||t| - cos · s / |s|²)
    p = tl.program_id(0) % P  # the pairs of an image follow each other: its maps stay in the cache
    b = (tl.program_id(0) // P).to(tl.int64)
    place = p * B + b
    student_ptr += tl.load(pairs_ptr + 2 * p) * stride_sv + b * stride_sb
    teacher_ptr += tl.load(pairs_ptr + 2 * p + 1) * stride_tv + b * stride_tb
    ours = _box(student_boxes_ptr, place, scale, H, W)
    theirs = _box(teacher_boxes_ptr, place, scale, HT, WT)
    o = tl.arange(0, BLOCK_O)
    row, column = o // BINS, o % BINS
    row_t, column_t = _turned(row, column, tl.load(turns_ptr + place), BINS)
    row, row_t = row.to(tl.float32), row_t.to(tl.float32)
    cells = tl.arange(0, BLOCK_X).to(tl.float32)[None, :]
    width, count = _samples(ours[0], ours[2], BINS)
    wx = _hats(column.to(tl.float32)[:, None], cells, ours[0], width, count, W, MOST)
    cells = tl.arange(0, BLOCK_XT).to(tl.float32)[None, :]
    width, count = _samples(theirs[0], theirs[2], BINS)
    wxt = _hats(column_t.to(tl.float32)[:, None], cells, theirs[0], width, count, WT, MOST)

    inside = o < BINS * BINS
    both = tl.zeros([BLOCK_O], tl.float32)
    norm_s = tl.zeros([BLOCK_O], tl.float32)
    norm_t = tl.zeros([BLOCK_O], tl.float32)
    of_t, of_s = norm_t, norm_t
    for again in tl.static_range(1 + GRAD):  # norms have to be known before the gradient
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            s = _pooled(
                student_ptr, stride_sm, row, wx, c, C, ours, H, W,
                BINS, BLOCK_O, BLOCK_X, BLOCK_C, MOST, PRECISION, WIDEN,
            )  # fmt: skip
            t = _pooled(
                teacher_ptr, stride_tm, row_t, wxt, c, C, theirs, HT, WT,
                BINS, BLOCK_O, BLOCK_XT, BLOCK_C, MOST, PRECISION, WIDEN,
            )  # fmt: skip
            if again == 0:
                both += tl.sum(s * t, 1)
                norm_s += tl.sum(s * s, 1)
                norm_t += tl.sum(t * t, 1)
            else:
                pooled = of_t[:, None] * t - of_s[:, None] * s
                tl.store(
                    pooled_ptr + (place * BINS * BINS + o[:, None]) * C + c[None, :],
                    pooled.to(pooled_ptr.dtype.element_ty),
                    mask=inside[:, None] & (c < C)[None, :],
                )  # fmt: skip
        if again == 0:
            length = tl.maximum(tl.sqrt(norm_s), 1e-8)  # _EPS
            length_t = tl.maximum(tl.sqrt(norm_t), 1e-8)
            cosine = both / (length * length_t)
            tl.store(cosine_ptr + place * BINS * BINS + o, cosine, mask=inside)
            of_t = tl.where(inside, weight / (length * length_t), 0.0)
            of_s = tl.where(norm_s > 1e-16, weight * cosine / (length * length), 0.0)


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
            x0, y0, x1, y1 = _box(boxes_ptr, place, scale, H, W)
            if (y >= _first_row(y0, H)) & (y <= _first_row(y1, H) + 1):
                width, count = _samples(x0, x1, BINS)
                wx = _hats(
                    column[None, :], x.to(tl.float32)[:, None], x0, width, count, W, MOST
                )  # [BLOCK_X, BLOCK_O]
                width, count = _samples(y0, y1, BINS)
                wy = _hats(row, y, y0, width, count, H, MOST)
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
    """By the kernels: (minus the sum of cosines over `divisor`, its gradient or empty)."""
    views, batch, height, width, channels = student.shape
    student, teacher = _rows(student), _rows(teacher)
    count, places = len(pairs) // 2, bins * bins
    height_t, width_t = teacher.shape[2:4]
    config = launch_config(student.dtype, bins, max(width, width_t))
    cosine = student.new_empty(count, batch, places, dtype=torch.float32)
    size = (count, batch, places, channels) if grad else (0,)
    pooled = student.new_empty(size)
    out = torch.empty(student.shape if grad else (0,), dtype=student.dtype, device=student.device)
    most = max(-(-cells // bins) for cells in (height, width, height_t, width_t))
    chosen = constants(tuple(pairs), student.device, torch.int32)
    if cosine.numel() == 0:
        return cosine.sum(), out.zero_()
    boxes = [x.float().contiguous() for x in (student_boxes, teacher_boxes)]
    weight = -1.0 / divisor
    with torch.cuda.device_of(student):
        crop_align_kernel[(count * batch,)](
            student, teacher, *boxes, turns.int().contiguous(), chosen, cosine, pooled, count,
            batch, height, width, height_t, width_t, channels, student.stride(0),
            student.stride(1), student.stride(3), teacher.stride(0), teacher.stride(1),
            teacher.stride(3), scale, weight, MOST=most, GRAD=grad, BLOCK_X=block_of(width),
            BLOCK_XT=block_of(width_t), **config,
        )  # fmt: skip
        if grad:
            grid = (views * height, batch, triton.cdiv(channels, config["BLOCK_C"]))
            spread_kernel[grid](
                pooled, boxes[0], chosen, out, count, batch, height, width, channels, scale,
                MOST=most, BLOCK_X=block_of(width), **config,
            )  # fmt: skip
    return cosine.sum() * weight, out


def _rows(maps: Tensor) -> Tensor:
    """[V, B, h, w, C] with patches evenly apart and channels together."""
    even = maps.stride(2) == maps.stride(3) * maps.shape[3]
    return maps if even and maps.stride(4) == 1 else maps.contiguous()


def _fake(
    student, teacher, student_boxes, teacher_boxes, turns, pairs, bins, scale, divisor, grad
) -> tuple[Tensor, Tensor]:
    size = student.shape if grad else (0,)
    return student.new_empty((), dtype=torch.float32), student.new_empty(size)


crop_align_op = FusedLoss("crop_align_loss", _compute, _fake, {0: 1})


class Regions(NamedTuple):
    """What P pairs of views of B images have in common.

    Attributes:
        own, other: [P, B, 4] boxes within the student's and the teacher's view.
        turns: [P, B] quarter turns counter-clockwise from the teacher's to the student's.
    """

    own: Tensor
    other: Tensor
    turns: Tensor


def bin_weights(low: Tensor, high: Tensor, bins: int, cells: int) -> Tensor:
    """RoIAlign along one axis: [..., bins, cells] from box edges [...] in cells (index = centre).

    Every bin is the mean of ceil(its width) samples, linear between cells, the edge's beyond them.
    """
    width = (high - low).clamp(min=0)[..., None, None, None] / bins
    count = (width - _SLACK).ceil().clamp(min=1)
    samples = _count(-(-cells // bins), low)[:, None]
    places = _count(bins, low)[:, None, None]
    at = low[..., None, None, None] + width * (places + (samples + 0.5) / count)
    at = at.clamp(0, cells - 1)
    hat = (1 - (at - _count(cells, low)).abs()).clamp(min=0)
    return torch.where(samples < count, hat, 0.0).sum(-2) / count[..., 0]


def _count(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, device=like.device, dtype=like.dtype)


def roi_weights(
    boxes: Tensor, bins: int, scale: float, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """RoIAlign, aligned (He et al., 2017), of maps [h, w]: down [..., bins, h], across [..., w]."""
    height, width = size
    x0, y0, x1, y1 = (boxes * scale).unbind(-1)
    x0, x1 = (x.clamp(0, width) - 0.5 for x in (x0, x1))
    y0, y1 = (y.clamp(0, height) - 0.5 for y in (y0, y1))
    return bin_weights(y0, y1, bins, height), bin_weights(x0, x1, bins, width)


def pooled(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """[N, bins, bins, C] of maps [N, h, w, C] by the weights of both axes."""
    rows = (down @ maps.flatten(2)).unflatten(2, maps.shape[2:])
    return across[:, None] @ rows


@without_autocast
def crop_align_loss_ref(
    student: Tensor, teacher: Tensor, where: Regions, pairs: Sequence[int], bins: int, scale: float
) -> Tensor:
    """The chain in plain PyTorch, no map copied for its pairs, differentiable in the student."""
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
    order = torch.stack([places.rot90(k) for k in range(4)]).flatten(1)[where.turns % 4]
    theirs = sides[1].gather(2, order[..., None].expand(sides[1].shape))
    cosine = F.cosine_similarity(sides[0], theirs, dim=-1, eps=_EPS)
    return -cosine.sum() / max(cosine.numel(), 1)


def crop_align_loss(
    student: Tensor, teacher: Tensor, where: Regions, pairs: Sequence[int], bins: int, scale: float
) -> Tensor:
    """See `fastequi.functional.crop_align_loss`; arguments already checked."""
    if transformed() or not use_triton(student) or student.dtype == torch.float64:
        return crop_align_loss_ref(student, teacher, where, pairs, bins, scale)
    grad = torch.is_grad_enabled() and student.requires_grad
    divisor = max(where.turns.numel() * bins * bins, 1)
    # in half precision a gradient so small would vanish before a scaler sees it
    inside = 1 if student.dtype == torch.float16 else divisor
    options = list(pairs), bins, scale, inside, grad
    loss, _ = crop_align_op(student, teacher.detach(), *where, *options)
    return loss if inside is divisor else loss / divisor
