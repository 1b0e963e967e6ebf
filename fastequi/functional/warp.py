"""Images warped along a path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.kernels import warp as _warp
from fastequi.kernels.prepared import Calls
from fastequi.kernels.target import Target

_CALLS = Calls()


def warp(
    image: Tensor,
    theta: Tensor,
    *,
    color: Tensor | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype | None = None,
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Warped, recoloured, normalised images in one pass; the sampler of :func:`warp_recon_loss`.

    Args:
        image: [B, C, Hs, Ws], uint8 (255 is 1), uint16 (65535 is 1) or floating, any strides.
        theta: [B, K, 2, 3] or [B, 2, 3] output-to-input matrices in the convention of
            `F.affine_grid`.
        color: [B, K, C, C + 1] affine maps of the samples in 0..1, of up to four channels; or
            [B, K, C, 2], a gain and an offset of each channel; without K as theta.
        size: (H, W) of the result, or one number for both; the image's by default.
        mean, std: C floats each, one for all, or neither.
        dtype: of the result: floating, or uint8 (0..255, rounded; not with mean and std). By
            default the image's own if floating, else float32.
        padding_mode: "zeros", "border" or "reflection", as in `F.grid_sample`.
        align_corners: as there; matrices of the paths of this library are for False.

    Returns:
        [B, K, C, H, W], or [B, C, H, W] for theta [B, 2, 3]. NaN where θ is not finite.

    Differentiable in image, theta and color. The gradient of the image alone comes from the
    adjoint of the kernel (in C on a CPU, in PyTorch on a GPU) and can be differentiated again;
    with that of theta or color all is plain PyTorch, which can where its `grid_sample` can (newer
    versions). So it is in float64 and under torch.compile.
    """
    options = size, mean, std, dtype, padding_mode, align_corners
    given = image, theta, color
    key, again = _CALLS.find(given, options)
    if again is not None:
        return again(*given)
    checks.check_names(padding_mode=padding_mode)
    mean, std = checks.check_image(image, mean, std)
    arguments.flags(align_corners=align_corners)
    checks.check_matrices(theta)
    if color is not None:
        checks.check_floating("color", color)
    single = theta.ndim == 3
    if single:
        theta = theta[:, None]
        color = color[:, None] if color is not None and color.ndim == 3 else color
    checks.check_theta(theta, image, single)
    checks.check_color(color, theta, image)
    if dtype is None:
        dtype = image.dtype if image.is_floating_point() else torch.float32
    checks.check_out_dtype(dtype, mean)
    height, width = arguments.two_sizes("size", image.shape[-2:] if size is None else size)
    checks.same_device(image=image, theta=theta, color=color)
    target = Target(height, width, 0, "none", mean, std, padding_mode, align_corners)

    def run(image: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        if single:
            theta = theta[:, None]
            color = color[:, None] if color is not None and color.ndim == 3 else color
        out = _warp.warp(image, theta, color, target, dtype)
        return out[:, 0] if single else out

    if key is None:
        return run(*given)
    call = _warp.prepared(image, theta, color, target, dtype, single) or run
    _CALLS.keep(key, checks.with_range_checked(call, 0, image, mean))
    return call(*given)
