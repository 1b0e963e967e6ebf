"""The decoder's last linear and a path loss together: what warped and blurred targets share.

For `linear_warp_recon.py` and `linear_blur_recon.py`. Replaces, for K decoders with a linear layer
each::

    pred = torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None]    # B·K·L·p·p·C values
    loss = error(pred, target(image, path))

Never materialised: the predictions and their gradient, both as large as all the target images. A
chunk of one step's is made, compared and turned into gradients by hidden, weight and bias; the
backward only scales those. On a CPU a chunk stays in the cache, so that hidden is moved twice, its
gradient once and the weight once per chunk; on a GPU it is as large as launches need to be. The
arithmetic is that of the three matrix products. Hidden tokens that
are the same for all steps are read where they lie, as `expand` leaves them.

The gradient by the weight is summed in float32 whatever the inputs are; each chunk's share of it is
rounded to their type before, as each matrix product rounds its result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import transformed, use_triton
from fastequi.kernels.precision import float16_divisor

Compare = Callable[[Tensor, slice, slice], tuple[Tensor, Tensor | None, Tensor]]
"""(predictions of some images and one step [b, 1, L, P], images, step) → (their error, number of
values or None for all, gradient by the predictions)."""


def images_per_chunk(image_bytes: int, cuda: bool) -> int:
    """So many that a step's prediction and gradient take 256 MB on a GPU, a third of a CPU's cache.

    A chunk that stayed in an H200's L2 cache (24 MB) took five times as long as predictions that
    are stored, since its dozen launches were shorter than the host's time to start them.
    """
    most = 256 << 20 if cuda else 8 << 20
    return max(most // max(2 * image_bytes, 1), 1)


def linear_recon(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    compare: Compare,
    masked: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the sum of errors, count if `masked` or empty, gradients by the first three or empty)."""
    total, count, d_hidden, d_weight, d_bias = outputs(hidden, weight, bias, masked, grad)
    total.zero_()
    count.zero_()
    sums = [d_weight, d_bias]
    if grad and hidden.dtype != torch.float64:
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in sums]
    for one in sums:
        one.zero_()
    values = weight.shape[1] * hidden.shape[2]
    images = images_per_chunk(values * hidden.element_size(), hidden.is_cuda)
    for start in range(0, len(hidden) if hidden.shape[2] else 0, images):
        part = slice(start, start + images)
        for k in range(hidden.shape[1]):
            source = hidden[part, k].flatten(0, 1)
            pred = F.linear(source, weight[k], None if bias is None else bias[k])
            pred = pred.unflatten(0, (-1, 1, hidden.shape[2]))
            part_total, part_count, by_pred = compare(pred, part, slice(k, k + 1))
            total += part_total
            if part_count is not None:
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


def outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, masked: bool, grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What :func:`linear_recon` returns, unwritten."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = hidden.new_empty((), dtype=wide)
    count = hidden.new_empty(() if masked else 0, dtype=wide)
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


def linear_ref(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The predictions in plain PyTorch."""
    pred = torch.einsum("bkld,kpd->bklp", hidden, weight)
    return pred if bias is None else pred + bias[:, None]


def needs_chain(hidden: Tensor, *others: Tensor | None) -> bool:
    """Whether the reference must run.

    Where a tensor that is not the layer's wants a gradient, under torch.func, in float64 on a GPU.
    """
    if transformed() or (hidden.dtype == torch.float64 and use_triton(hidden)):
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in others)


def run(
    op: FusedLoss,
    leaves: tuple[Tensor, Tensor, Tensor | None],
    others: Sequence[Tensor | None],
    target: tuple[Any, ...],
    divisor: int,
) -> tuple[Tensor, Tensor]:
    """(the sum of errors over `divisor`, count or empty) of an op with these inputs."""
    hidden = leaves[0]
    inside = _for_float16(*leaves[:2]) if hidden.dtype == torch.float16 else divisor
    wanted = any(t.requires_grad for t in leaves if t is not None)
    grad = torch.is_grad_enabled() and wanted
    total, count, *_ = op(*leaves, *others, *target, inside, grad)
    return total if inside is divisor else total * inside / divisor, count


def _for_float16(hidden: Tensor, weight: Tensor) -> int:
    """A divisor between that of pixels, with which sums could overflow, and of all values.

    The weight's gradient is a sum over B·L tokens, a token's over P values: such sums grow with the
    root of their length. Divided by all values, a value's share of the gradient would vanish before
    a scaler sees it.
    """
    longest = max(hidden.shape[0] * hidden.shape[2], weight.shape[1])
    return max(round(longest**0.5), float16_divisor(hidden.dtype, 1))
