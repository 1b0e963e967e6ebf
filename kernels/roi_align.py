"""RoIAlign, aligned (He et al., 2017): device functions and the PyTorch lines they equal.

Bilinear sampling over a grid of bins is one small matrix per axis. So a bin's feature is
Σ_y Σ_x Wy[bin, y] · Wx[bin, x] · map[y, x], a product of matrices over the rows and columns of the
map that the box touches; nothing else of it is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton

_SLACK = 1e-3  # cells that a bin may exceed n by and still get n samples: rounding must not decide


@triton.jit
def bin_samples(lo, hi, bins: tl.constexpr):
    # width of a bin in cells, samples along it
    width = tl.maximum(hi - lo, 0.0) / bins
    count = tl.maximum(tl.ceil(width - 0.001), 1.0)  # _SLACK
    return width, count


@triton.jit
def bin_hats(bins_at, cells_at, lo, width, count, cells, MOST: tl.constexpr):
    # mean over a bin's samples of the bilinear weight of a cell: W[bin, cell]
    weight = tl.zeros_like(bins_at + cells_at + lo)
    for k in range(MOST):
        at = lo + width * (bins_at + (k + 0.5) / count)
        at = tl.minimum(tl.maximum(at, 0.0), cells - 1.0)
        hat = tl.maximum(1.0 - tl.abs(at - cells_at), 0.0)
        weight += tl.where(k < count, hat, 0.0)
    return weight / count


@triton.jit
def _edge(ptr, scale, cells):
    # in cells, a cell's centre at its index, no further than the map
    return tl.minimum(tl.maximum(tl.load(ptr) * scale, 0.0), cells) - 0.5


@triton.jit
def roi_box(boxes_ptr, place, scale, height, width):
    # x0, y0, x1, y1
    ptr = boxes_ptr + place * 4
    x0, y0 = _edge(ptr, scale, width), _edge(ptr + 1, scale, height)
    return x0, y0, _edge(ptr + 2, scale, width), _edge(ptr + 3, scale, height)


@triton.jit
def first_row(lo, cells):
    return tl.minimum(tl.maximum(tl.floor(lo), 0.0), cells - 1.0).to(tl.int32)


@triton.jit
def pool_bins(
    map_ptr, stride_m, rows_at, wx, c, C, box, H, W,
    BINS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
    MOST: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    # [BLOCK_O, BLOCK_C] features of all bins: Σ_y Wy Wx · map[y], over the box's rows alone
    x0, y0, x1, y1 = box
    width, count = bin_samples(y0, y1, BINS)
    x = tl.arange(0, BLOCK_X)
    seen = (x >= first_row(x0, W)) & (x <= first_row(x1, W) + 1) & (x < W)
    acc = tl.zeros([BLOCK_O, BLOCK_C], tl.float32)
    for y in range(first_row(y0, H), tl.minimum(first_row(y1, H) + 2, H)):
        wy = bin_hats(rows_at, y, y0, width, count, H, MOST)
        cells = tl.load(
            map_ptr + (y * W + x[:, None]) * stride_m + c[None, :],
            mask=seen[:, None] & (c < C)[None, :], other=0.0,
        )  # fmt: skip
        if WIDEN:  # the interpreter's products know no bfloat16
            cells = cells.to(tl.float32)
        weight = (wx * wy[:, None]).to(cells.dtype)
        acc = tl.dot(weight, cells, acc, input_precision=PRECISION)
    return acc


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
