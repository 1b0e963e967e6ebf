"""Views of decoded images in one pass from their values: crop, colour, blur, solarize, normalise.

Replaces, for every view of a batch (DALI's operators, or torchvision's, one after the other)::

    x = (photo.clamp(low, high) - low) / (high - low)    # of other images than 8-bit RGB
    x = resize(x, window, antialias=True)                # mirrored where the window is
    x = (color @ [x; 1]).clamp(0, 255)
    x = (gain * x + offset).clamp(0, 1) ** exponent      # of each channel by itself
    x = gaussian_blur(x, sigma)                          # ceil(3 sigma) pixels on each side
    x = where(solarize and x >= 128, 255 - x, x)
    x = (x / 255 - mean) / std

Never materialised: what stands between these lines, which is not rounded to bytes either. Read are
the window's values, written the view. On a GPU by `fused_views_triton.py`; in C on a CPU, where a
view's planes stay in a core's caches; else :func:`fused_views_ref`, a view at a time.

The parameters lie on the host, wherever the photographs are: what they say of launches and memory
(which views are blurred, how far) is known there without waiting for a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastequi.kernels import fused_views_triton, native_fused_views
from fastequi.kernels.backend import say_type, use_native, use_triton
from fastequi.kernels.precision import autocast_off
from fastequi.kernels.sampling import LARGEST
from fastequi.kernels.target import DrawnViews, ViewTarget


def resample_matrix(start: Tensor, end: Tensor, pixels: int, size: int) -> Tensor:
    """[size, pixels] weights of an axis: triangles as wide as the step between samples, or two
    pixels where that is wider; pixels beyond the border are the border's.

    Args:
        start, end: of the window in pixels, numbers; start > end mirrors.
    """
    step = (end - start) / size
    radius = step.abs().clamp(min=1)
    steps = torch.arange(size, dtype=start.dtype, device=start.device)
    middle = start + (steps + 0.5) * step - 0.5
    reach = int(radius.ceil().item()) + 1
    near = torch.arange(-reach, reach + 1, dtype=start.dtype, device=start.device)
    at = middle.floor()[:, None] + near
    weight = (1 - (at - middle[:, None]).abs() / radius).clamp(min=0)
    weight = weight / weight.sum(1, keepdim=True)
    out = weight.new_zeros(size, pixels)
    return out.scatter_add(1, at.clamp(0, pixels - 1).long(), weight)


def blur_matrix(sigma: float, size: int, like: Tensor) -> Tensor:
    """[size, size] weights of a blur along an axis, borders reflected without the edge pixel."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weight = torch.exp(-0.5 * (offsets.to(like.dtype) / max(sigma, 1e-6)).square())
    period = max(2 * (size - 1), 1)
    at = (torch.arange(size, device=like.device)[:, None] + offsets).abs() % period
    at = torch.minimum(at, period - at) if size > 1 else torch.zeros_like(at)
    weight = (weight / weight.sum()).expand(at.shape)
    return like.new_zeros(size, size).scatter_add(1, at, weight)


@torch.no_grad()
def fused_views_ref(views: DrawnViews, target: ViewTarget, dtype: torch.dtype) -> Tensor:
    """The lines above in plain PyTorch, float64 where `dtype` is: [V, C, H, W], three channels of
    bytes channels last in memory."""
    with autocast_off(views.device):
        return _in_pytorch(views, target, dtype)


def _in_pytorch(views: DrawnViews, target: ViewTarget, dtype: torch.dtype) -> Tensor:
    photos, photo, window, color, sigma, solarize, gain = views
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    top, made = target.top, []
    for v, i in enumerate(photo):  # a list of them is not to be had under every transform
        image = photos[int(i)][..., list(target.channels)].to(compute).permute(2, 0, 1)
        y0, x0, y1, x1 = window[v].double()  # thousands of pixels, and fractions
        down = resample_matrix(y0, y1, image.shape[1], target.height).to(image)
        across = resample_matrix(x0, x1, image.shape[2], target.width).to(image)
        if target.ranges is not None:
            low, high = image.new_tensor(target.ranges).T[..., None, None]
            image = (image.clamp(low, high) - low) / (high - low)
        x = down @ image @ across.T
        if color is not None:
            m = color[v].to(x)
            x = torch.einsum("ij,jhw->ihw", m[:, :3], x) + top * m[:, 3, None, None]
            x = x.clamp(0, top)
        if gain is not None:
            times, plus, exponent = gain[v].to(x).T[..., None, None]
            x = top * ((x / top * times + plus).clamp(0, 1) ** exponent)
        if sigma is not None and sigma[v] > 0:
            down, across = (blur_matrix(sigma[v].item(), n, x) for n in x.shape[1:])
            x = down @ x @ across.T
        if solarize is not None and solarize[v]:
            x = torch.where(x >= top / 2, top - x, x)
        made.append(x)
    out = torch.stack(made) / top
    if dtype in LARGEST:
        most = LARGEST[dtype]
        out = (out * most).add(0.5).floor().clamp(0, most).to(dtype)
        return out.contiguous(memory_format=_format(dtype, out.shape[1]))
    if target.mean is not None and target.std is not None:
        mean, std = (out.new_tensor(v)[:, None, None] for v in (target.mean, target.std))
        out = (out - mean) / std
    return out.to(dtype)


def _format(dtype: torch.dtype, channels: int) -> torch.memory_format:
    last = dtype == torch.uint8 and channels == 3
    return torch.channels_last if last else torch.contiguous_format


def fused_views(views: DrawnViews, target: ViewTarget, dtype: torch.dtype) -> Tensor:
    """[V, C, H, W], three channels of bytes channels last in memory; arguments already checked."""
    shape, device = (len(views.photo), len(target.channels), *target.size), views.device
    kind = _format(dtype, shape[1])
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=kind)
    if not out.numel():
        return out
    if use_triton(out) and dtype != torch.float64:
        fused_views_triton.fused_views(out, views, target)
    elif use_native(out) and native_fused_views.makes(dtype):
        native_fused_views.fused_views(out, views, target)
    else:
        if use_native(out):
            say_type("fused_views", dtype, takes="float32, bfloat16, uint8 or uint16")
        return fused_views_ref(views, target, dtype)
    return out
