"""Warp images along a path: sample, colour, normalise and cast in one pass.

Replaces::

    grid = F.affine_grid(theta, size, align_corners)            # H·W·2 floats per view
    x = F.grid_sample(image.float() / 255, grid, "bilinear", padding_mode, align_corners)
    x = torch.einsum("bij,bjhw->bihw", color[..., :3], x) + color[..., 3]
    out = ((x - mean) / std).to(dtype)

Never materialised: the grid, the float image, the sample before colour and normalisation.
Bytes: the source once and the result once; for 3×224×224 from uint8 to bf16 0.15 + 0.30 MB.
On a GPU interleaved uint8 images go to `warp_packed.py`, others to the kernel below.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native, native_warp, warp_packed
from fastequi.kernels.autograd import Operator, batched, needs_operator
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native, use_triton
from fastequi.kernels.constants import constants_of
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.sampling import (
    affine_taps,
    as_matrices,
    bilinear,
    color_ref,
    expect_narrow,
    sample_ref,
    to_float,
    unit,
)
from fastequi.kernels.target import Target
from fastequi.kernels.warp_adjoint import Way, with_gradient

_CHUNK = 1 << 21  # target values per chunk of the CPU path: 8 MB of float32


UNROLLED = tl.constexpr(8)  # channels: of more a loop, or code would grow with them


@triton.jit
def _channel(
    c, samples, out, color, image, color_ptr, mean_ptr, std_ptr, ix, iy, HS, WS, stride_y, stride_x,
    live, poison, C: tl.constexpr, HAS_COLOR: tl.constexpr, HAS_NORM: tl.constexpr,
    SCALE: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Writes a channel; `samples`: of all of them, where a colour matrix mixes them."""
    FACTORS: tl.constexpr = C + 1 if C <= 4 else 2  # of a channel's colour
    row = color_ptr + color * FACTORS if HAS_COLOR else None
    if HAS_COLOR and C <= 4:
        v = tl.load(row) * samples[0]
        for j in tl.static_range(1, C):
            v += tl.load(row + j) * samples[j]
    else:
        v, _, _ = bilinear(image, ix, iy, HS, WS, stride_y, stride_x, live)
        if HAS_COLOR:
            v *= tl.load(row)
    v = v * SCALE
    if HAS_COLOR:
        v += tl.load(row + FACTORS - 1)
    if HAS_NORM:
        v = (v - tl.load(mean_ptr + c)) / tl.load(std_ptr + c)
    v += poison
    if ROUND:
        v = tl.floor(tl.minimum(tl.maximum(v * 255.0, 0.0), 255.0) + 0.5)
    tl.store(out, v.to(out.dtype.element_ty), mask=live)


