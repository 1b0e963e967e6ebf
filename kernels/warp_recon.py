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

Which implementation runs: Triton on a GPU, `warp_recon_packed.py` for what training feeds it and
`warp_recon_general.py` for the rest; C on a CPU; `warp_recon_eager.py` where neither can. Each adds
partial sums in a fixed order: the result is the same bits in every run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastequi.kernels import native_warp
from fastequi.kernels import warp_recon_packed as packed
from fastequi.kernels.autograd import FusedLoss, needs_operator
from fastequi.kernels.backend import say_type, transformed, use_native, use_triton
from fastequi.kernels.pixel_loss import (
    error_ref,
    kernel_layout,
    loss_outputs,
    patchify,
    unpatchify,
    with_image_gradient,
)
from fastequi.kernels.precision import float16_divisor, without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.sampling import (
    LAST_INSIDE,
    as_matrices,
    base_grid,
    color_ref,
    sample_ref,
    to_float,
)
from fastequi.kernels.target import Sums, Target
from fastequi.kernels.warp_adjoint import as_prepared, savable, warp_adjoint, with_steps
from fastequi.kernels.warp_recon_eager import warp_recon_eager
from fastequi.kernels.warp_recon_general import warp_recon_general


def compute_warp_recon(
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
    divisor: int,
    reduce: bool,
    pred_grad: bool,
    theta_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, count or empty, d total/d pred or empty, d total/d θ or empty).

    The total is the sum of errors over `divisor`, [B, K], or a scalar with `reduce`.
    """
    sums = _outputs(pred, theta, patch_size, reduce, mask_outside, pred_grad, theta_grad)
    if pred.numel() == 0:
        return Sums(sums.total.zero_(), sums.counted.zero_(), sums.grad, sums.dtheta.zero_())
    pred, weight = kernel_layout(pred, patch_size), 1 / divisor
    color = as_matrices(color, image.shape[1])
    target = Target(
        height, width, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
    )
    if use_triton(pred):
        tiles = None if theta_grad else packed.tiles_of(pred, image, target)
        if tiles:
            packed.warp_recon_packed(pred, image, theta, color, target, weight, sums, tiles)
            return sums
        run = warp_recon_general
    else:
        in_c = native_warp.samples(image) and native_warp.reads(pred, patch_size)
        # C tests "outside" in pixels; a side of one pixel with aligned corners has no scale
        no_scale = mask_outside and align_corners and 1 in image.shape[2:]
        in_c = in_c and not no_scale
        in_c = in_c and theta.dtype != torch.float64
        run = native_warp.warp_recon if in_c and use_native(pred) else warp_recon_eager
        if use_native(pred) and not in_c:
            given = pred.dtype, image.dtype, theta.dtype
            rows = native_warp.rows_of(pred, patch_size) or "rows with gaps"
            rows = native_warp.NEGATIVE if pred.is_neg() else rows
            rows += (
                ", mask_outside with aligned corners and a side of one pixel" if no_scale else ""
            )
            shape = f"{native_warp.said(image)}, {rows}"
            say_type("the path loss", *given, takes=native_warp.TAKES, shape=shape)
    each, in_parts = sums, reduce and run is not native_warp.warp_recon
    if in_parts:
        each = _outputs(pred, theta, patch_size, False, mask_outside, False, False)
        each = each._replace(grad=sums.grad, dtheta=sums.dtheta)
    run(pred, image, theta, color, target, weight, each)
    if in_parts:
        sums.total.copy_(each.total.sum())
        sums.counted.copy_(each.counted.sum() if mask_outside else each.counted)
    return sums


def _outputs(
    pred: Tensor,
    theta: Tensor,
    patch_size: int,
    reduce: bool,
    mask_outside: bool,
    pred_grad: bool,
    theta_grad: bool,
) -> Sums:
    batch, steps = theta.shape[:2]
    total, grad = loss_outputs(pred, () if reduce else (batch, steps), patch_size, pred_grad)
    counted = torch.empty_like(total) if mask_outside else total.new_empty(0)
    dtheta = total.new_empty((batch, steps, 2, 3) if theta_grad else 0)
    return Sums(total, counted, grad, dtheta)


def _fake(pred, image, theta, color, height, width, patch_size, *options) -> Sums:
    mask_outside, _, *wanted = options[-5:]
    return _outputs(pred, theta, patch_size, wanted[0], mask_outside, *wanted[1:])


warp_recon_op = FusedLoss("warp_recon_loss", compute_warp_recon, _fake, {0: 2, 2: 3})


@without_autocast
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
        inside = ~(points.abs() > LAST_INSIDE).any(2).unflatten(2, target.size)[:, :, None]
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
    divisor: int = 1,
    reduce: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(the sums of errors over `divisor`, numbers of values), [B, K] or, with `reduce`, scalars.

    Arguments are already checked. Gradients go to `pred` and `theta`, and to the image by
    `warp_adjoint.py`. Where the colour matrix wants one, under torch.func, for float64 on a GPU or
    with the image's gradient, and where a compiler looks at that, the reference runs instead. The
    count is None where it is all values.
    """
    grad = torch.is_grad_enabled()
    image_grad = grad and image.requires_grad
    wide = torch.float64 in (pred.dtype, theta.dtype, image.dtype if image_grad else None)
    if (
        transformed()
        or (grad and color is not None and color.requires_grad)
        or (image_grad and (wide or needs_operator(pred, image, theta, color)))
        or (wide and use_triton(pred))
    ):
        total, count = warp_recon_loss_ref(pred, image, theta, color, target)
        if reduce:
            total, count = total.sum(), count.sum()
        return total / divisor, count if target.mask_outside else None
    if image_grad:
        adjoint, given = (
            _Adjoint(target, image.shape[2:]),
            (savable(theta.detach()), savable(color)),
        )
        pred = with_image_gradient("warp_recon_loss", pred, image, adjoint, *given)
        image = image.detach()
    inside = float16_divisor(pred.dtype, divisor)
    pred_grad, theta_grad = grad and pred.requires_grad, grad and theta.requires_grad
    total, count, _, _ = warp_recon_op(
        pred, image, theta, color, *target, inside, reduce, pred_grad, theta_grad
    )
    total = total if inside is divisor else total * (inside / divisor)
    return total, count if target.mask_outside else None


