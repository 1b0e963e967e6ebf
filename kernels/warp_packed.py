"""Warped images at the speed of memory: Triton over interleaved uint8 images.

As `warp_recon_packed_kernel.py`, without a prediction to compare with: four neighbouring pixels a
thread, all channels of a tap in one load, no masks in tiles that lie inside. Bytes per pixel to
bf16: 6, and 3/K to 4/K of the source. Instructions per pixel, all channels, sm_90: 80 with three
bytes a texel, 64 with four (tests/test_offline_compile.py). On an H200 one view of 256 images of
224² is then bound by issue, not by memory (27 µs at 4.3 TB/s): 80 per pixel take about 35 µs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.packed import (
    capability,
    interleaved,
    packed_target,
    pixel_affine,
    registers,
    room,
    target_constants,
)
from fastequi.kernels.quads import store_group
from fastequi.kernels.sampling import padded
from fastequi.kernels.target import Target

_TILE_W, _TILE_H = 32, 8
_PIXELS = 4096  # of one program, about


@triton.jit
def _quads(
    out, image, offs, live, ix, iy, a0, a3, HS, WS, row, stride_c, m, bias, start,
    TEXEL: tl.constexpr, WHOLE_ROWS: tl.constexpr, EXACT: tl.constexpr, INSIDE: tl.constexpr,
    PADDING: tl.constexpr, ALIGN: tl.constexpr, HAS_COLOR: tl.constexpr, ROUND: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """Writes T groups of four pixels."""
    values = ()
    for q in tl.static_range(4):
        x = ix
        y = iy
        if q > 0:
            x += a0 * q
            y += a3 * q
        if not INSIDE:
            x, _ = padded(x, WS, PADDING, ALIGN)
            y, _ = padded(y, HS, PADDING, ALIGN)
        v = packed_target(
            image, x, y, HS, WS, row, m, bias, start, TEXEL, WHOLE_ROWS, EXACT, INSIDE, HAS_COLOR
        )
        for c in tl.static_range(3):
            value = v[c]
            if ROUND:
                value = tl.floor(tl.minimum(tl.maximum(value * 255.0, 0.0), 255.0) + 0.5)
            values = values + (value,)  # type: ignore[assignment]  # noqa: RUF005
    store_group(out, offs, stride_c, live, values, False, T)


@triton.jit
def warp_packed_kernel(
    # pointers
    image_ptr,
    theta_ptr,
    color_ptr,
    out_ptr,
    # shapes
    K,
    H,
    W,
    HS,
    WS,
    NB,
    ROWS,
    # strides
    stride_ib,
    stride_iy,
    stride_tb,
    stride_tk,
    # normalisation
    mean0,
    mean1,
    mean2,
    gain0,
    gain1,
    gain2,
    # constants
    TEXEL: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    EXACT: tl.constexpr,
    TILE_W: tl.constexpr,
    TILE_H: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_COLOR: tl.constexpr,
    ROUND: tl.constexpr,
):
    # out[b, k, c, y, x] = gain_c (color_c · image[b, :, θ_k (x, y)] - mean_c)
    T: tl.constexpr = TILE_W * TILE_H // 4
    pid = tl.program_id(0)
    k = pid % K
    part = (pid // K) % NB
    b = (pid // (K * NB)).to(tl.int64)
    a0, a1, a2, a3, a4, a5, cx, cy, poison = pixel_affine(
        theta_ptr + b * stride_tb + k * stride_tk, H, W, HS, WS, ALIGN
    )
    image = image_ptr + b * stride_ib
    out = out_ptr + (b * K + k) * 3 * H * W
    m, bias, start = target_constants(
        color_ptr + (b * K + k) * 12 if HAS_COLOR else None,
        mean0, mean1, mean2, gain0, gain1, gain2, poison, EXACT, HAS_COLOR,
    )  # fmt: skip
    t = tl.arange(0, T)
    x = t % (TILE_W // 4) * 4
    y = t // (TILE_W // 4)
    place = y * W + x
    # samples from the source's centre: of a tile's middle, and of a thread's first pixel from there
    mid_w = (TILE_W - 1) * 0.5
    mid_h = (TILE_H - 1) * 0.5
    from_x = a0 * (x - mid_w) + a1 * (y - mid_h) + (WS - 1) * 0.5
    from_y = a3 * (x - mid_w) + a4 * (y - mid_h) + (HS - 1) * 0.5
    room_x, room_y = room(a0, a1, a3, a4, HS, WS, mid_w, mid_h)
    for tile_y in range(part * ROWS, tl.minimum((part + 1) * ROWS, (H + TILE_H - 1) // TILE_H)):
        top = tile_y * TILE_H
        row_x = a0 * (mid_w - cx) + a1 * (top + (mid_h - cy)) + a2
        row_y = a3 * (mid_w - cx) + a4 * (top + (mid_h - cy)) + a5
        for tile_x in range((W + TILE_W - 1) // TILE_W):
            left = tile_x * TILE_W
            off_x = row_x + a0 * left
            off_y = row_y + a3 * left
            inside = (tl.abs(off_x) <= room_x) & (tl.abs(off_y) <= room_y)
            inside = inside & (left + TILE_W <= W) & (top + TILE_H <= H)
            ix = off_x + from_x
            iy = off_y + from_y
            tile = out + top * W + left
            if inside:
                _quads(
                    tile, image, place, None, ix, iy, a0, a3, HS, WS, stride_iy, H * W,
                    m, bias, start, TEXEL, WHOLE_ROWS, EXACT, True, PADDING, ALIGN, HAS_COLOR,
                    ROUND, T,
                )  # fmt: skip
            else:
                live = (left + x < W) & (top + y < H)
                _quads(
                    tile, image, place, live, ix, iy, a0, a3, HS, WS, stride_iy, H * W,
                    m, bias, start, TEXEL, WHOLE_ROWS, EXACT, False, PADDING, ALIGN, HAS_COLOR,
                    ROUND, T,
                )  # fmt: skip


def reads(image: Tensor, target: Target) -> bool:
    """Whether the kernel makes such targets of such images."""
    return interleaved(image) > 0 and target.width % 4 == 0 and target.height * target.width < 2**29


def warp_packed(
    out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target
) -> None:
    """Fills `out` [B, K, 3, H, W], dense."""
    batch, steps = theta.shape[:2]
    tile_rows = triton.cdiv(target.height, _TILE_H)
    rows = min(max(_PIXELS // (target.width * _TILE_H), 1), tile_rows)
    parts = triton.cdiv(tile_rows, rows)
    theta = theta if theta.stride()[2:] == (3, 1) else theta.contiguous()
    exact = out.dtype in (torch.float32, torch.uint8)
    with torch.cuda.device_of(image):
        warp_packed_kernel[(batch * steps * parts,)](
            image,
            theta,
            color if color is None else color.float().contiguous(),
            out,
            steps,
            *target.size,
            *image.shape[2:],
            parts,
            rows,
            image.stride(0),
            image.stride(2),
            *theta.stride()[:2],
            *(target.mean or (0.0, 0.0, 0.0)),
            *(1 / value for value in target.std or (1.0, 1.0, 1.0)),
            TEXEL=image.stride(3),
            WHOLE_ROWS=image.stride(2) % 4 == 0,
            EXACT=exact,
            TILE_W=_TILE_W,
            TILE_H=_TILE_H,
            PADDING=target.padding_mode,
            ALIGN=target.align_corners,
            HAS_COLOR=color is not None,
            ROUND=out.dtype == torch.uint8,
            num_warps=_TILE_W * _TILE_H // 128,
            maxnreg=registers(capability(image.device), exact, color is not None),
        )
