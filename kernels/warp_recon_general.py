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
from fastequi.kernels.sampling import affine_taps, bilinear, expect_narrow, unit
from fastequi.kernels.target import Sums, Target

UNROLLED = tl.constexpr(8)  # channels: of more a loop, or code would grow with them


@triton.jit
def _channel(
    c, sums, samples, places, colors, pred_ptr, image, color_ptr, mean_ptr, std_ptr, grad_ptr,
    ix, iy, HS, WS, stride_p0, stride_ic, stride_iy, stride_ix, live, counted, poison, weight,
    C: tl.constexpr, PATCH: tl.constexpr, LOSS: tl.constexpr, HAS_COLOR: tl.constexpr,
    HAS_NORM: tl.constexpr, SCALE: tl.constexpr, PRED_GRAD: tl.constexpr, THETA_GRAD: tl.constexpr,
):  # fmt: skip
    """Adds a channel's errors, and their derivatives by the source's coordinates, to the sums.

    Args:
        samples: of all channels, where a colour matrix mixes them; else the channel's is made here.
        places: of channel 0 in the prediction.
        colors: row of channel 0 in the colours.
    """
    total, by_x, by_y = sums
    FACTORS: tl.constexpr = C + 1 if C <= 4 else 2  # of a channel's colour
    row = color_ptr + (colors + c) * FACTORS if HAS_COLOR else None
    if HAS_COLOR and C <= 4:
        m = tl.load(row) * SCALE
        v = m * samples[0][0]
        vx = m * samples[0][1]
        vy = m * samples[0][2]
        for j in tl.static_range(1, C):
            m = tl.load(row + j) * SCALE
            v += m * samples[j][0]
            vx += m * samples[j][1]
            vy += m * samples[j][2]
    else:
        v, vx, vy = bilinear(image + c * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
        m = tl.load(row) * SCALE if HAS_COLOR else SCALE
        v *= m
        vx *= m
        vy *= m
    if HAS_COLOR:
        v += tl.load(row + FACTORS - 1)
    if HAS_NORM:
        gain = 1.0 / tl.load(std_ptr + c)
        v = (v - tl.load(mean_ptr + c)) * gain
        vx *= gain
        vy *= gain
    at = places + (c if PATCH > 0 else c * stride_p0)
    pred = tl.load(pred_ptr + at, mask=live, other=0.0).to(tl.float32)
    value, slope = pixel_error(pred - (v + poison), LOSS, weight)
    total += tl.where(counted, value, 0.0)
    slope = tl.where(counted, slope, 0.0)
    if PRED_GRAD:
        tl.store(grad_ptr + at, slope.to(grad_ptr.dtype.element_ty), mask=live)
    if THETA_GRAD:
        by_x -= slope * vx
        by_y -= slope * vy
    return total, by_x, by_y


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
    samples = ()
    if HAS_COLOR and C <= 4:
        for c in tl.static_range(C):
            at = bilinear(image + c * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
            samples = samples + (at,)  # type: ignore[assignment]  # noqa: RUF005
    sums = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    TOGETHER: tl.constexpr = C if C <= UNROLLED else 1
    for first in range(0, C, TOGETHER):
        for i in tl.static_range(TOGETHER):
            sums = _channel(
                first + i, sums, samples, base + place, (b * K + k) * C, pred_ptr, image,
                color_ptr, mean_ptr, std_ptr, grad_ptr, ix, iy, HS, WS, stride_p0, stride_ic,
                stride_iy, stride_ix, live, counted, poison, weight, C, PATCH, LOSS, HAS_COLOR,
                HAS_NORM, SCALE, PRED_GRAD, THETA_GRAD,
            )  # fmt: skip
    total, by_x, by_y = sums
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
    expect_narrow("image", image, 1)
    expect_narrow("pred", pred, 2)
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
            SCALE=unit(image.dtype),
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
