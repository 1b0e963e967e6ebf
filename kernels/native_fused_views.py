"""Views of decoded images in C: fused_views.c through ctypes."""

from __future__ import annotations

import math
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.native_warp import gain_and_bias
from fastequi.kernels.sampling import LARGEST
from fastequi.kernels.target import DrawnViews, ViewTarget

_TYPES = {**native.DTYPES, torch.uint16: 3}


class ViewsStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("photos", "pitch", "sides", "photo", "window")),
        *((name, c_void_p) for name in ("taken", "range", "ends", "color", "each")),
        *((name, c_void_p) for name in ("sigma", "solarize")),
        *((name, c_void_p) for name in ("out", "gain", "bias")),
        ("top", c_float),
        *((name, c_int32) for name in ("views", "channels", "stored", "type")),
        *((name, c_int32) for name in ("height", "width", "dtype", "threads")),
        *((name, c_int32) for name in ("down", "across", "reach", "stream")),
    )


def makes(dtype: torch.dtype) -> bool:
    """Whether C makes views of that type."""
    return dtype in _TYPES


def fused_views(out: Tensor, views: DrawnViews, target: ViewTarget) -> None:
    """Fills `out` [V, C, H, W], dense, three channels of bytes channels last."""
    photos, photo, window, color, sigma, solarize, each = views
    count, channels = len(photos), target.channels
    places = (c_void_p * count)(*native.pointers(photos))
    pitch = (c_int64 * count)(*[x.stride(0) for x in photos])
    sides = (c_int32 * (2 * count))(*[side for x in photos for side in tuple(x.shape)[:2]])
    taken = (c_int32 * len(channels))(*channels)
    scale = LARGEST.get(out.dtype, 1.0) / target.top
    gain, bias = gain_and_bias(target.mean, target.std, len(channels))
    op = ViewsStruct(
        *(addressof(array) for array in (places, pitch, sides)),
        *(native.pointer(x) for x in (photo, window)),
        addressof(taken),
        None,
        None,
        *(native.pointer(x) for x in (color, each, sigma, solarize, out)),
        None,
        None,
        target.top,
        len(photo),
        len(channels),
        photos[0].shape[2],
        _TYPES[photos[0].dtype],
        target.height,
        target.width,
        _TYPES[out.dtype],
        min(native.threads(out.numel()), len(photo)),
        *taps(window, target),
        0 if sigma is None else 3 * int(sigma.numpy().max()) + 3,
        out.numel() * out.element_size() > native.STREAM_BYTES,
    )
    floats = {"gain": [value * scale for value in gain], "bias": bias}
    if target.ranges is not None:
        cut, each_range = target.rescaling(photos[0].dtype)
        if cut:
            floats["ends"] = [end for low, high, _, _ in each_range for end in (low, high)]
        floats["range"] = [x for _, _, times, plus in each_range for x in (times, plus)]
    native.call("fused_views", native.with_floats(op, floats))


def taps(window: Tensor, target: ViewTarget) -> tuple[int, int]:
    """The most pixels of a column and of a row that a resampled value depends on."""
    corners = window.numpy().astype(np.float64)
    spans = np.abs(corners[:, 2:] - corners[:, :2]).max(0)
    down, across = (2 * max(math.ceil(step), 1) + 2 for step in spans / target.size)
    return down, across
