"""Losses against images that are made on the fly, and the images: checks, then the kernels.

Images are uint8 in 0..255 or floating in 0..1; mean and std are in 0..1; sigmas are in pixels.
Checks that would have to read a GPU's memory (the range of a float image) run on CPU tensors, and
on GPU tensors too where FASTEQUI_CHECK=1 is set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.functional import checks
from fastequi.kernels import blur as _blur
from fastequi.kernels import linear_warp_recon as _linear
from fastequi.kernels import rot90_batch as _rot90
from fastequi.kernels import warp as _warp
from fastequi.kernels import warp_recon as _warp_recon
from fastequi.kernels.pixel_loss import LOSSES
from fastequi.kernels.sampling import PADDING_MODES
from fastequi.kernels.target import Target


def warp_recon_loss(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    *,
    color: Tensor | None = None,
    loss: str = "mse",
    layout: str = "image",
    patch_size: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    padding_mode: str = "zeros",
    align_corners: bool = False,
    mask_outside: bool = False,
    reduction: str = "mean",
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    r"""Reconstruction error against warped images that are never stored.

    Equals, in value and gradient, `F.affine_grid` → `F.grid_sample` → colour → normalise → loss::

        target = F.grid_sample(image, F.affine_grid(theta_k, ...), padding_mode=padding_mode)
        target = (color_k @ [target; 1] - mean) / std
        loss = F.mse_loss(pred_k, target)               # then the mean over images and steps k

    The reconstruction term of TIR (Wang et al. 2026, section 3) when theta holds θ_k = kθ/(K+1).

    Args:
        pred: [B, K, C, H, W] (or [B, C, H, W] with theta [B, 2, 3]) predictions, or with
            layout="patch" patch tokens [B, K, L, p·p·C] (or [B, L, p·p·C]) in MAE's order
            (h w)(p q c); float32, bfloat16, float16 or float64.
        image: [B, C, Hs, Ws] source, uint8 or floating, any strides; Hs, Ws may differ from H, W.
        theta: [B, K, 2, 3] output-to-input affine matrices in the convention of `F.affine_grid`.
        color: [B, K, 3, 4] affine maps of the sampled RGB in 0..1.
        loss: "mse", "l1" or "smooth_l1" (beta 1).
        layout: "image" or "patch".
        patch_size: p in pixels, for layout="patch".
        mean, std: C floats each, or one for all; the target is (x - mean) / std. Both or neither.
        padding_mode: "zeros" (before colour and normalisation), "border" or "reflection".
        align_corners: as in `F.grid_sample`.
        mask_outside: leave out pixels whose sample point lies outside the image; the mean is over
            what is left, and 0 if nothing is.
        reduction: "mean" over all values, "sum", or "none": the mean per image and step, [B, K]
            ([B] without K).
        size: (H, W) of the target for layout="patch", or one number for both. By default the
            image's own size where it has L patches, else a square.

    Returns:
        A float32 scalar (float64 for float64 predictions), or [B, K] with reduction="none".
        A θ that is not finite gives NaN for its image and step.

    Gradients go to `pred` and `theta`, from the same pass. If `image` or `color` needs one, the
    chain above runs instead, with the right gradient and its memory.

    Raises:
        TypeError: an argument of a type or dtype that cannot be.
        ValueError: shapes, names or values that do not fit; names the argument.
    """
    checks.one_of("loss", loss, LOSSES)
    checks.one_of("layout", layout, ("image", "patch"))
    checks.one_of("padding_mode", padding_mode, PADDING_MODES)
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    mean, std = checks.check_image(image, mean, std)
    size = None if size is None else checks.two_sizes("size", size)
    checks.check_floating("pred", pred)
    pred, theta, color, single = checks.with_steps(
        pred, theta, color, 5 if layout == "image" else 4
    )
    checks.check_theta(theta, image)
    checks.check_color(color, theta, image)
    patch, target_size = checks.check_pred(pred, image, theta.shape[1], layout, patch_size, size)
    checks.same_device(image, pred=pred, theta=theta, color=color)
    values = image.shape[1] * target_size[0] * target_size[1]
    divisor = _divisor(values, theta.shape[0] * theta.shape[1], reduction, mask_outside)
    target = Target(*target_size, patch, loss, mean, std, padding_mode, align_corners, mask_outside)
    total, count = _warp_recon.warp_recon_loss(
        pred, image, theta, color, target, divisor, reduction != "none"
    )
    return _mean(total, count, reduction, single)


def linear_warp_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    *,
    patch_size: int,
    color: Tensor | None = None,
    loss: str = "mse",
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    padding_mode: str = "zeros",
    align_corners: bool = False,
    mask_outside: bool = False,
    reduction: str = "mean",
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """A decoder's last linear layer and :func:`warp_recon_loss`, predictions never stored whole.

    Equals, in value and gradient::

        pred = hidden @ weight.mT + bias                      # for every step its own weight
        loss = warp_recon_loss(pred, image, theta, layout="patch", patch_size=patch_size, ...)

    but a chunk of predictions at a time, gradients in the same pass.

    Args:
        hidden: [B, K, L, D] tokens (or [B, L, D] with theta [B, 2, 3]); floating.
        weight: [K, p·p·C, D], or [p·p·C, D] for all steps; of hidden's dtype.
        bias: [K, p·p·C], or [p·p·C], or None.
        image, theta, color, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside,
            size: as there.
        reduction: "mean" or "sum"; the gradients of a scalar alone can be had in one pass.

    Returns:
        A float32 scalar (float64 for float64 tokens). Under autocast the tokens, weight and bias
        are cast as `F.linear` casts them.

    Gradients go to `hidden`, `weight` and `bias`. If image, θ or colour needs one, the two lines
    above run instead.

    Raises:
        TypeError, ValueError: as there; names the argument.
    """
    checks.one_of("loss", loss, LOSSES)
    checks.one_of("padding_mode", padding_mode, PADDING_MODES)
    checks.one_of("reduction", reduction, ("mean", "sum"))
    mean, std = checks.check_image(image, mean, std)
    size = None if size is None else checks.two_sizes("size", size)
    checks.check_floating("hidden", hidden)
    hidden, theta, color, _ = checks.with_steps(hidden, theta, color, 4, "hidden")
    checks.check_theta(theta, image)
    checks.check_color(color, theta, image)
    steps, values = theta.shape[1], patch_size**2 * image.shape[1]
    weight, bias = checks.check_linear(hidden, weight, bias, steps, values)
    tokens = hidden.shape[2]
    if tuple(hidden.shape[:2]) != (len(image), steps):
        raise ValueError(
            f"hidden: expected B, K = {len(image)}, {steps} as in image and theta, "
            f"got shape {tuple(hidden.shape)}"
        )
    target_size = checks.patch_target(tokens, image, patch_size, size)
    checks.same_device(image, hidden=hidden, weight=weight, bias=bias, theta=theta, color=color)
    if torch.is_autocast_enabled(image.device.type):
        dtype = torch.get_autocast_dtype(image.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    divisor = _divisor(values * tokens, len(image) * steps, reduction, mask_outside)
    target = Target(
        *target_size, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )
    total, count = _linear.linear_warp_recon_loss(
        hidden, weight, bias, image, theta, color, target, divisor
    )
    return _mean(total, count, reduction, single=False)


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
        image: [B, C, Hs, Ws], uint8 or floating, any strides.
        theta: [B, K, 2, 3] or [B, 2, 3] matrices in the convention of `F.affine_grid`.
        color: [B, K, 3, 4] (or [B, 3, 4]) affine maps of RGB in 0..1.
        size: (H, W) of the result, or one number for both; the image's by default.
        mean, std: C floats each, one for all, or neither.
        dtype: of the result: floating, or uint8 (0..255, rounded; not with mean and std). By
            default the image's own if floating, else float32.
        padding_mode, align_corners: as in `F.grid_sample`.

    Returns:
        [B, K, C, H, W], or [B, C, H, W] for theta [B, 2, 3]. NaN where θ is not finite.

    Differentiable in image, theta and color (through plain PyTorch).
    """
    checks.one_of("padding_mode", padding_mode, PADDING_MODES)
    mean, std = checks.check_image(image, mean, std)
    checks.check_floating("theta", theta)
    single = theta.ndim == 3
    if single:
        theta = theta[:, None]
        color = color[:, None] if color is not None and color.ndim == 3 else color
    checks.check_theta(theta, image)
    checks.check_color(color, theta, image)
    if dtype is None:
        dtype = image.dtype if image.is_floating_point() else torch.float32
    checks.check_out_dtype(dtype, mean)
    height, width = checks.two_sizes("size", image.shape[-2:] if size is None else size)
    checks.same_device(image, theta=theta, color=color)
    out = _warp.warp(
        image,
        theta,
        color=color,
        size=(height, width),
        mean=mean,
        std=std,
        dtype=dtype,
        padding_mode=padding_mode,
        align_corners=align_corners,
    )
    return out[:, 0] if single else out


