"""The decoder's last linear and the path loss together, a chunk of predictions at a time.

Replaces, for K decoders with a linear layer each::

    pred = torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None]    # B·K·L·p·p·C values
    loss = warp_recon_loss(pred, image, theta, layout="patch", reduction="sum")

Never materialised: the predictions and their gradient, both as large as all the target images. A
chunk of them is made, compared and turned into gradients by hidden, weight and bias while it lies
in the L2 cache; the backward only scales those. So it moves hidden twice and its gradient once, and
the weight once per chunk; the arithmetic is that of the three matrix products.

The gradient by the weight is summed in float32 whatever the inputs are; each chunk's share of it is
rounded to their type before, as each matrix product rounds its result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import transformed
from fastequi.kernels.precision import float16_divisor, without_autocast
from fastequi.kernels.target import Target
from fastequi.kernels.warp_recon import compute_warp_recon, warp_recon_loss_ref


def images_per_chunk(image_bytes: int, cuda: bool) -> int:
    """So many that prediction and gradient stay in half of an H200's L2 cache, or a CPU's third."""
    cache = 24 << 20 if cuda else 8 << 20
    return max(cache // max(2 * image_bytes, 1), 1)


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
    divisor: int,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the sum of errors over `divisor`, count or empty, gradients by the first three or empty)."""
    target = Target(
        height, width, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )
    total, count, d_hidden, d_weight, d_bias = _outputs(hidden, weight, bias, mask_outside, grad)
    total.zero_()
    count.zero_()
    sums = [d_weight, d_bias]
    if grad and hidden.dtype != torch.float64:
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in sums]
    for one in sums:
        one.zero_()
    values = weight.shape[1] * hidden.shape[2]
    images = images_per_chunk(values * hidden.element_size(), hidden.is_cuda)
    for start in range(0, len(hidden) if hidden.numel() else 0, images):
        part = slice(start, start + images)
        for k in range(theta.shape[1]):
            step = slice(k, k + 1)
            source = hidden[part, k].flatten(0, 1)
            pred = F.linear(source, weight[k], None if bias is None else bias[k])
            pred = pred.unflatten(0, (-1, 1, hidden.shape[2]))
            part_total, part_count, by_pred, _ = compute_warp_recon(
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
            total += part_total
            if mask_outside:
                count += part_count
            if grad:
                by_pred = by_pred.flatten(0, 2)
                d_hidden[part, k] = (by_pred @ weight[k]).view_as(d_hidden[part, k])
                sums[0][k] += by_pred.T @ source
                if bias is not None:
                    sums[1][k] += by_pred.sum(0)
    if grad:
        d_weight.copy_(sums[0])
        d_bias.copy_(sums[1])
    return total, count, d_hidden, d_weight, d_bias


def _outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mask_outside: bool, grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = hidden.new_empty((), dtype=wide)
    count = hidden.new_empty(() if mask_outside else 0, dtype=wide)
    empty = hidden.new_empty(0)
    if not grad:
        return total, count, empty, empty.clone(), empty.clone()
    d_bias = (
        empty if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)
    )
    return (
        total,
        count,
        torch.empty_like(hidden, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        d_bias,
    )


def _fake(hidden, weight, bias, *options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mask_outside, _, grad = options[-3:]
    return _outputs(hidden, weight, bias, mask_outside, grad)


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
) -> tuple[Tensor, Tensor]:
    """The chain in plain PyTorch, differentiable in everything: (total [B, K], count [B, K])."""
    pred = torch.einsum("bkld,kpd->bklp", hidden, weight)
    if bias is not None:
        pred = pred + bias[:, None]
    return warp_recon_loss_ref(pred, image, theta, color, target)


def linear_warp_recon_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    divisor: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """The sum of errors over `divisor`, and the number of values; arguments already checked.

    Gradients go to hidden [B, K, L, D], weight [K, P, D] and bias [K, P]. Where image, θ or colour
    wants one, and under torch.func, the chain runs instead.
    """
    inputs = (hidden, weight, bias, image, theta, color)
    others = [t for t in (image, theta, color) if t is not None]
    if transformed() or (torch.is_grad_enabled() and any(t.requires_grad for t in others)):
        total, count = linear_warp_recon_loss_ref(*inputs, target)
        return total.sum() / divisor, count.sum() if target.mask_outside else None
    inside = _for_float16(hidden) if hidden.dtype == torch.float16 else divisor
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in leaves)
    total, count, *_ = linear_warp_recon_op(*inputs, *target, inside, grad)
    total = total if inside is divisor else total * inside / divisor
    return total, count if target.mask_outside else None


def _for_float16(hidden: Tensor) -> int:
    """A divisor between that of pixels, with which a sum over tokens could overflow, and of all.

    Divided by all of them a value's share of the gradient would vanish before a scaler sees it.
    """
    return max(round((hidden.shape[0] * hidden.shape[2]) ** 0.5), float16_divisor(hidden.dtype, 1))
