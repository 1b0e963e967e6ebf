"""A decoder's last linear layer and the path loss together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks
from fastequi.functional.reduction import divisor_of, reduced
from fastequi.kernels import linear_warp_recon as _linear
from fastequi.kernels.precision import as_linear_casts
from fastequi.kernels.target import Target


def linear_warp_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    *,
    patch_size: int,
    overlap: int = 0,
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

        pred = hidden @ weight.mT + bias[:, None]             # for every step its own weight
        pred = windows added up to patches                    # if they overlap
        loss = warp_recon_loss(pred, image, theta, layout="patch", patch_size=patch_size, ...)

    but a chunk of predictions at a time, gradients in the same pass. It is for memory: on a CPU the
    two, one after the other, take less time (bench/results/README.md).

    Args:
        hidden: [B, K, L, D] tokens (or [B, L, D] with theta [B, 2, 3]); floating. The same for all
            steps as `x[:, None].expand(-1, K, -1, -1)`, which is not copied, as `x.transpose(1, 2)`
            of a layer's [B, L, K, D] is not; their gradient lies so.
        weight: [K, w·w·C, D], or [w·w·C, D] for all steps; of hidden's dtype. w is p, or what
            `overlap` makes of it.
        bias: [K, w·w·C], or [w·w·C], or None.
        image, theta, color, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside,
            size: as there.
        overlap: o, pixels by which a token's window reaches beyond its patch on every side, at most
            p/2; w = p + 2·o. A window's values lie as a patch's: rows, columns, channels. The
            windows of the H/p by W/p tokens are added up where they overlap (a transposed
            convolution of stride p), and what lies outside the image is then added back, mirrored
            with its edge pixels repeated (numpy's "symmetric"). Where the weight lets windows fade
            towards their edges, no edges of patches show: `fastequi.models.decoder.StepLinear` is
            such a layer, and makes the images too.
        reduction: "mean" or "sum"; the gradients of a scalar alone can be had in one pass.

    Returns:
        A float32 scalar (float64 for float64 tokens). Under autocast the tokens, weight and bias
        are cast as `F.linear` casts them.

    Gradients go to `hidden`, `weight` and `bias`. If image, θ or colour needs one, the two lines
    above run instead.

    Raises:
        TypeError, ValueError: as there; names the argument.
    """
    checks.check_names(loss=loss, padding_mode=padding_mode)
    arguments.one_of("reduction", reduction, ("mean", "sum"))
    arguments.flags(align_corners=align_corners, mask_outside=mask_outside)
    patch_size = arguments.integer("patch_size", patch_size)
    overlap = arguments.integer("overlap", overlap, 0, patch_size // 2)
    mean, std = checks.check_image(image, mean, std)
    size = None if size is None else arguments.two_sizes("size", size)
    checks.check_floating("hidden", hidden)
    hidden, theta, color, single = checks.with_steps(hidden, theta, color, 4, "hidden")
    checks.check_theta(theta, image, single)
    checks.check_color(color, theta, image)
    steps, values = theta.shape[1], patch_size**2 * image.shape[1]
    window = (patch_size + 2 * overlap) ** 2 * image.shape[1]
    weight, bias = checks.check_linear(hidden, weight, bias, image, steps, window)
    tokens = hidden.shape[2]
    target_size = checks.patch_target("hidden", tokens, image, patch_size, size)
    checks.same_device(
        image=image, hidden=hidden, weight=weight, bias=bias, theta=theta, color=color
    )
    hidden, weight, bias = as_linear_casts(hidden, weight, bias)
    divisor = divisor_of(values * tokens, len(image) * steps, reduction, mask_outside)
    target = Target(
        *target_size, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )
    total, count = _linear.linear_warp_recon_loss(
        hidden, weight, bias, image, theta, color, target, overlap, divisor
    )
    return reduced(total, count, reduction, single=False)