def prepared(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    divisor: int,
) -> Again | None:
    """What :func:`warp_recon_loss` with `reduce` does for tensors like these, by C or the packed
    kernel; or None.

    It takes pred, image, theta and color as they were given, with or without the axis of steps.
    """
    grad = torch.is_grad_enabled()
    dense = (theta,) if color is None else (theta, color)
    if grad and image.requires_grad:
        return _prepared_with_image(pred, image, theta, color, target, divisor)
    if (
        as_matrices(color, image.shape[1]) is not color
        or target.mask_outside
        or not pred.numel()
        or pred.dtype not in (torch.float32, torch.bfloat16)
        or (grad and any(t.requires_grad for t in dense))
        or kernel_layout(pred, target.patch_size) is not pred
        or any(t.dtype != torch.float32 or not t.is_contiguous() or t.is_neg() for t in dense)
    ):
        return None
    wants, weight = grad and pred.requires_grad, 1 / divisor
    tensors = pred.detach(), image, theta, color
    if use_native(pred):
        if not (native_warp.samples(image) and native_warp.reads(pred, target.patch_size)):
            return None
        run = native_warp.prepared_warp_recon(*tensors, target, weight, wants)
    elif use_triton(pred) and (tiles := packed.tiles_of(pred, image, target)):
        given = *tensors[:3], color is not None, target, weight, tiles, wants, True
        run = packed.prepared(packed.plan_of(*given))
    else:
        return None
    if not wants:
        return lambda *given: run(*given)[0]

    def outputs(*given: Tensor) -> tuple[Tensor | None, ...]:
        total, slope = run(*given)
        return total, None, slope, None

    return warp_recon_op.again(outputs)


def _prepared_with_image(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    divisor: int,
) -> Again | None:
    """:func:`prepared` where the image wants a gradient, in C."""
    size, channels = image.shape[2:], image.shape[1]
    if torch.float64 in (pred.dtype, image.dtype) or not use_native(pred):
        return None
    wide = pred.detach().float().requires_grad_()
    inside = prepared(wide, image.detach(), theta, color, target, divisor)
    if inside is None:
        return None
    back = native_warp.prepared_adjoint(theta, color, target, size, channels, torch.float32)
    adjoint = _Adjoint(target, size, back)

    def call(pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        given = savable(theta), savable(color)
        pred = with_image_gradient("warp_recon_loss", pred, image, adjoint, *given)
        return inside(pred, image.detach(), theta, color)

    return call


@dataclass(frozen=True)
class _Adjoint:
    """From gradients in a prediction's layout to the image's; `back`: what does it for tensors like
    these, or None."""

    target: Target
    size: Sequence[int]
    back: Callable[..., Tensor] | None = None

    def __call__(self, slope: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        if theta.ndim == 3:
            slope, theta, color = with_steps(slope, theta, color)
        slope = unpatchify(slope, self.target.size, self.target.patch_size)
        if self.back is not None and as_prepared(slope, theta, color):
            return self.back(slope, theta, color)
        return warp_adjoint(slope, theta, color, self.target, self.size)
