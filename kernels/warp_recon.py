"""The path loss: reconstruction error against images warped on the fly.

Replaces, for predictions of K warped images each::

    grid = F.affine_grid(theta, size, align_corners)
    target = F.grid_sample(image.float() / 255, grid, "bilinear", padding_mode, align_corners)
    target = torch.einsum("bij,bjhw->bihw", color[..., :3], target) + color[..., 3]
    target = (target - mean) / std                      # then patchified, if pred is patch tokens
    loss = F.mse_loss(pred.float(), target)

Never materialised: the targets, the grid, a float copy of the image, an unpatchified prediction.
The gradients by pred and θ are written in the same pass, so the backward only scales them.
Bytes per predicted value in bf16: 2 read, 2 written (with gradient), and the source once per image
where the K steps of one image, which run side by side, find it in the L2 cache: at 3×224×224 and
uint8, 0.30 + 0.30 MB per target and 0.15 MB per image.

Which implementation runs: Triton on a GPU, `warp_recon_texels.py` for what training feeds it and
`warp_recon_general.py` for the rest; C on a CPU; `warp_recon_lean.py` where neither can. Each adds
partial sums in a fixed order: the result is the same bits in every run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.backend import use_native, use_triton
from fastequi.kernels.direct import direct
from fastequi.kernels.pixel_loss import error_ref, kernel_layout, loss_outputs, patchify, scaled
from fastequi.kernels.sampling import base_grid, color_ref, sample_ref, to_float
from fastequi.kernels.target import Sums, Target
from fastequi.kernels.warp_recon_general import warp_recon_general
from fastequi.kernels.warp_recon_lean import lean
from fastequi.kernels.warp_recon_texels import tiles_of, warp_recon_texels


def _compute(
    pred: Tensor,
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
    weight: float,
    reduce: bool,
    pred_grad: bool,
    theta_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, count or empty, d total/d pred or empty, d total/d θ or empty).

    The total is `weight` times the sum of errors, [B, K], or a scalar with `reduce`.
    """
    sums = _outputs(pred, theta, reduce, mask_outside, pred_grad, theta_grad)
    if pred.numel() == 0:
        return Sums(sums.total.zero_(), sums.counted.zero_(), sums.grad, sums.dtheta.zero_())
    target = Target(
        height, width, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )
    if use_triton(pred):
        tiles = None if theta_grad else tiles_of(pred, image, target)
        if tiles:
            warp_recon_texels(pred, image, theta, color, target, weight, sums, tiles)
            return sums
        run = warp_recon_general
    else:
        in_c = use_native(pred) and native.samples(image) and native.reads(pred, patch_size)
        run = native.warp_recon if in_c and theta.dtype != torch.float64 else lean
    each = sums
    if reduce:
        each = _outputs(pred, theta, False, mask_outside, False, False)
        each = each._replace(grad=sums.grad, dtheta=sums.dtheta)
    run(pred, image, theta, color, target, weight, each)
    if reduce:
        sums.total.copy_(each.total.sum())
        sums.counted.copy_(each.counted.sum() if mask_outside else each.counted)
    return sums


def _outputs(
    pred: Tensor,
    theta: Tensor,
    reduce: bool,
    mask_outside: bool,
    pred_grad: bool,
    theta_grad: bool,
) -> Sums:
    batch, steps = theta.shape[:2]
    total, grad = loss_outputs(pred, () if reduce else (batch, steps), pred_grad)
    counted = torch.empty_like(total) if mask_outside else total.new_empty(0)
    dtheta = total.new_empty((batch, steps, 2, 3) if theta_grad else 0)
    return Sums(total, counted, grad, dtheta)


_warp_recon_op = torch.library.custom_op("fastequi::warp_recon_loss", _compute, mutates_args=())


@_warp_recon_op.register_fake
def _(pred, image, theta, *options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask_outside, _, *wanted = options[-5:]
    return _outputs(pred, theta, wanted[0], mask_outside, *wanted[1:])


def _setup_context(ctx, inputs, output) -> None:
    _, _, grad, dtheta = output
    ctx.save_for_backward(grad, dtheta)
    ctx.set_materialize_grads(False)  # else zeros as large as the prediction stand in for None
    ctx.theta_dtype = inputs[2].dtype


def _backward(ctx, g_total, g_count, g_grad, g_dtheta):
    """total is a function of pred and θ whose gradients the forward has written: scale them."""
    grad, dtheta = ctx.saved_tensors
    d_pred = d_theta = None
    if g_total is not None and ctx.needs_input_grad[0]:
        d_pred = scaled(ctx, grad, g_total)
    if g_total is not None and ctx.needs_input_grad[2]:
        d_theta = (dtheta * g_total[..., None, None]).to(ctx.theta_dtype)
    return (d_pred, None, d_theta, *[None] * 14)


_warp_recon_op.register_autograd(_backward, setup_context=_setup_context)
_warp_recon = direct(_warp_recon_op, _compute, _setup_context, _backward)


def warp_recon_loss_ref(
    pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target
) -> tuple[Tensor, Tensor]:
    """The eager chain, differentiable in everything: (total [B, K], count [B, K])."""
    wide = torch.float64 in (pred.dtype, theta.dtype, image.dtype)
    compute = torch.float64 if wide else torch.float32
    theta = theta.to(compute)
    wanted = sample_ref(to_float(image, compute), theta, target.size, **target.eager())
    wanted = color_ref(wanted, color, target.mean, target.std)
    keep = torch.ones_like(wanted)
    if target.mask_outside:
        points = theta @ base_grid(target.size, target.align_corners, theta)
        inside = ~(points.abs() > 1).any(2).unflatten(2, target.size)[:, :, None]
        keep = inside.to(compute).expand_as(wanted)
    if target.patch_size:
        wanted, keep = patchify(wanted, target.patch_size), patchify(keep, target.patch_size)
    error = error_ref(pred.to(compute), wanted, target.loss)
    axes = tuple(range(2, error.ndim))
    return torch.where(keep > 0, error, 0.0).sum(axes), keep.sum(axes)


def warp_recon_loss(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float = 1.0,
    reduce: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(`weight` times the sums of errors, numbers of values), [B, K] or, with `reduce`, scalars.

    Arguments are already checked. Gradients go to `pred` and `theta`. Where the image or the colour
    matrix wants one, and for float64 on a GPU, the reference runs instead. The count is None where
    it is all values.
    """
    grad = torch.is_grad_enabled()
    others = (image,) if color is None else (image, color)
    if (grad and any(t.requires_grad for t in others)) or (
        torch.float64 in (pred.dtype, theta.dtype) and use_triton(pred)
    ):
        total, count = warp_recon_loss_ref(pred, image, theta, color, target)
        if reduce:
            total, count = total.sum(), count.sum()
        return total * weight, count if target.mask_outside else None
    # in half precision a gradient so small would vanish before a scaler sees it
    inside = 1.0 if pred.dtype == torch.float16 else weight
    pred_grad, theta_grad = grad and pred.requires_grad, grad and theta.requires_grad
    pred = kernel_layout(pred, target.patch_size)
    total, count, _, _ = _warp_recon(
        pred, image, theta, color, *target, inside, reduce, pred_grad, theta_grad
    )
    total = total if inside == weight else total * weight
    return total, count if target.mask_outside else None
