"""The path loss against blurred images.

Replaces, for every image b and step k::

    target = gaussian_blur(image, sigma)                # [B, K, C, H, W]
    loss = F.mse_loss(pred.float(), (target - mean) / std)

Never materialised: the targets, and what blurring them makes (`gaussian_blur.py`). The gradient by
pred is written in the same pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native, native_blur, native_warp
from fastequi.kernels.autograd import FusedLoss, needs_operator
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.blur import chunks_of, launch
from fastequi.kernels.gaussian_blur import blur_adjoint, gaussian_blur_ref
from fastequi.kernels.pixel_loss import (
    error_,
    error_ref,
    kernel_layout,
    loss_outputs,
    patchify,
    unpatchify,
    with_image_gradient,
)
from fastequi.kernels.precision import float16_divisor, without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.target import BlurTarget
from fastequi.kernels.warp_adjoint import savable


def compute_blur_recon(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor,
    patch_size: int,
    loss: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    max_sigma: float,
    divisor: int,
    reduce: bool,
    pred_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(sums of errors over `divisor`, [B, K] or a scalar with `reduce`, their gradient by pred or
    empty)."""
    total, grad = loss_outputs(pred, (sigma.shape[0], sigma.shape[1]), patch_size, pred_grad)
    target = BlurTarget(patch_size, loss, mean, std, max_sigma)
    if pred.numel():
        slopes = grad if pred_grad else None
        total = _sums(kernel_layout(pred, patch_size), image, sigma, target, total, slopes, divisor)
    else:
        total.zero_()
    return total.sum() if reduce else total, grad


def _sums(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    total: Tensor,
    grad: Tensor | None,
    divisor: int,
) -> Tensor:
    """[B, K], in `total` or not; fills the gradient if there is one."""
    weight = 1 / divisor
    if use_triton(pred):
        out = pred if grad is None else grad
        return launch(pred, image, sigma, target, out, grad is not None, weight).mul_(weight)
    if use_native(pred) and native_blur.compares(pred, image, target, total.dtype):
        native_blur.blur_recon(pred, image, sigma, target, weight, total, grad)
        return total
    if use_native(pred):
        given, shape = (pred.dtype, image.dtype), native_warp.said(image)
        say_type("blur_recon_loss", *given, takes=native_blur.TAKES, shape=shape)
    for part in chunks_of(pred):
        wanted = gaussian_blur_ref(image[part], sigma[part], target, total.dtype)
        wanted = patchify(wanted, target.patch_size) if target.patch_size else wanted
        slopes = None if grad is None else grad[part]
        total[part] = error_(pred[part] - wanted, target.loss, slopes, weight)
    return total.mul_(weight)


def _fake(pred, image, sigma, patch_size, loss, mean, std, max_sigma, divisor, reduce, pred_grad):
    return loss_outputs(pred, () if reduce else sigma.shape, patch_size, pred_grad)


blur_recon_op = FusedLoss("blur_recon_loss", compute_blur_recon, _fake, {0: 1})


@without_autocast
def blur_recon_loss_ref(pred: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget) -> Tensor:
    """The eager chain: total [B, K], differentiable in everything."""
    compute = torch.float64 if torch.float64 in (pred.dtype, sigma.dtype) else torch.float32
    wanted = gaussian_blur_ref(image, sigma, target, compute)
    wanted = patchify(wanted, target.patch_size) if target.patch_size else wanted
    error = error_ref(pred.to(compute), wanted, target.loss)
    return error.sum(tuple(range(2, error.ndim)))


def blur_recon_loss(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    divisor: int = 1,
    reduce: bool = False,
) -> Tensor:
    """Sums of errors over `divisor`, [B, K] or, with `reduce`, their sum.

    Arguments are already checked. Gradients go to `pred`, and to the image by `blur_adjoint`. Where
    sigma wants one, under torch.func, in float64 on a GPU or with the image's gradient, and where a
    compiler looks at that, the reference runs instead.
    """
    grad = torch.is_grad_enabled()
    image_grad = grad and image.requires_grad
    wide = torch.float64 in (pred.dtype, sigma.dtype, image.dtype if image_grad else None)
    if (
        transformed()
        or (grad and sigma.requires_grad)
        or (image_grad and (wide or needs_operator(pred, image, sigma)))
        or (wide and use_triton(pred))
    ):
        total = blur_recon_loss_ref(pred, image, sigma, target) / divisor
        return total.sum() if reduce else total
    if image_grad:
        size = image.shape[2], image.shape[3]

        def adjoint(slope: Tensor, sigma: Tensor) -> Tensor:
            slope = unpatchify(slope, size, target.patch_size)
            return blur_adjoint(slope, sigma, target)

        pred = with_image_gradient("blur_recon_loss", pred, image, adjoint, savable(sigma))
        image = image.detach()
    inside = float16_divisor(pred.dtype, divisor)
    wanted = grad and pred.requires_grad
    total, _ = blur_recon_op(pred, image, sigma, *target, inside, reduce, wanted)
    return total if inside is divisor else total * (inside / divisor)


def prepared(
    pred: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget, divisor: int
) -> Again | None:
    """What :func:`blur_recon_loss` with `reduce` does for tensors like these, in C; or None.

    It takes pred, image and sigma as they were given, with or without the axis of steps.
    """
    grad = torch.is_grad_enabled()
    if (
        not use_native(pred)
        or not pred.numel()
        or (grad and (image.requires_grad or sigma.requires_grad))
        or kernel_layout(pred, target.patch_size) is not pred
        or not native_blur.compares(pred, image, target, torch.float32)
        or pred.dtype == torch.float64
        or not native.plain(sigma)
    ):
        return None
    wants = grad and pred.requires_grad
    run = native_blur.prepared_loss(pred.detach(), image, sigma, target, 1 / divisor, wants)
    return blur_recon_op.again(run) if wants else lambda *given: run(*given)[0]