@triton.jit
def warp_fwd_kernel(
    # pointers
    image_ptr,
    theta_ptr,
    color_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    # shapes
    K,
    H,
    W,
    HS,
    WS,
    NB,
    # strides
    stride_ib,
    stride_ic,
    stride_iy,
    stride_ix,
    stride_tb,
    stride_tk,
    # constants
    C: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_COLOR: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SCALE: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # out[b, k, c, y, x] = (color_c · image[b, :, θ_k (x, y)] - mean_c) / std_c
    pid = tl.program_id(0)
    k = pid % K
    block = (pid // K) % NB
    b = (pid // (K * NB)).to(tl.int64)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    live = offs < H * W
    theta = theta_ptr + b * stride_tb + k * stride_tk
    ix, iy, _, _, _, _, _, poison = affine_taps(
        theta, offs % W, offs // W, H, W, HS, WS, ALIGN, PADDING
    )
    image = image_ptr + b * stride_ib
    out = out_ptr + (b * K + k) * C * H * W
    samples = ()
    if HAS_COLOR and C <= 4:
        for c in tl.static_range(C):
            v, _, _ = bilinear(image + c * stride_ic, ix, iy, HS, WS, stride_iy, stride_ix, live)
            samples = samples + (v,)  # type: ignore[assignment]  # noqa: RUF005
    TOGETHER: tl.constexpr = C if C <= UNROLLED else 1
    for first in range(0, C, TOGETHER):
        for i in tl.static_range(TOGETHER):
            channel = first + i
            _channel(
                channel, samples, out + channel * H * W + offs, (b * K + k) * C + channel,
                image + channel * stride_ic, color_ptr, mean_ptr, std_ptr, ix, iy, HS, WS,
                stride_iy, stride_ix, live, poison, C, HAS_COLOR, HAS_NORM, SCALE, ROUND,
            )  # fmt: skip


def _launch_config(pixels: int) -> tuple[int, int]:
    """(BLOCK, num_warps): enough pixels per program to fill a warp's loads, few enough to tail."""
    return (512, 4) if pixels >= 2048 else (128, 4)


def _compute(
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    height: int,
    width: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    target = Target(height, width, 0, "none", mean, std, padding_mode, align_corners)
    batch, steps, channels = *theta.shape[:2], image.shape[1]
    in_c = use_native(image) and native_warp.samples(image)
    written = torch.float32 if in_c and dtype == torch.float16 else dtype  # C writes no float16
    out = image.new_empty((batch, steps, channels, height, width), dtype=written)
    if out.numel() == 0:
        return out.to(dtype)
    color = as_matrices(color, channels)
    if in_c and written in native.DTYPES:
        native_warp.warp(out, image, theta, color, target)
        return out.to(dtype)
    if not use_triton(image):
        if use_native(image):
            given, shape = (image.dtype, dtype), native_warp.said(image)
            say_type("warp", *given, takes=native_warp.MAKES, shape=shape)
        _eager(out, image, theta, color, target)
    elif warp_packed.reads(image, target):
        warp_packed.warp_packed(out, image, theta, color, target)
    else:
        _launch(out, image, theta, color, target)
    return out


def _launch(
    out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target
) -> None:
    """Fills `out` [B, K, C, H, W] of any images."""
    expect_narrow("image", image, 1)
    expect_narrow("size", out, 2)
    batch, steps, channels, height, width = out.shape
    block, num_warps = _launch_config(height * width)
    blocks = triton.cdiv(height * width, block)
    color = color if color is None else color.float().contiguous()
    theta = theta if theta.stride()[2:] == (3, 1) else theta.contiguous()
    mean, std = constants_of(target.mean, image.device), constants_of(target.std, image.device)
    with torch.cuda.device_of(image):
        warp_fwd_kernel[(batch * steps * blocks,)](
            image,
            theta,
            color,
            mean,
            std,
            out,
            steps,
            height,
            width,
            *image.shape[2:],
            blocks,
            *image.stride(),
            *theta.stride()[:2],
            C=channels,
            PADDING=target.padding_mode,
            ALIGN=target.align_corners,
            HAS_COLOR=color is not None,
            HAS_NORM=mean is not None,
            SCALE=unit(image.dtype),
            ROUND=out.dtype == torch.uint8,
            BLOCK=block,
            num_warps=num_warps,
        )


def _fake(
    image, theta, color, height, width, mean, std, dtype, padding_mode, align_corners
) -> Tensor:
    shape = (*theta.shape[:2], image.shape[1], height, width)
    return image.new_empty(shape, dtype=dtype)


warp_op = Operator("warp", _compute, _fake)


def _eager(out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target) -> None:
    """The reference, a chunk of images at a time."""
    images = max(_CHUNK // out[0].numel(), 1)
    for start in range(0, len(image), images):
        part = slice(start, start + images)
        mixing = None if color is None else color[part]
        out[part] = warp_ref(image[part], theta[part], mixing, target, out.dtype)


@without_autocast
def warp_ref(
    image: Tensor, theta: Tensor, color: Tensor | None, target: Target, dtype: torch.dtype
) -> Tensor:
    """:func:`warp` in plain PyTorch; float64 if `dtype` or θ is. Oracle, baseline and fallback."""
    wide = torch.float64 in (dtype, theta.dtype, image.dtype)
    compute = torch.float64 if wide else torch.float32
    x = sample_ref(to_float(image, compute), theta.to(compute), target.size, **target.eager())
    x = color_ref(x, color, target.mean, target.std)
    if dtype == torch.uint8:
        x = (x * 255).clamp(0, 255).add(0.5).floor()
    return x.to(dtype)


def warp(
    image: Tensor, theta: Tensor, color: Tensor | None, target: Target, dtype: torch.dtype
) -> Tensor:
    """[B, K, C, H, W] samples of [B, C, Hs, Ws] at θ [B, K, 2, 3]; arguments already checked.

    Of the target its size, normalisation and padding. The image's gradient is `warp_adjoint.py`'s.
    Where θ or the colour matrix wants one, under torch.func, in float64, and where a compiler looks
    at gradients, :func:`warp_ref` runs instead, which is differentiable in everything.
    """
    grad = torch.is_grad_enabled()
    matrices = (theta,) if color is None else (theta, color)
    plain = (
        transformed()
        or batched(image)
        or torch.float64 in (dtype, theta.dtype)
        or (grad and any(t.requires_grad for t in matrices))
    )
    if grad and image.requires_grad and not plain:
        known = dtype.is_floating_point and image.dtype != torch.float64
        if known and not needs_operator(image, *matrices):
            return with_gradient(image, theta, color, Way(warp, target, dtype, image.shape[2:]))
        plain = True
    if plain:
        return warp_ref(image, theta, color, target, dtype)
    return warp_op(
        image, theta, color, *target.size, target.mean, target.std, dtype, target.padding_mode,
        target.align_corners,
    )  # fmt: skip


def prepared(
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    dtype: torch.dtype,
    single: bool,
) -> Again | None:
    """What :func:`warp` does for tensors like these, in C; or None.

    It takes image, theta and color as they were given; `single`: without the axis of steps.
    """
    grad = torch.is_grad_enabled()
    dense = (theta,) if color is None else (theta, color)
    if (
        not use_native(image)
        or as_matrices(color, image.shape[1]) is not color
        or not native_warp.samples(image)
        or dtype not in native.DTYPES
        or (grad and any(t.requires_grad for t in dense))
        or any(t.dtype != torch.float32 or not t.is_contiguous() or t.is_neg() for t in dense)
        or not image.numel()
    ):
        return None
    run = native_warp.prepared_warp(image.detach(), theta, color, target, dtype, single)
    if not (grad and image.requires_grad):
        return run
    if not dtype.is_floating_point:
        return None
    size = image.shape[2:]
    back = native_warp.prepared_adjoint(theta, color, target, size, image.shape[1], dtype)
    way = Way(warp, target, dtype, size, single, run, back)
    return lambda image, theta, color: with_gradient(image, theta, color, way)