def blur_recon_loss(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor | float,
    *,
    loss: str = "mse",
    layout: str = "image",
    patch_size: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    reduction: str = "mean",
    max_sigma: float = 2.0,
) -> Tensor:
    """Reconstruction error against Gaussian-blurred images that are never stored.

    Args:
        pred: [B, K, C, H, W] or patch tokens [B, K, L, p·p·C], as in :func:`warp_recon_loss`
            (without K for sigma [B]); H, W are the image's.
        image: [B, C, H, W], uint8 or floating.
        sigma: [B, K] or [B] standard deviations in pixels, 0 for no blur; or one number for all.
        loss, layout, patch_size, mean, std, reduction: as in :func:`warp_recon_loss`.
        max_sigma: fixes the kernel's radius, ceil(4·max_sigma) pixels. A larger sigma is an error
            on the CPU and NaN on a GPU, where looking would stall it.

    Gradients go to `pred`; if image or sigma needs one, the eager chain runs instead.
    """
    checks.one_of("loss", loss, LOSSES)
    checks.one_of("layout", layout, ("image", "patch"))
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    mean, std = checks.check_image(image, mean, std)
    checks.check_floating("pred", pred)
    stepped = pred.ndim == (5 if layout == "image" else 4)
    sigma = checks.as_sigma(sigma, image, pred.shape[1] if stepped else None)
    single = sigma.ndim == 1
    if single:
        sigma, pred = sigma[:, None], pred[:, None]
    checks.check_sigma(sigma, image, max_sigma)
    size = (image.shape[2], image.shape[3])
    patch, _ = checks.check_pred(pred, image, sigma.shape[1], layout, patch_size, size)
    checks.same_device(image, pred=pred, sigma=sigma)
    total = _blur.blur_recon_loss(
        pred,
        image,
        sigma,
        loss=loss,
        patch_size=patch,
        mean=mean,
        std=std,
        max_sigma=max_sigma,
    )
    values = image.shape[1] * size[0] * size[1]
    total = total / _divisor(values, sigma.numel(), reduction, masked=False)
    return _mean(total if reduction == "none" else total.sum(), None, reduction, single)


