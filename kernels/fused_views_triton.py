"""Views of photographs on a GPU: what `fused_views.py`'s reference computes, in Triton.

    views_resample_kernel   crop, resize, mirror, colour; for views that are not blurred also
                            solarize, normalise and cast
    views_blur_kernel       along rows; then along columns, solarize, normalise and cast

A program makes a tile of a view, whatever the photographs' sizes: a photograph is an address in a
table, not an argument. The tables of a call are made on the host, where the parameters are, and
copied without waiting; which views are blurred is known there, so that others have no part in it.

Bytes of a view: its window read once (tiles share pixels, from the caches), the view written once.
A window of 300x260 pixels and a view of 224x224 in bfloat16 take 0.23 + 0.30 MB. Blurring moves 48
bytes more for each pixel, three channels of float32 written and read twice: 2.4 MB, of at most
_PLANES values at a time, which the L2 cache of large GPUs holds in part.

Instructions per pixel, all channels, on sm_90 (tests/test_offline_compile.py): 16 for each pixel of
the photograph in a sample's triangles, (2 s)² of them where the window is s times as large as the
view, and about 100; 32 for each tap of a blur. Products of small matrices on tensor cores, as in
`blur.py`, would take three times as many here: windows of a few pixels fill no tile of theirs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.constants import constants
from fastequi.kernels.sampling import reflected_index
from fastequi.kernels.target import DrawnViews, ViewTarget

LAUNCH = {"TILE_H": 8, "TILE_W": 32, "num_warps": 2, "maxnreg": 96}  # four pixels a thread
_PLANES = 1 << 24  # values of the views that are blurred at a time: 64 MB of float32, twice


@triton.jit
def _axis(start, step, first, size, TILE: tl.constexpr):
    """Where samples first .. first + TILE - 1 of an axis lie; those behind the last are the last.

    Returns:
        origin: a pixel from which places count; middle: [TILE] places of the samples; radius: of
        their triangles; low: [TILE] the first pixel in each; count: of the pixels in one, at most.
    """
    place = start + (first + 0.5) * step - 0.5  # float64: thousands of pixels, and fractions
    origin = tl.floor(place)
    step = step.to(tl.float32)
    radius = tl.maximum(tl.abs(step), 1.0)
    samples = tl.minimum(tl.arange(0, TILE), size - 1 - first)
    middle = (place - origin).to(tl.float32) + samples * step
    low = tl.floor(middle - radius) + 1.0
    return origin.to(tl.int32), middle, radius, low, tl.ceil(2.0 * radius).to(tl.int32)


@triton.jit
def _store_last(out_ptr, v, live, solarize, gain_ptr, mean_ptr, ROUND: tl.constexpr):
    """A channel as it leaves: solarized, normalised, cast."""
    v = tl.where((solarize != 0) & (v >= 127.5), 255.0 - v, v)
    if ROUND:
        v = tl.floor(tl.minimum(tl.maximum(v, 0.0), 255.0) + 0.5)
    else:
        v = v * tl.load(gain_ptr) - tl.load(mean_ptr)
    tl.store(out_ptr, v.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def views_resample_kernel(
    # pointers
    places_ptr,
    windows_ptr,
    numbers_ptr,
    gains_ptr,
    means_ptr,
    out_ptr,
    # shapes
    H,
    W,
    TW,
    TILES,
    # strides
    stride_ov,
    stride_oc,
    stride_oy,
    stride_ox,
    # constants
    LAST: tl.constexpr,
    ROUND: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    # x = color (Σ_pq w_pq photo[p, q] / Σ_pq w_pq), w_pq = (1 - |p - y| / r_y) (1 - |q - x| / r_x)
    # out[v] = gain solarized(x) - mean if LAST, else out[n] = x
    pid = tl.program_id(0)
    n = (pid // TILES).to(tl.int64)
    row = (pid % TILES) // TW * TILE_H
    col = (pid % TILES) % TW * TILE_W
    place = places_ptr + n * 6
    photo = tl.load(place).to(tl.pointer_type(tl.uint8))
    pitch = tl.load(place + 1)
    bottom = tl.load(place + 2).to(tl.int32)
    right = tl.load(place + 3).to(tl.int32)
    window = windows_ptr + n * 4
    y_from, y_middle, y_radius, y_low, rows = _axis(
        tl.load(window), tl.load(window + 1), row, H, TILE_H
    )
    x_from, x_middle, x_radius, x_low, columns = _axis(
        tl.load(window + 2), tl.load(window + 3), col, W, TILE_W
    )
    y_share = 1.0 / y_radius
    x_share = 1.0 / x_radius
    r = tl.zeros([TILE_H, TILE_W], tl.float32)
    g = tl.zeros([TILE_H, TILE_W], tl.float32)
    b = tl.zeros([TILE_H, TILE_W], tl.float32)
    mass = tl.zeros([TILE_H, TILE_W], tl.float32)
    for q in range(columns):
        x = x_low + q
        wx = tl.maximum(1.0 - tl.abs(x - x_middle) * x_share, 0.0)[None, :]
        x = tl.minimum(tl.maximum(x_from + x.to(tl.int32), 0), right) * 3
        red = tl.zeros([TILE_H, TILE_W], tl.float32)
        green = tl.zeros([TILE_H, TILE_W], tl.float32)
        blue = tl.zeros([TILE_H, TILE_W], tl.float32)
        down = tl.zeros([TILE_H], tl.float32)
        for p in range(rows):
            y = y_low + p
            wy = tl.maximum(1.0 - tl.abs(y - y_middle) * y_share, 0.0)
            y = tl.minimum(tl.maximum(y_from + y.to(tl.int32), 0), bottom)
            at = photo + (y * pitch)[:, None] + x[None, :]
            red += wy[:, None] * tl.load(at).to(tl.float32)
            green += wy[:, None] * tl.load(at + 1).to(tl.float32)
            blue += wy[:, None] * tl.load(at + 2).to(tl.float32)
            down += wy
        r += wx * red
        g += wx * green
        b += wx * blue
        mass += wx * down[:, None]
    r /= mass
    g /= mass
    b /= mass
    i = row + tl.arange(0, TILE_H)[:, None]
    j = col + tl.arange(0, TILE_W)[None, :]
    live = (i < H) & (j < W)
    v = tl.load(place + 4) if LAST else n
    out = out_ptr + v * stride_ov + i * stride_oy + j * stride_ox
    for c in tl.static_range(3):
        m = numbers_ptr + n * 13 + 4 * c
        value = tl.load(m) * r + tl.load(m + 1) * g + tl.load(m + 2) * b + tl.load(m + 3)
        value = tl.minimum(tl.maximum(value, 0.0), 255.0)
        if LAST:
            solarize = tl.load(place + 5)
            _store_last(
                out + c * stride_oc, value, live, solarize, gains_ptr + c, means_ptr + c, ROUND
            )
        else:
            tl.store(out + c * stride_oc, value, mask=live)


@triton.jit
def views_blur_kernel(
    # pointers
    places_ptr,
    numbers_ptr,
    gains_ptr,
    means_ptr,
    planes_ptr,
    out_ptr,
    # shapes
    H,
    W,
    TW,
    TILES,
    # strides
    stride_ov,
    stride_oc,
    stride_oy,
    stride_ox,
    # constants
    LAST: tl.constexpr,
    FAR: tl.constexpr,
    ROUND: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    # x = Σ_d w(d) planes[n, c, i, j + d] / Σ_d w(d), or i + d if LAST, w(d) = exp(-d² / 2σ²)
    # out[v] = gain solarized(x) - mean if LAST, else out[n] = x
    pid = tl.program_id(0)
    n = (pid // TILES).to(tl.int64)
    i = (pid % TILES) // TW * TILE_H + tl.arange(0, TILE_H)[:, None]
    j = (pid % TILES) % TW * TILE_W + tl.arange(0, TILE_W)[None, :]
    live = (i < H) & (j < W)
    sigma = tl.load(numbers_ptr + n * 13 + 12)
    rate = tl.minimum(0.5 / (sigma * sigma), 1e30)
    reach = tl.ceil(3.0 * sigma.to(tl.float64)).to(tl.int32)  # in the host's precision
    plane = planes_ptr + n * 3 * H * W
    r = tl.zeros([TILE_H, TILE_W], tl.float32)
    g = tl.zeros([TILE_H, TILE_W], tl.float32)
    b = tl.zeros([TILE_H, TILE_W], tl.float32)
    mass = 0.0
    for d in range(-reach, reach + 1):
        w = tl.exp(-(d * d) * rate)
        mass += w
        if LAST:
            at = reflected_index(i + d, H, FAR) * W + j
        else:
            at = i * W + reflected_index(j + d, W, FAR)
        r += w * tl.load(plane + at, mask=live, other=0.0)
        g += w * tl.load(plane + H * W + at, mask=live, other=0.0)
        b += w * tl.load(plane + 2 * H * W + at, mask=live, other=0.0)
    v = tl.load(places_ptr + n * 6 + 4) if LAST else n
    out = out_ptr + v * stride_ov + i * stride_oy + j * stride_ox
    for c in tl.static_range(3):
        value = (r if c == 0 else g if c == 1 else b) / mass
        if LAST:
            solarize = tl.load(places_ptr + n * 6 + 5)
            _store_last(
                out + c * stride_oc, value, live, solarize, gains_ptr + c, means_ptr + c, ROUND
            )
        else:
            tl.store(out + c * stride_oc, value, mask=live)


class _Tables(NamedTuple):
    """What the kernels read beside the photographs, of N views.

    Attributes:
        places: [N, 6] int64 address of the photograph, bytes from a row to the next, its last row,
            its last column; number of the view; whether to solarize.
        windows: [N, 4] float64 y where the window begins, pixels from a sample to the next; of x.
        numbers: [N, 13] float32 rows of the colour matrix, for values of 0..255; sigma.
    """

    places: Tensor
    windows: Tensor
    numbers: Tensor

    def sent(self, some: Tensor, device: torch.device) -> _Tables:
        """Rows of it on a device, which are not waited for."""
        tables = [table[some] for table in self]
        if device.type == "cuda":
            tables = [table.pin_memory() for table in tables]
        return _Tables(*(table.to(device, non_blocking=True) for table in tables))


def _tables(views: DrawnViews, target: ViewTarget) -> _Tables:
    """Of all views, on the host."""
    photos, photo, window, color, sigma, solarize, _ = views
    count = len(photo)
    each = [(x.data_ptr(), x.stride(0), x.shape[0] - 1, x.shape[1] - 1) for x in photos]
    places = torch.zeros(count, 6, dtype=torch.int64, device="cpu")
    places[:, :4] = torch.tensor(each, dtype=torch.int64, device="cpu")[photo.long()]
    places[:, 4] = torch.arange(count, device="cpu")
    places[:, 5] = 0 if solarize is None else solarize
    begin, end = window.double().split(2, 1)
    step = (end - begin) / torch.tensor(target.size, device="cpu")
    numbers = torch.zeros(count, 13, dtype=torch.float32, device="cpu")
    matrix = numbers[:, :12].unflatten(1, (3, 4))
    matrix.copy_(torch.eye(3, 4, device="cpu") if color is None else color)
    matrix[..., 3] *= 255
    numbers[:, 12] = 0 if sigma is None else sigma
    return _Tables(places, torch.stack([begin, step], 2).flatten(1), numbers)


def makes(views: DrawnViews, target: ViewTarget, dtype: torch.dtype) -> bool:
    """Whether the kernels make such views: of 8-bit RGB, in a type they have."""
    return (
        dtype not in (torch.float64, torch.uint16)
        and target.ranges is None
        and views.gain is None
        and tuple(target.channels) == (0, 1, 2)
        and views.photos[0].shape[2] == 3
        and views.photos[0].dtype == torch.uint8
    )


def fused_views(out: Tensor, views: DrawnViews, target: ViewTarget) -> None:
    """Fills `out` [V, 3, H, W], of any strides."""
    tables = _tables(views, target)
    sigma = tables.numbers[:, 12]
    sharp, blurred = (sigma == 0).nonzero()[:, 0], sigma.nonzero()[:, 0]
    most = max(_PLANES // out[0].numel(), 1)
    with torch.cuda.device_of(out):
        if len(sharp):
            _resample(out, tables.sent(sharp, out.device), target)
        for first in range(0, len(blurred), most):
            some = blurred[first : first + most]
            reach = math.ceil(3 * sigma[some].max().item())
            _resample_and_blur(out, tables.sent(some, out.device), target, reach)


def _resample(out: Tensor, tables: _Tables, target: ViewTarget, last: bool = True) -> None:
    gains, means = _gains_and_means(target, out.device)
    grid, shape = _tiles(len(tables.places), target)
    views_resample_kernel[grid](
        *tables, gains, means, out, *shape, *out.stride(),
        LAST=last, ROUND=out.dtype == torch.uint8, **LAUNCH,
    )  # fmt: skip


def _resample_and_blur(out: Tensor, tables: _Tables, target: ViewTarget, reach: int) -> None:
    """Of views whose blurs reach so many pixels, at most."""
    gains, means = _gains_and_means(target, out.device)
    grid, shape = _tiles(len(tables.places), target)
    sharp = out.new_empty((len(tables.places), *out.shape[1:]), dtype=torch.float32)
    _resample(sharp, tables, target, last=False)
    half = torch.empty_like(sharp)
    far = reach >= min(target.size)
    for x, to, last in ((sharp, half, False), (half, out, True)):
        views_blur_kernel[grid](
            tables.places, tables.numbers, gains, means, x, to, *shape, *to.stride(),
            LAST=last, FAR=far, ROUND=to.dtype == torch.uint8, **LAUNCH,
        )  # fmt: skip


def _tiles(count: int, target: ViewTarget) -> tuple[tuple[int], tuple[int, ...]]:
    """The grid of so many views, and the kernels' shapes."""
    across = triton.cdiv(target.width, LAUNCH["TILE_W"])
    tiles = triton.cdiv(target.height, LAUNCH["TILE_H"]) * across
    return (count * tiles,), (*target.size, across, tiles)


def _gains_and_means(target: ViewTarget, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a channel in 0..255: (x / 255 - mean) / std = gain x - mean / std."""
    mean, std = target.mean or (0.0,) * 3, target.std or (1.0,) * 3
    gains = tuple(1 / (255 * s) for s in std)
    means = tuple(m / s for m, s in zip(mean, std, strict=True))
    return constants(gains, device, torch.float32), constants(means, device, torch.float32)
