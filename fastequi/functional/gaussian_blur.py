"""Gaussian blur with a sigma per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.functional import arguments, checks, sigmas
from fastequi.kernels import gaussian_blur as _blur
from fastequi.kernels.prepared import Calls
from fastequi.kernels.target import BlurTarget

_CALLS = Calls()


def gaussian_blur(
    image: Tensor,
    sigma: Tensor | float,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype | None = None,
    max_sigma: float = 2.0,
) -> Tensor:
    """Gaussian blur with a sigma per image (and step), borders reflected without the edge pixel.

    Args:
        image: [B, C, H, W], uint8, uint16 or floating.
        sigma: [B] or [B, K] standard deviations in pixels, 0 for no blur; or one number for all.
        mean, std: C floats each, one for all, or neither; applied after the blur.
        dtype: of the result, floating; the image's own if floating, else float32.
        max_sigma: fixes the kernel's radius, ceil(4·max_sigma) pixels; see
            :func:`blur_recon_loss`.

    Returns:
        [B, C, H, W] for sigma [B], else [B, K, C, H, W].

    Differentiable in image and sigma. The gradient of the image alone comes from the kernel, since
    the adjoint of a blur is a blur; with that of sigma, in float64 and under torch.compile all is
    plain PyTorch. Both can be differentiated again.
    """
    given = sigma if isinstance(sigma, Tensor) else None
    number = None if given is not None else sigma
    key, again = _CALLS.find((image, given), (number, mean, std, dtype, max_sigma))
    if again is not None:
        return again(image, given)
    mean, std = checks.check_image(image, mean, std)
    max_sigma = arguments.number("max_sigma", max_sigma, above=0)
    sigma = sigmas.as_sigma(sigma, image, max_sigma)
    sigmas.check_sigma(sigma, image, max_sigma)
    single = sigma.ndim == 1
    shaped = sigma[:, None] if single else sigma
    if dtype is None:
        dtype = image.dtype if image.is_floating_point() else torch.float32
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype: expected a floating dtype, got {dtype!r}")
    checks.same_device(image=image, sigma=sigma)
    target = BlurTarget(mean=mean, std=std, max_sigma=max_sigma)
    kind = dtype

    def run(image: Tensor, sigma: Tensor) -> Tensor:
        out = _blur.gaussian_blur(image, sigma[:, None] if single else sigma, target, kind)
        return out[:, 0] if single else out

    if key is None:
        return run(image, sigma)
    call = _blur.prepared(image, shaped, target, kind, single) or run
    looked = sigmas.with_sigma_checked(call, given, sigma, max_sigma)
    _CALLS.keep(key, checks.with_range_checked(looked, 0, image, mean))
    return call(image, sigma)
