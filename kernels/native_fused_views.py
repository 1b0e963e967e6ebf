"""Views of photographs in C: fused_views.c through ctypes."""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_warp import gain_and_bias
from fastequi.kernels.target import DrawnViews, ViewTarget


class ViewsStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("photos", "pitch", "sides", "photo", "window")),
        *((name, c_void_p) for name in ("color", "sigma", "solarize", "out")),
        ("gain", c_float * 4),
        ("bias", c_float * 4),
        *((name, c_int32) for name in ("views", "height", "width", "dtype", "threads")),
        *((name, c_int32) for name in ("down", "across", "reach")),
    )


def makes(dtype: torch.dtype) -> bool:
    """Whether C makes views of that type."""
    return dtype in native.DTYPES


def fused_views(out: Tensor, views: DrawnViews, target: ViewTarget) -> None:
    """Fills `out` [V, 3, H, W], dense, of bytes channels last."""
    photos, photo, window, color, sigma, solarize = views
    count = len(photos)
    places = (c_void_p * count)(*(native.pointer(x) for x in photos))
    pitch = (c_int64 * count)(*(x.stride(0) for x in photos))
    sides = (c_int32 * (2 * count))(*(side for x in photos for side in x.shape[:2]))
    gain, bias = gain_and_bias(target.mean, target.std, 3)
    scale = 1.0 if out.dtype == torch.uint8 else 1 / 255
    op = ViewsStruct(
        addressof(places),
        addressof(pitch),
        addressof(sides),
        *(native.pointer(x) for x in (photo, window, color, sigma, solarize, out)),
        (c_float * 4)(*(value * scale for value in gain)),
        (c_float * 4)(*bias),
        len(photo),
        target.height,
        target.width,
        native.DTYPES[out.dtype],
        min(native.threads(out.numel()), len(photo)),
        *taps(window, target),
        0 if sigma is None else 3 * int(sigma.max().item()) + 3,
    )
    native.call("fused_views", op)


def taps(window: Tensor, target: ViewTarget) -> tuple[int, int]:
    """The most pixels of a column and of a row that a resampled value depends on."""
    y0, x0, y1, x1 = window.double().unbind(1)
    steps = (y1 - y0).abs() / target.height, (x1 - x0).abs() / target.width
    down, across = (2 * max(int(step.max().ceil().item()), 1) + 2 for step in steps)
    return down, across