def rot90_batch(
    images: Tensor,
    *,
    turns: Tensor | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Every image turned by 0, 90, 180 and 270 degrees, scaled to 0..1, normalised and cast.

    RotNet's network batch (Gidaris et al., ICLR 2018): image 0 in its four turns, then image 1.
    Turns are counter-clockwise and exact: `np.rot90(image, k)`.

    Args:
        images: [B, C, N, N] uint8, any strides; square, since all turns share one batch.
        turns: [B] integers 0..3: then one turn per image instead of all four.
        mean, std: C floats each (or one for all) of values in 0..1: the result is (x - mean) / std.
            Or neither.
        dtype: of the result: float32, bfloat16, float16 or float64.
        memory_format: of the result: contiguous or channels-last.

    Returns:
        [4B, C, N, N], or [B, C, N, N] with `turns`. No gradient: bytes have none.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        came = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected uint8, got {came}")
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: expected square [B, C, N, N], got {tuple(images.shape)}")
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format: expected contiguous_format or channels_last, got {memory_format}"
        )
    mean, std = checks.normalisation(images.shape[1], mean, std)
    if turns is not None:
        if turns.shape != images.shape[:1] or turns.is_floating_point() or turns.is_complex():
            raise ValueError(
                f"turns: expected {len(images)} integers 0..3, "
                f"got {turns.dtype} {tuple(turns.shape)}"
            )
        checks.same_device(images, turns=turns)
        turns = (turns % 4).int().contiguous()
    last = memory_format == torch.channels_last
    return _rot90.rot90_batch(images, turns, mean, std, dtype, last)


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
        image: [B, C, H, W], uint8 or floating.
        sigma: [B] or [B, K] standard deviations in pixels, 0 for no blur; or one number for all.
        mean, std: C floats each, one for all, or neither; applied after the blur.
        dtype: of the result, floating; the image's own if floating, else float32.
        max_sigma: fixes the kernel's radius, ceil(4·max_sigma) pixels; see
            :func:`blur_recon_loss`.

    Returns:
        [B, C, H, W] for sigma [B], else [B, K, C, H, W].

    Differentiable in image and sigma (through plain PyTorch).
    """
    mean, std = checks.check_image(image, mean, std)
    sigma = checks.as_sigma(sigma, image)
    single = sigma.ndim == 1
    sigma = sigma[:, None] if single else sigma
    checks.check_sigma(sigma, image, max_sigma)
    if dtype is None:
        dtype = image.dtype if image.is_floating_point() else torch.float32
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
    checks.same_device(image, sigma=sigma)
    out = _blur.gaussian_blur(image, sigma, mean=mean, std=std, dtype=dtype, max_sigma=max_sigma)
    return out[:, 0] if single else out


def _divisor(values: int, pairs: int, reduction: str, masked: bool) -> int:
    """What the sums [B, K] over `values` each are to be divided by, where that is a constant."""
    if masked or reduction == "sum":
        return 1
    return max(values * (pairs if reduction == "mean" else 1), 1)


def _mean(total: Tensor, count: Tensor | None, reduction: str, single: bool) -> Tensor:
    """Sums as they are, or divided by what `count` has left of the values."""
    if count is not None and reduction != "sum":
        total = total / count.clamp(min=1)
    return total[:, 0] if single and reduction == "none" else total
