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

The sum of each program's pixels is written down and reduced in a second step, without atomics:
the result is the same bits in every run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.backend import tl, triton, use_native, use_triton
from fastequi.kernels.pixel_loss import (
    _error,
    _pixel_of,
    _pred_offsets,
    error_ref,
    kernel_layout,
    loss_outputs,
    patchify,
    scaled,
    strides_of,
)
from fastequi.kernels.sampling import (
    _affine_taps,
    _bilinear,
    base_grid,
    color_ref,
    constants,
    sample_ref,
    to_float,
)
from fastequi.kernels.target import Sums, Target
from fastequi.kernels.warp_recon_lean import lean


@triton.jit
def _warp_recon_fwd_kernel(
    # pointers
    pred_ptr,
    image_ptr,
    theta_ptr,
    color_ptr,
    mean_ptr,
    std_ptr,
    total_ptr,
    count_ptr,
    grad_ptr,
    dtheta_ptr,
    # shapes
    K,
    H,
    W,
    HS,
    WS,
    GW,
    NB,
    # strides
    stride_pb,
    stride_pk,
    stride_p0,
    stride_p1,
    stride_p2,
    stride_ib,
    stride_ic,
    stride_iy,
    stride_ix,
    stride_tb,
    stride_tk,
    # constants
    C: tl.constexpr,
    PATCH: tl.constexpr,
    LOSS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_COLOR: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SCALE: tl.constexpr,
    MASK_OUTSIDE: tl.constexpr,
    PRED_GRAD: tl.constexpr,
    THETA_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # total[b, k] = Σ_{c,y,x} ℓ(pred - (color_c · image[b, :, θ_k (x, y)] - mean_c) / std_c)
    pid = tl.program_id(0)
    k = pid % K  # the steps of one image innermost: they share its source in L2
    block = (pid // K) % NB
    b = (pid // (K * NB)).to(tl.int64)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    live = offs < H * W
    y, x, token, inner = _pixel_of(offs, W, GW, PATCH)
    theta = theta_ptr + b * stride_tb + k * stride_tk
    ix, iy, dx, dy, xn, yn, outside, poison = _affine_taps(
        theta, x, y, H, W, HS, WS, ALIGN, PADDING
    )
    counted = live
    if MASK_OUTSIDE:
        counted = live & (outside == 0)
    image = image_ptr + b * stride_ib
    base = b * stride_pb + k * stride_pk
    place = _pred_offsets(y, x, token, inner, stride_p0, stride_p1, stride_p2, C, PATCH)
    if HAS_COLOR:
        v0, x0, y0 = _bilinear(image, ix, iy, HS, WS, stride_iy, stride_ix, live)
        v1, x1, y1 = _bilinear(image + stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
        v2, x2, y2 = _bilinear(image + 2 * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
    total = tl.zeros([BLOCK], tl.float32)
    by_x = tl.zeros([BLOCK], tl.float32)
    by_y = tl.zeros([BLOCK], tl.float32)
    for c in tl.static_range(C):
        if HAS_COLOR:
            row = color_ptr + (b * K + k) * 12 + c * 4
            m0 = tl.load(row) * SCALE
            m1 = tl.load(row + 1) * SCALE
            m2 = tl.load(row + 2) * SCALE
            v = m0 * v0 + m1 * v1 + m2 * v2 + tl.load(row + 3)
            vx = m0 * x0 + m1 * x1 + m2 * x2
            vy = m0 * y0 + m1 * y1 + m2 * y2
        else:
            v, vx, vy = _bilinear(image + c * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
            v *= SCALE
            vx *= SCALE
            vy *= SCALE
        if HAS_NORM:
            gain = 1.0 / tl.load(std_ptr + c)
            v = (v - tl.load(mean_ptr + c)) * gain
            vx *= gain
            vy *= gain
        channel = c if PATCH > 0 else c * stride_p0
        at = base + place + channel
        pred = tl.load(pred_ptr + at, mask=live, other=0.0).to(tl.float32)
        value, slope = _error(pred - (v + poison), LOSS)
        value = tl.where(counted, value, 0.0)
        slope = tl.where(counted, slope, 0.0)
        total += value
        if PRED_GRAD:
            tl.store(grad_ptr + at, slope.to(grad_ptr.dtype.element_ty), mask=live)
        if THETA_GRAD:
            by_x -= slope * vx
            by_y -= slope * vy
    part = (b * K + k) * NB + block
    tl.store(total_ptr + part, tl.sum(total, 0))
    if MASK_OUTSIDE:
        tl.store(count_ptr + part, tl.sum(counted.to(tl.float32), 0) * C)
    if THETA_GRAD:
        by_x *= dx
        by_y *= dy
        row = dtheta_ptr + part * 6
        tl.store(row + 0, tl.sum(by_x * xn, 0))
        tl.store(row + 1, tl.sum(by_x * yn, 0))
        tl.store(row + 2, tl.sum(by_x, 0))
        tl.store(row + 3, tl.sum(by_y * xn, 0))
        tl.store(row + 4, tl.sum(by_y * yn, 0))
        tl.store(row + 5, tl.sum(by_y, 0))


def _launch_config(pixels: int) -> tuple[int, int]:
    """(BLOCK, num_warps): four pixels per thread; with every option on, eight spill."""
    return (512, 4) if pixels >= 2048 else (128, 4)


@torch.library.custom_op("fastequi::warp_recon_loss", mutates_args=())
def _warp_recon_op(
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
    pred_grad: bool,
    theta_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total [B, K], count [B, K] or empty, d total/d pred or empty, d total/d θ or empty).

    d total/d pred comes `weight` times as large on a CPU, so that a mean's backward has no work.
    """
    sums = _outputs(pred, theta, mask_outside, pred_grad, theta_grad)
    total, count, grad, dtheta = sums
    if pred.numel() == 0:
        return total.zero_(), count.zero_(), grad, dtheta.zero_()
    if not use_triton(pred):
        target = Target(
            height, width, patch_size, loss, mean, std, padding_mode, align_corners, mask_outside
        )
        in_c = use_native(pred) and native.samples(image) and native.reads(pred, patch_size)
        run = native.warp_recon if in_c and theta.dtype != torch.float64 else lean
        run(pred, image, theta, color, target, weight, sums)
        return sums
    batch, steps = theta.shape[:2]
    block, num_warps = _launch_config(height * width)
    blocks = triton.cdiv(height * width, block)
    totals = total.new_empty(batch, steps, blocks)
    counts = total.new_empty(batch, steps, blocks) if mask_outside else None
    dthetas = total.new_empty(batch, steps, blocks, 6) if theta_grad else None
    theta = theta if theta.stride()[2:] == (3, 1) else theta.contiguous()
    color = color if color is None else color.float().contiguous()
    with torch.cuda.device_of(pred):
        _warp_recon_fwd_kernel[(batch * steps * blocks,)](
            pred,
            image,
            theta,
            color,
            constants(tuple(mean), pred.device, torch.float32) if mean is not None else None,
            constants(tuple(std), pred.device, torch.float32) if std is not None else None,
            totals,
            counts,
            grad if pred_grad else None,
            dthetas,
            steps,
            height,
            width,
            *image.shape[2:],
            width // patch_size if patch_size else 1,
            blocks,
            *pred.stride()[:2],
            *strides_of(pred, patch_size),
            *image.stride(),
            *theta.stride()[:2],
            C=image.shape[1],
            PATCH=patch_size,
            LOSS=loss,
            PADDING=padding_mode,
            ALIGN=align_corners,
            HAS_COLOR=color is not None,
            HAS_NORM=mean is not None,
            SCALE=1 / 255 if image.dtype == torch.uint8 else 1.0,
            MASK_OUTSIDE=mask_outside,
            PRED_GRAD=pred_grad,
            THETA_GRAD=theta_grad,
            BLOCK=block,
            num_warps=num_warps,
        )
    torch.sum(totals, -1, out=total)
    if counts is not None:
        torch.sum(counts, -1, out=count)
    if dthetas is not None:
        torch.sum(dthetas, 2, out=dtheta.view(batch, steps, 6))
    return total, count, grad, dtheta


def _outputs(
    pred: Tensor, theta: Tensor, mask_outside: bool, pred_grad: bool, theta_grad: bool
) -> Sums:
    batch, steps = theta.shape[:2]
    total, grad = loss_outputs(pred, (batch, steps), pred_grad)
    count = total.new_empty((batch, steps) if mask_outside else 0)
    dtheta = total.new_empty((batch, steps, 2, 3) if theta_grad else 0)
    return Sums(total, count, grad, dtheta)


@_warp_recon_op.register_fake
def _(pred, image, theta, *options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mask_outside, _, pred_grad, theta_grad = options[-4:]
    return _outputs(pred, theta, mask_outside, pred_grad, theta_grad)


def _setup_context(ctx, inputs, output) -> None:
    _, _, grad, dtheta = output
    ctx.save_for_backward(grad, dtheta)
    ctx.set_materialize_grads(False)  # else zeros as large as the prediction stand in for None
    ctx.theta_dtype = inputs[2].dtype
    ctx.weight = 1.0 if use_triton(inputs[0]) else inputs[13]


def _backward(ctx, g_total, g_count, g_grad, g_dtheta):
    """total is a function of pred and θ whose gradients the forward has written: scale them."""
    grad, dtheta = ctx.saved_tensors
    d_pred = d_theta = None
    if g_total is not None and ctx.needs_input_grad[0]:
        d_pred = scaled(grad, g_total, ctx.weight)
    if g_total is not None and ctx.needs_input_grad[2]:
        d_theta = (dtheta * g_total[..., None, None]).to(ctx.theta_dtype)
    return (d_pred, None, d_theta, *[None] * 13)


_warp_recon_op.register_autograd(_backward, setup_context=_setup_context)


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
) -> tuple[Tensor, Tensor | None]:
    """Sums of errors and numbers of values, both [B, K]; arguments already checked.

    `weight` is what the sums will be multiplied by, if that is known: the backward is free then.
    Gradients go to `pred` and `theta`. Where the image or the colour matrix wants one, and for
    float64 on a GPU, the reference runs instead. The count is None where it is all values.
    """
    grad = torch.is_grad_enabled()
    others = (image,) if color is None else (image, color)
    if (grad and any(t.requires_grad for t in others)) or (
        torch.float64 in (pred.dtype, theta.dtype) and use_triton(pred)
    ):
        return warp_recon_loss_ref(pred, image, theta, color, target)
    if pred.dtype == torch.float16:  # a gradient so small would vanish before a scaler sees it
        weight = 1.0
    pred_grad, theta_grad = grad and pred.requires_grad, grad and theta.requires_grad
    pred = kernel_layout(pred, target.patch_size)
    total, count, _, _ = _warp_recon_op(
        pred, image, theta, color, *target, weight, pred_grad, theta_grad
    )
    return total, count if target.mask_outside else None
