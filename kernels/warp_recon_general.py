"""The path loss in Triton for what the faster kernel does not read.

Images of any strides, dtype and number of channels, predictions of any size, and the gradient by θ:
each channel of each tap is a load of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.constants import constants_of
from fastequi.kernels.pixel_loss import pixel_error, pixel_of, pred_offsets, strides_of
from fastequi.kernels.sampling import affine_taps, bilinear
from fastequi.kernels.target import Sums, Target


@triton.jit
def warp_recon_fwd_kernel(
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
    # scalars
    weight,
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
    # total[b, k] = weight Σ_{c,y,x} ℓ(pred - (color_c · image[b, :, θ_k (x, y)] - mean_c) / std_c)
    pid = tl.program_id(0)
    k = pid % K  # the steps of one image innermost: they share its source in L2
    block = (pid // K) % NB
    b = (pid // (K * NB)).to(tl.int64)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    live = offs < H * W
    y, x, token, inner = pixel_of(offs, W, GW, PATCH)
    theta = theta_ptr + b * stride_tb + k * stride_tk
    ix, iy, dx, dy, xn, yn, outside, poison = affine_taps(theta, x, y, H, W, HS, WS, ALIGN, PADDING)
    counted = live
    if MASK_OUTSIDE:
        counted = live & (outside == 0)
    image = image_ptr + b * stride_ib
    base = b * stride_pb + k * stride_pk
    place = pred_offsets(y, x, token, inner, stride_p0, stride_p1, stride_p2, C, PATCH)
    if HAS_COLOR:
        v0, x0, y0 = bilinear(image, ix, iy, HS, WS, stride_iy, stride_ix, live)
        v1, x1, y1 = bilinear(image + stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
        v2, x2, y2 = bilinear(image + 2 * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
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
            v, vx, vy = bilinear(image + c * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
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
        value, slope = pixel_error(pred - (v + poison), LOSS, weight)
        value = tl.where(counted, value, 0.0)
        slope = tl.where(counted, slope, 0.0)
        total += value
        if PRED_GRAD:
            tl.store(grad_ptr + at, slope.to(grad_ptr.dtype.element_ty), mask=live)
        if THETA_GRAD:
            by_x -= slope * vx
            by_y -= slope * vy
    part = (b * K + k) * NB + block
    tl.store(total_ptr + part, tl.sum(total, 0) * weight)
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


def warp_recon_general(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
) -> None:
    """Fills what of the sums is not empty."""
    batch, steps = theta.shape[:2]
    total, counted, grad, dtheta = sums
    block, num_warps = _launch_config(target.height * target.width)
    blocks = triton.cdiv(target.height * target.width, block)
    totals = total.new_empty(batch, steps, blocks)
    counts = total.new_empty(batch, steps, blocks) if target.mask_outside else None
    dthetas = total.new_empty(batch, steps, blocks, 6) if dtheta.numel() else None
    theta = theta if theta.stride()[2:] == (3, 1) else theta.contiguous()
    color = color if color is None else color.float().contiguous()
    mean, std = constants_of(target.mean, pred.device), constants_of(target.std, pred.device)
    with torch.cuda.device_of(pred):
        warp_recon_fwd_kernel[(batch * steps * blocks,)](
            pred,
            image,
            theta,
            color,
            mean,
            std,
            totals,
            counts,
            grad if grad.numel() else None,
            dthetas,
            steps,
            *target.size,
            *image.shape[2:],
            target.width // target.patch_size if target.patch_size else 1,
            blocks,
            *pred.stride()[:2],
            *strides_of(pred, target.patch_size),
            *image.stride(),
            *theta.stride()[:2],
            weight,
            C=image.shape[1],
            PATCH=target.patch_size,
            LOSS=target.loss,
            PADDING=target.padding_mode,
            ALIGN=target.align_corners,
            HAS_COLOR=color is not None,
            HAS_NORM=mean is not None,
            SCALE=1 / 255 if image.dtype == torch.uint8 else 1.0,
            MASK_OUTSIDE=target.mask_outside,
            PRED_GRAD=grad.numel() > 0,
            THETA_GRAD=dtheta.numel() > 0,
            BLOCK=block,
            num_warps=num_warps,
        )
    torch.sum(totals, -1, out=total)
    if counts is not None:
        torch.sum(counts, -1, out=counted)
    if dthetas is not None:
        torch.sum(dthetas, 2, out=dtheta.view(batch, steps, 6))
