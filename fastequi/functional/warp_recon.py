"""Reconstruction error against warped images that are made on the fly.

Images are uint8 in 0..255, uint16 in 0..65535 or floating in 0..1; mean and std are in 0..1. Checks
that would have to read a GPU's memory (the range of a float image) run on CPU tensors, and on GPU
tensors too where FASTEQUI_CHECK=1 is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.functional.reduction import divisor_of, reduced
from fastequi.kernels import warp_recon as _warp_recon
from fastequi.kernels.precision import widened
from fastequi.kernels.prepared import Calls
from fastequi.kernels.target import Target

_CALLS = Calls()


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
        image: [B, C, Hs, Ws] source, uint8 (255 is 1), uint16 (65535 is 1) or floating, any
            strides; Hs, Ws may differ from H, W.
        theta: [B, K, 2, 3] output-to-input affine matrices in the convention of `F.affine_grid`.
        color: [B, K, C, C + 1] affine maps of the samples in 0..1, of up to four channels; or
            [B, K, C, 2], a gain and an offset of each channel, of any number.
        loss: "mse", "l1" or "smooth_l1" (beta 1).
        layout: "image" or "patch".
        patch_size: p in pixels, for layout="patch".
        mean, std: C floats each in 0..1, or one for all; the target is (x - mean) / std of an image
            x in 0..1. Both, or neither, as for maps of features.
        padding_mode: "zeros" (before colour and normalisation), "border" or "reflection".
        align_corners: as in `F.grid_sample`; matrices of the paths of this library are for False.
        mask_outside: leave out pixels whose sample point lies outside the image (-1 .. 1); the mean
            is over what is left, and 0 if nothing is. With "zeros" those at its border, half a
            pixel wide, are mixed with zeros: "border" has none of that.
        reduction: "mean" over all values, "sum", or "none": the mean per image and step, [B, K]
            ([B] without K).
        size: (H, W) of the target for layout="patch", or one number for both. By default the
            image's own size where it has L patches, else a square.

    Returns:
        A float32 scalar (float64 for float64 predictions), or [B, K] with reduction="none".
        A θ that is not finite gives NaN for its image and step.

    Gradients go to `pred` and `theta`, from the same pass, and to `image` (feature maps, say, that
    are compared after a warp), by the adjoint of the warp and with the memory of one float32
    prediction more. If `color` needs one, and for an image's in float64 and under
    torch.compile, the chain above runs instead, with the right gradient and its memory.

    Raises:
        TypeError: an argument of a type or dtype that cannot be.
        ValueError: shapes, names or values that do not fit; names the argument.
    """
    (pred,) = widened(pred)
    given = pred, image, theta, color
    options = (loss, layout, patch_size, mean, std, padding_mode, align_corners, mask_outside)
    key, again = _CALLS.find(given, (*options, reduction, size))
    if again is not None:
        return again(*given)
    checks.check_names(loss=loss, layout=layout, padding_mode=padding_mode, reduction=reduction)
    arguments.flags(align_corners=align_corners, mask_outside=mask_outside)
    mean, std = checks.check_image(image, mean, std)
    size = None if size is None else arguments.two_sizes("size", size)
    checks.check_floating("pred", pred)
    steps = checks.with_steps(pred, theta, color, 5 if layout == "image" else 4)
    pred, theta, color, single = steps
    checks.check_theta(theta, image, single)
    checks.check_color(color, theta, image)
    patch, target_size = checks.check_pred(
        pred, image, theta.shape[1], layout, patch_size, size, single=single
    )
    checks.same_device(image=image, pred=pred, theta=theta, color=color)
    values = image.shape[1] * target_size[0] * target_size[1]
    divisor = divisor_of(values, theta.shape[0] * theta.shape[1], reduction, mask_outside)
    target = Target(*target_size, patch, loss, mean, std, padding_mode, align_corners, mask_outside)
    reduce = reduction != "none"

    def run(pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        if single:
            pred, theta = pred[:, None], theta[:, None]
            color = color[:, None] if color is not None and color.ndim == 3 else color
        total, count = _warp_recon.warp_recon_loss(
            pred, image, theta, color, target, divisor, reduce
        )
        return reduced(total, count, reduction, single)

    if key is None:
        return run(*given)
    in_c = _warp_recon.prepared(pred, image, theta, color, target, divisor) if reduce else None
    call = in_c or run
    _CALLS.keep(key, checks.with_range_checked(call, 1, image, mean))
    return call(*given)
