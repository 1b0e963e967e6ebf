"""Views of images on a GPU, by the kernels of `fused_views_kernels.py`.

The tables of a call are made on the host, where the parameters are, and copied without waiting;
which views are blurred is known there, so that others have no part in it.

Bytes of a view: its window read once (tiles share pixels, from the caches), the view written once.
A window of 300x260 pixels and a view of 224x224 in bfloat16 take 0.23 + 0.30 MB. Blurring moves 48
bytes more for each pixel, three channels of float32 written and read twice: 2.4 MB, of at most
_PLANES values at a time, which the L2 cache of large GPUs holds in part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastequi.kernels.backend import triton
from fastequi.kernels.constants import constants
from fastequi.kernels.fused_views_kernels import (
    LAUNCH,
    WITH_ENDS,
    views_blur_kernel,
    views_resample_kernel,
)
from fastequi.kernels.sampling import LARGEST
from fastequi.kernels.target import DrawnViews, ViewTarget

_PLANES = 1 << 24  # values of the views that are blurred at a time: 64 MB of float32, twice


class _Tables(NamedTuple):
    """What the kernels read beside the photographs, of N views.

    Attributes:
        places: [N, 6] int64 address of the photograph, values from a row to the next, its last row,
            its last column; number of the view; whether to solarize.
        windows: [N, 4] float64 y where the window begins, pixels from a sample to the next; of x.
        numbers: [N, 13] float32 rows of the colour matrix, for values of 0..top; sigma.
        each: [N, C, 3] float32 gain, offset and exponent of every channel, [N, 0] where there are
            none.
    """

    places: Tensor
    windows: Tensor
    numbers: Tensor
    each: Tensor

    def sent(self, some: Tensor, device: torch.device) -> _Tables:
        """Rows of it on a device, which are not waited for."""
        tables = [table[some] for table in self]
        if device.type == "cuda":
            tables = [table.pin_memory() for table in tables]
        return _Tables(*(table.to(device, non_blocking=True) for table in tables))


def _tables(views: DrawnViews, target: ViewTarget) -> _Tables:
    """Of all views, on the host."""
    photos, photo, window, color, sigma, solarize, gain = views
    count = len(photo)
    each = [(x.data_ptr(), x.stride(0), x.shape[0] - 1, x.shape[1] - 1) for x in photos]
    places = torch.zeros(count, 6, dtype=torch.int64, device="cpu")
    places[:, :4] = torch.tensor(each, dtype=torch.int64, device="cpu")[photo.long()]
    places[:, 4] = torch.arange(count, device="cpu")
    places[:, 5] = 0 if solarize is None else solarize
    begin, end = window.double().split(2, 1)
    step = (end - begin) / torch.tensor(target.size, device="cpu")
    numbers = torch.zeros(count, 13, dtype=torch.float32, device="cpu")
    if color is not None:
        matrix = numbers[:, :12].unflatten(1, (3, 4))
        matrix.copy_(color)
        matrix[..., 3] *= target.top
    numbers[:, 12] = 0 if sigma is None else sigma
    windows = torch.stack([begin, step], 2).flatten(1)
    return _Tables(places, windows, numbers, numbers[:, :0] if gain is None else gain)


class _Plan(NamedTuple):
    """What is the same of all views of a call.

    Attributes:
        taken: [C] int32 the photographs' channels.
        ranges: [C, 4] float32 low, high, gain and offset, which bring a channel to 0..top.
        gains, means: [C] float32 of the normalisation, of a channel in 0..top.
        stored: channels of the photographs.
        sizes: height, width, tiles across, tiles, channels of a view.
        constants: of both kernels.
        resample: those of the first alone.
        launch: of the first.
    """

    taken: Tensor
    ranges: Tensor
    gains: Tensor
    means: Tensor
    stored: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    resample: dict[str, Any]
    launch: dict[str, int]

    def grid(self, count: int) -> tuple[int]:
        """Of so many views."""
        _, _, _, tiles, channels = self.sizes
        return (count * tiles * triton.cdiv(channels, self.constants["GROUP"]),)


def _plan(views: DrawnViews, target: ViewTarget, dtype: torch.dtype) -> _Plan:
    device, given = views.device, views.photos[0].dtype
    taken, count = tuple(target.channels), len(target.channels)
    mean, std = target.mean or (0.0,) * count, target.std or (1.0,) * count
    most = LARGEST.get(dtype, 0)
    gains = tuple((most or 1) / (target.top * s) for s in std)
    means = tuple(m / s for m, s in zip(mean, std, strict=True))
    cut, ranges = target.rescaling(given)
    across = triton.cdiv(target.width, LAUNCH["TILE_W"])
    tiles = triton.cdiv(target.height, LAUNCH["TILE_H"]) * across
    return _Plan(
        constants(taken, device, torch.int32),
        constants(ranges, device, torch.float32),
        constants(gains, device, torch.float32),
        constants(means, device, torch.float32),
        views.photos[0].shape[2],
        (*target.size, across, tiles, count),
        {"GROUP": triton.cdiv(count, triton.cdiv(count, 4)), "TOP": target.top},
        {
            "BITS": 8 * given.itemsize,
            "TOGETHER": taken == tuple(range(taken[0], taken[0] + count)),
            "RANGE": target.ranges is not None,
            "CUT": cut,
            "COLOR": views.color is not None,
            "EACH": views.gain is not None,
        },
        LAUNCH | (WITH_ENDS if cut else {}),
    )


def fused_views(out: Tensor, views: DrawnViews, target: ViewTarget) -> None:
    """Fills `out` [V, C, H, W], of any strides."""
    tables, plan = _tables(views, target), _plan(views, target, out.dtype)
    sigma = tables.numbers[:, 12]
    sharp, blurred = (sigma == 0).nonzero()[:, 0], sigma.nonzero()[:, 0]
    most = max(_PLANES // out[0].numel(), 1)
    with torch.cuda.device_of(out):
        if len(sharp):
            _resample(out, tables.sent(sharp, out.device), plan)
        for first in range(0, len(blurred), most):
            some = blurred[first : first + most]
            far = math.ceil(3 * sigma[some].max().item()) >= min(target.size)
            _resample_and_blur(out, tables.sent(some, out.device), plan, far)


def _resample(out: Tensor, tables: _Tables, plan: _Plan, last: bool = True) -> None:
    views_resample_kernel[plan.grid(len(tables.places))](
        *tables, plan.taken, plan.ranges, plan.gains, plan.means, out, *plan.sizes, plan.stored,
        *out.stride(), **plan.resample, **plan.constants, **plan.launch, LAST=last,
        MOST=LARGEST.get(out.dtype, 0),
    )  # fmt: skip


def _resample_and_blur(out: Tensor, tables: _Tables, plan: _Plan, far: bool) -> None:
    """Of views of which a blur, if far, may reach beyond both borders."""
    sharp = out.new_empty((len(tables.places), *out.shape[1:]), dtype=torch.float32)
    _resample(sharp, tables, plan, last=False)
    half = torch.empty_like(sharp)
    for x, to, last in ((sharp, half, False), (half, out, True)):
        views_blur_kernel[plan.grid(len(tables.places))](
            tables.places, tables.numbers, plan.gains, plan.means, x, to, *plan.sizes, *to.stride(),
            **plan.constants, **LAUNCH, LAST=last, FAR=far, MOST=LARGEST.get(to.dtype, 0),
        )  # fmt: skip
