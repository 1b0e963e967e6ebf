"""A decoder's last linear layer and the loss against blurred images together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks, sigmas
from fastequi.functional.reduction import divisor_of
from fastequi.kernels import linear_blur_recon as _linear
from fastequi.kernels.precision import as_linear_casts
from fastequi.kernels.target import BlurTarget


def linear_blur_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    sigma: Tensor | float,
    *,
    patch_size: int,
    overlap: int = 0,
    loss: str = "mse",
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    reduction: str = "mean",
    max_sigma: float = 2.0,
) -> Tensor:
    """A decoder's last linear layer and :func:`blur_recon_loss`, predictions never stored whole.

    Equals, in value and gradient::

        pred = hidden @ weight.mT + bias[:, None]             # for every step its own weight
        pred = windows added up to patches                    # if they overlap
        loss = blur_recon_loss(pred, image, sigma, layout="patch", patch_size=patch_size, ...)

    but a chunk of predictions at a time, gradients in the same pass.

    Args:
        hidden: [B, K, L, D] tokens (or [B, L, D] with sigma [B]); floating. The same for all steps
            as `x[:, None].expand(-1, K, -1, -1)`, which is not copied, as `x.transpose(1, 2)` of a
            layer's [B, L, K, D] is not; their gradient lies so.
        weight: [K, w·w·C, D], or [w·w·C, D] for all steps; of hidden's dtype. w is p, or what
            `overlap` makes of it.
        bias: [K, w·w·C], or [w·w·C], or None.
        image, sigma, patch_size, loss, mean, std, max_sigma: as there.
        overlap: o, pixels by which a token's window reaches beyond its patch, w = p + 2·o; as in
            :func:`fastequi.functional.linear_warp_recon_loss`.
        reduction: "mean" or "sum"; the gradients of a scalar alone can be had in one pass.

    Returns:
        A float32 scalar (float64 for float64 tokens). Under autocast the tokens, weight and bias
        are cast as `F.linear` casts them.

    Gradients go to `hidden`, `weight` and `bias`. If image or sigma needs one, the two lines above
    run instead.

    Raises:
        TypeError, ValueError: as there; names the argument.
    """
    checks.check_names(loss=loss)
    arguments.one_of("reduction", reduction, ("mean", "sum"))
    patch_size = arguments.integer("patch_size", patch_size)
    overlap = arguments.integer("overlap", overlap, 0, patch_size // 2)
    max_sigma = arguments.number("max_sigma", max_sigma, above=0)
    mean, std = checks.check_image(image, mean, std)
    checks.check_floating("hidden", hidden)
    hidden, sigma, _ = sigmas.with_sigma(hidden, sigma, image, max_sigma, 4, "hidden")
    steps, values = sigma.shape[1], patch_size**2 * image.shape[1]
    window = (patch_size + 2 * overlap) ** 2 * image.shape[1]
    weight, bias = checks.check_linear(hidden, weight, bias, image, steps, window, path="sigma")
    tokens = hidden.shape[2]
    size = (image.shape[2], image.shape[3])
    checks.patch_target("hidden", tokens, image, patch_size, size, path="sigma")
    checks.same_device(image=image, hidden=hidden, weight=weight, bias=bias, sigma=sigma)
    hidden, weight, bias = as_linear_casts(hidden, weight, bias)
    divisor = divisor_of(values * tokens, len(image) * steps, reduction, masked=False)
    target = BlurTarget(patch_size, loss, mean, std, max_sigma)
    return _linear.linear_blur_recon_loss(
        hidden, weight, bias, image, sigma, target, overlap, divisor
    )
