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

from fastequi.kernels import native_blur
from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.blur import chunks_of, launch
from fastequi.kernels.gaussian_blur import gaussian_blur_ref
from fastequi.kernels.pixel_loss import error_, error_ref, kernel_layout, loss_outputs, patchify
from fastequi.kernels.precision import float16_divisor, without_autocast
from fastequi.kernels.target import BlurTarget


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
    pred_grad: bool,
) -> tuple[Tensor, Tensor]:
    """(sums of errors over `divisor` [B, K], their gradient by pred or empty)."""
    total, grad = loss_outputs(pred, (sigma.shape[0], sigma.shape[1]), patch_size, pred_grad)
    if pred.numel() == 0:
        return total.zero_(), grad
    pred = kernel_layout(pred, patch_size)
    target = BlurTarget(patch_size, loss, mean, std, max_sigma)
    weight = 1 / divisor
    if use_triton(pred):
        sums = launch(pred, image, sigma, target, grad if pred_grad else pred, pred_grad, weight)
        return sums.mul_(weight), grad
    if use_native(pred) and native_blur.compares(pred, image, target, total.dtype):
        native_blur.blur_recon(pred, image, sigma, target, weight, total, grad)
        return total, grad
    if use_native(pred):
        say_type("blur_recon_loss", pred.dtype, image.dtype, takes=native_blur.TAKES)
    for part in chunks_of(pred):
        wanted = gaussian_blur_ref(image[part], sigma[part], target, total.dtype)
        wanted = patchify(wanted, patch_size) if patch_size else wanted
        total[part] = error_(pred[part] - wanted, loss, grad[part] if pred_grad else None, weight)
    return total.mul_(weight), grad


def _fake(pred, image, sigma, patch_size, loss, mean, std, max_sigma, divisor, pred_grad):
    return loss_outputs(pred, sigma.shape, patch_size, pred_grad)


blur_recon_op = FusedLoss("blur_recon_loss", compute_blur_recon, _fake, {0: 1})


@without_autocast
def blur_recon_loss_ref(pred: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget) -> Tensor:
    """The eager chain: total [B, K], differentiable in everything."""
    compute = torch.float64 if torch.float64 in (pred.dtype, sigma.dtype) else torch.float32
    wanted = gaussian_blur_ref(image, sigma, target, compute)
    wanted = patchify(wanted, target.patch_size) if target.patch_size else wanted
    error = error_ref(pred.to(compute), wanted, target.loss)
    return error.sum(tuple(range(2, error.ndim)))


def blur_recon_loss(pred: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget) -> Tensor:
    """Sums of errors [B, K]; arguments already checked. Gradients go to `pred`.

    Where image or sigma wants a gradient, under torch.func, and in float64 on a GPU, the reference
    runs instead.
    """
    grad = torch.is_grad_enabled()
    wide = torch.float64 in (pred.dtype, sigma.dtype) and use_triton(pred)
    if wide or transformed() or (grad and (image.requires_grad or sigma.requires_grad)):
        return blur_recon_loss_ref(pred, image, sigma, target)
    inside = float16_divisor(pred.dtype, 1)
    total, _ = blur_recon_op(pred, image, sigma, *target, inside, grad and pred.requires_grad)
    return total * inside if inside != 1 else total
