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
from typing import Any

import torch
from torch import Tensor

from fastequi.kernels import native, native_blur, native_warp
from fastequi.kernels.autograd import Operator, batched, needs_operator
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.blur import chunks_of, launch, radius
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.sampling import color_ref, to_float
from fastequi.kernels.target import BlurTarget
from fastequi.kernels.warp_adjoint import color_adjoint, savable


def _compute(
    image: Tensor,
    sigma: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    max_sigma: float,
) -> Tensor:
    """[B, K, C, H, W]."""
    in_c = use_native(image)
    written = torch.float32 if in_c and dtype == torch.float16 else dtype  # C writes no float16
    out = image.new_empty((*sigma.shape, *image.shape[1:]), dtype=written)
    if out.numel() == 0:
        return out.to(dtype)
    target = BlurTarget(mean=mean, std=std, max_sigma=max_sigma)
    if use_triton(image):
        launch(out, image, sigma, target, out, False)
        return out
    if in_c and native_blur.makes(image, written, max_sigma):
        native_blur.blur(out, image, sigma, target)
        return out.to(dtype)
    if in_c:
        _say(image, dtype)
    for part in chunks_of(out):
        out[part] = gaussian_blur_ref(image[part], sigma[part], target, dtype)
    return out.to(dtype)


def _say(image: Tensor, dtype: torch.dtype) -> None:
    shape = native_warp.said(image)
    say_type("gaussian_blur", dtype, image.dtype, takes=native_blur.MAKES, shape=shape)


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
    """[B, K, C, H, W]; arguments already checked.

    The image's gradient is :func:`blur_adjoint`. Where sigma wants one, under torch.func, in
    float64, and where a compiler looks at gradients, the reference runs instead.
    """
    grad = torch.is_grad_enabled() and (image.requires_grad or sigma.requires_grad)
    wide = torch.float64 in (dtype, image.dtype)
    if grad and not (wide or transformed() or sigma.requires_grad or needs_operator(image, sigma)):
        blurred: Tensor = _Blur.apply(image, sigma, target, dtype)
        return blurred
    if grad or transformed() or wide:
        if use_native(image) and not grad:
            _say(image, dtype)
        return gaussian_blur_ref(image, sigma, target, dtype)
    return gaussian_blur_op(image, sigma, target.mean, target.std, dtype, target.max_sigma)


class _Blur(torch.autograd.Function):
    """:func:`gaussian_blur` with the gradient of its image."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, sigma: Tensor, target: BlurTarget, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(savable(sigma))
        ctx.target, ctx.dtype = target, image.dtype
        return gaussian_blur(image, sigma, target, dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        (sigma,) = ctx.saved_tensors
        return blur_adjoint(slope, sigma, ctx.target).to(ctx.dtype), None, None, None


def blur_adjoint(slope: Tensor, sigma: Tensor, target: BlurTarget) -> Tensor:
    """The gradient of Σ slope · gaussian_blur(image) by the image, [B, C, H, W] float32 (float64).

    It is a blur as well. Reflection reads every pixel twice in a period of 2 (n - 1), those at the
    border once: with M = diag(1/2, 1, ..., 1, 1/2) a blur B is S M, S symmetric, and so its adjoint
    is M B M⁻¹: border pixels doubled, blurred, halved again, along both axes.

    Args:
        slope: [B, K, C, H, W] floating.
        sigma, target: as of :func:`gaussian_blur`.
    """
    slope = slope if slope.dtype == torch.float64 else slope.float()
    sigma = sigma.to(slope.dtype)  # as the forward takes it
    border = _at_border(slope.shape[3:], slope)
    slope = color_adjoint(slope, None, target.std) / border
    plain = BlurTarget(max_sigma=target.max_sigma)
    blur = gaussian_blur_ref if batched(slope) else gaussian_blur
    out = blur(slope.reshape(-1, *slope.shape[2:]), sigma.flatten()[:, None], plain, slope.dtype)
    return (out.reshape(slope.shape) * border).sum(1)


def _at_border(size: Sequence[int], like: Tensor) -> Tensor:
    """[H, W] of ones, halves at the border, where an axis has more than a pixel."""
    axes = [torch.ones(n, dtype=like.dtype, device=like.device) for n in size]
    for axis in axes:
        if len(axis) > 1:
            axis[0] = axis[-1] = 0.5
    return axes[0][:, None] * axes[1]


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
