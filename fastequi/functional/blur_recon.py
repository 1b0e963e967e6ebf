"""Reconstruction error against blurred images that are made on the fly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.functional.reduction import divisor_of, reduced
from fastequi.kernels import blur_recon as _blur_recon
from fastequi.kernels.target import BlurTarget


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
            on the CPU and NaN on a GPU, where a check would need a host sync.

    Gradients go to `pred`; if image or sigma needs one, the eager chain runs instead.
    """
    checks.check_names(loss=loss, layout=layout, reduction=reduction)
    max_sigma = arguments.number("max_sigma", max_sigma, above=0)
    mean, std = checks.check_image(image, mean, std)
    checks.check_floating("pred", pred)
    ndim = 5 if layout == "image" else 4
    pred, sigma, single = checks.with_sigma(pred, sigma, image, max_sigma, ndim, "pred")
    size = (image.shape[2], image.shape[3])
    patch, _ = checks.check_pred(
        pred, image, sigma.shape[1], layout, patch_size, size, path="sigma"
    )
    checks.same_device(image=image, pred=pred, sigma=sigma)
    target = BlurTarget(patch, loss, mean, std, max_sigma)
    total = _blur_recon.blur_recon_loss(pred, image, sigma, target)
    values = image.shape[1] * size[0] * size[1]
    total = total / divisor_of(values, sigma.numel(), reduction, masked=False)
    return reduced(total if reduction == "none" else total.sum(), None, reduction, single)
