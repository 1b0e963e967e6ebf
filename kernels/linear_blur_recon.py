"""The decoder's last linear and the loss against blurred images, a chunk of predictions at a time.

Replaces, for K decoders with a linear layer each::

    pred = torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None]    # B·K·L·p·p·C values
    pred = overlap_add(pred)                                                 # if windows overlap
    loss = blur_recon_loss(pred, image, sigma, layout="patch", reduction="sum")

Never materialised: the predictions and their gradient. See `linear_recon.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.blur_recon import blur_recon_loss_ref, compute_blur_recon
from fastequi.kernels.linear_recon import (
    Windows,
    linear_recon,
    linear_ref,
    needs_chain,
    outputs,
    run,
)
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.target import BlurTarget


def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    sigma: Tensor,
    patch_size: int,
    loss: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    max_sigma: float,
    overlap: int,
    divisor: int,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the sum of errors over `divisor`, empty, gradients by the first three or empty)."""
    target = BlurTarget(patch_size, loss, mean, std, max_sigma)

    def compare(pred: Tensor, part: slice, step: slice) -> tuple[Tensor, None, Tensor]:
        total, by_pred = compute_blur_recon(
            pred, image[part], sigma[part, step], *target, divisor, True, grad
        )
        return total, None, by_pred

    windows = _windows(image, target, overlap)
    return linear_recon(hidden, weight, bias, windows, compare, False, grad)


def _windows(image: Tensor, target: BlurTarget, overlap: int) -> Windows:
    patch = target.patch_size
    return Windows(image.shape[2] // patch, image.shape[3] // patch, patch, overlap)


def _fake(hidden, weight, bias, *options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return outputs(hidden, weight, bias, False, options[-1])


linear_blur_recon_op = FusedLoss("linear_blur_recon_loss", _compute, _fake, {0: 2, 1: 3, 2: 4})


@without_autocast
def linear_blur_recon_loss_ref(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    overlap: int = 0,
) -> Tensor:
    """The chain in plain PyTorch: total [B, K], differentiable in everything."""
    pred = linear_ref(hidden, weight, bias, _windows(image, target, overlap))
    return blur_recon_loss_ref(pred, image, sigma, target)


def linear_blur_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    overlap: int = 0,
    divisor: int = 1,
) -> Tensor:
    """The sum of errors over `divisor`; arguments already checked.

    Gradients go to hidden [B, K, L, D], weight [K, P, D] and bias [K, P]. Where image or sigma
    wants one, under torch.func, and for float64 on a GPU, the chain runs instead.
    """
    leaves, others = (hidden, weight, bias), (image, sigma)
    if needs_chain(hidden, *others):
        return linear_blur_recon_loss_ref(*leaves, *others, target, overlap).sum() / divisor
    total, _ = run(linear_blur_recon_op, leaves, others, (*target, overlap), divisor)
    return total
