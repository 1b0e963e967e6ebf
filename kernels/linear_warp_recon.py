"""The decoder's last linear and the path loss together, a chunk of predictions at a time.

Replaces, for K decoders with a linear layer each::

    pred = torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None]    # B·K·L·p·p·C values
    pred = overlap_add(pred)                                                 # if windows overlap
    loss = warp_recon_loss(pred, image, theta, layout="patch", reduction="sum")

Never materialised: the predictions and their gradient. See `linear_recon.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.linear_recon import (
    Windows,
    linear_recon,
    linear_ref,
    needs_chain,
    outputs,
    run,
)
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.target import Target
from fastequi.kernels.warp_recon import compute_warp_recon, warp_recon_loss_ref


def _compute(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    height: int,
    width: int,
    patch_size: int,
    loss: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    padding_mode: str,
    align_corners: bool,
    mask_outside: bool,
    overlap: int,
    divisor: int,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the sum of errors over `divisor`, count or empty, gradients by the first three or empty)."""
    target = Target(
        height, width, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )

    def compare(pred: Tensor, part: slice, step: slice) -> tuple[Tensor, Tensor | None, Tensor]:
        total, count, by_pred, _ = compute_warp_recon(
            pred,
            image[part],
            theta[part, step],
            None if color is None else color[part, step],
            *target,
            divisor,
            True,
            grad,
            False,
        )
        return total, count if mask_outside else None, by_pred

    windows = _windows(target, overlap)
    return linear_recon(hidden, weight, bias, windows, compare, mask_outside, grad)


def _windows(target: Target, overlap: int) -> Windows:
    patch = target.patch_size
    return Windows(target.height // patch, target.width // patch, patch, overlap)


def _fake(hidden, weight, bias, *options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask_outside, _, _, grad = options[-4:]
    return outputs(hidden, weight, bias, mask_outside, grad)


linear_warp_recon_op = FusedLoss("linear_warp_recon_loss", _compute, _fake, {0: 2, 1: 3, 2: 4})


@without_autocast
def linear_warp_recon_loss_ref(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    overlap: int = 0,
) -> tuple[Tensor, Tensor]:
    """The chain in plain PyTorch, differentiable in everything: (total [B, K], count [B, K])."""
    pred = linear_ref(hidden, weight, bias, _windows(target, overlap))
    return warp_recon_loss_ref(pred, image, theta, color, target)


def linear_warp_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    overlap: int = 0,
    divisor: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """The sum of errors over `divisor`, and the number of values; arguments already checked.

    Gradients go to hidden [B, K, L, D], weight [K, P, D] and bias [K, P]. Where image, θ or colour
    wants one, under torch.func, and for float64 on a GPU, the chain runs instead.
    """
    leaves, others = (hidden, weight, bias), (image, theta, color)
    if needs_chain(hidden, *others):
        total, count = linear_warp_recon_loss_ref(*leaves, *others, target, overlap)
        total, count = total.sum() / divisor, count.sum()
    else:
        total, count = run(linear_warp_recon_op, leaves, others, (*target, overlap), divisor)
    return total, count if target.mask_outside else None
