"""Reconstruction error against blurred images that are made on the fly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks, sigmas
from fastequi.functional.reduction import divisor_of, reduced
from fastequi.kernels import blur_recon as _blur_recon
from fastequi.kernels.precision import widened
from fastequi.kernels.prepared import Calls
from fastequi.kernels.target import BlurTarget

_CALLS = Calls()


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
        image: [B, C, H, W], uint8, uint16 or floating.
        sigma: [B, K] or [B] standard deviations in pixels, 0 for no blur; or one number for all.
        loss, layout, patch_size, mean, std, reduction: as in :func:`warp_recon_loss`.
        max_sigma: fixes the kernel's radius, ceil(4·max_sigma) pixels. A larger sigma is an error
            on the CPU and NaN on a GPU, where a check would need a host sync.

    Gradients go to `pred` and, with the memory of one float32 prediction more, to `image`; if sigma
    needs one, and for an image's in float64 and under torch.compile, the eager chain runs instead.
    """
    (pred,) = widened(pred)
    given = sigma if isinstance(sigma, Tensor) else None
    number = None if given is not None else sigma
    options = number, loss, layout, patch_size, mean, std, reduction, max_sigma
    key, again = _CALLS.find((pred, image, given), options)
    if again is not None:
        return again(pred, image, given)
    checks.check_names(loss=loss, layout=layout, reduction=reduction)
    max_sigma = arguments.number("max_sigma", max_sigma, above=0)
    mean, std = checks.check_image(image, mean, std)
    checks.check_floating("pred", pred)
    ndim = 5 if layout == "image" else 4
    shaped, steps, single = sigmas.with_sigma(pred, sigma, image, max_sigma, ndim, "pred")
    size = (image.shape[2], image.shape[3])
    patch, _ = checks.check_pred(
        shaped, image, steps.shape[1], layout, patch_size, size, path="sigma", single=single
    )
    checks.same_device(image=image, pred=pred, sigma=steps)
    target = BlurTarget(patch, loss, mean, std, max_sigma)
    values = image.shape[1] * size[0] * size[1]
    divisor = divisor_of(values, steps.numel(), reduction, masked=False)
    reduce = reduction != "none"

    def run(pred: Tensor, image: Tensor, sigma: Tensor) -> Tensor:
        if single:
            pred, sigma = pred[:, None], sigma[:, None]
        total = _blur_recon.blur_recon_loss(pred, image, sigma, target, divisor, reduce)
        return reduced(total, None, reduction, single)

    same = steps[:, 0] if single else steps
    if key is None:
        return run(pred, image, same)
    in_c = _blur_recon.prepared(shaped, image, steps, target, divisor) if reduce else None
    call = in_c or run
    looked = sigmas.with_sigma_checked(call, given, same, max_sigma)
    _CALLS.keep(key, checks.with_range_checked(looked, 1, image, mean))
    return call(pred, image, same)
