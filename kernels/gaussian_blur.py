"""Gaussian blur with a sigma per image and step.

Replaces, for every image b and step k::

    w = exp(-d² / 2σ²), d = -R..R; w /= w.sum()
    x = F.pad(image.float() / 255, [R] * 4, mode="reflect")
    out = F.conv2d(F.conv2d(x, w[None, :]), w[:, None])      # per image: σ differs
    out = (out - mean) / std

Never materialised: the float image, the padded image, the half-blurred image. See `blur.py`, and
`blur.c` for CPUs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native, native_blur
from fastequi.kernels.autograd import Operator
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.blur import chunks_of, launch, radius
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.sampling import color_ref, to_float
from fastequi.kernels.target import BlurTarget


def _compute(
    image: Tensor,
    sigma: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    max_sigma: float,
) -> Tensor:
    """[B, K, C, H, W]."""
    out = image.new_empty((*sigma.shape, *image.shape[1:]), dtype=dtype)
    if out.numel() == 0:
        return out
    target = BlurTarget(mean=mean, std=std, max_sigma=max_sigma)
    if use_triton(image):
        launch(out, image, sigma, target, out, False)
        return out
    if use_native(image) and native_blur.makes(image, dtype, max_sigma):
        native_blur.blur(out, image, sigma, target)
        return out
    if use_native(image):
        say_type("gaussian_blur", dtype, image.dtype, takes=native_blur.TAKES)
    for part in chunks_of(out):
        out[part] = gaussian_blur_ref(image[part], sigma[part], target, dtype)
    return out


def _fake(image, sigma, mean, std, dtype, max_sigma) -> Tensor:
    return image.new_empty((*sigma.shape, *image.shape[1:]), dtype=dtype)


gaussian_blur_op = Operator("gaussian_blur", _compute, _fake)


def _blur_matrix(sigma: Tensor, size: int, target: BlurTarget) -> Tensor:
    """[B, K, n, n] matrices that blur along an axis of n pixels with reflected borders."""
    reach = radius(target.max_sigma)
    offsets = torch.arange(-reach, reach + 1, device=sigma.device)
    fine = (sigma >= 0) & (sigma <= target.most)
    # σ = 0 has no rate; where() on both sides keeps the NaN out of its gradient too
    rate = 0.5 / torch.where(sigma > 1e-6, sigma, 1e-6).square()
    weights = torch.exp(-offsets.square() * rate[..., None])
    weights = weights / weights.sum(-1, keepdim=True)
    weights = torch.where(fine[..., None], weights, torch.nan)
    period = max(2 * (size - 1), 1)
    at = torch.arange(size, device=sigma.device)[:, None] + offsets
    at = at.abs() % period
    at = torch.minimum(at, period - at) if size > 1 else torch.zeros_like(at)
    out = weights.new_zeros(*sigma.shape, size, size)
    shape = (*sigma.shape, size, len(offsets))
    return out.scatter_add(-1, at.expand(shape), weights[..., None, :].expand(shape))


@without_autocast
def gaussian_blur_ref(
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`gaussian_blur` in plain PyTorch: V · X · Hᵀ, differentiable in image and sigma."""
    wide = torch.float64 in (dtype, sigma.dtype, image.dtype)
    compute = torch.float64 if wide else torch.float32
    sigma = sigma.to(compute)
    rows = _blur_matrix(sigma, image.shape[2], target)[:, :, None]
    columns = _blur_matrix(sigma, image.shape[3], target)[:, :, None]
    blurred = rows @ to_float(image, compute)[:, None] @ columns.transpose(-1, -2)
    return color_ref(blurred, None, target.mean, target.std).to(dtype)


def gaussian_blur(image: Tensor, sigma: Tensor, target: BlurTarget, dtype: torch.dtype) -> Tensor:
    """[B, K, C, H, W]; arguments already checked. The reference where a gradient is wanted."""
    grad = torch.is_grad_enabled() and (image.requires_grad or sigma.requires_grad)
    if grad or transformed() or torch.float64 in (dtype, image.dtype):
        if use_native(image) and not grad:
            say_type("gaussian_blur", dtype, image.dtype, takes=native_blur.TAKES)
        return gaussian_blur_ref(image, sigma, target, dtype)
    return gaussian_blur_op(image, sigma, target.mean, target.std, dtype, target.max_sigma)


def prepared(
    image: Tensor, sigma: Tensor, target: BlurTarget, dtype: torch.dtype, single: bool
) -> Again | None:
    """What :func:`gaussian_blur` does for tensors like these, in C; or None.

    It takes image and sigma as they were given; `single`: without the axis of steps.
    """
    grad = torch.is_grad_enabled() and (image.requires_grad or sigma.requires_grad)
    in_c = use_native(image) and native_blur.makes(image, dtype, target.max_sigma)
    if grad or not in_c or not image.numel() or not native.plain(sigma):
        return None
    return native_blur.prepared_blur(image, sigma, target, dtype, single)
