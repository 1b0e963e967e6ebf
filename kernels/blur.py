"""The Triton kernel that blurs, for `gaussian_blur.py` and `blur_recon.py`.

It blurs a tile as two small matrix products, V · X · Hᵀ, with the banded matrices V and H built in
registers from σ; they run on tensor cores as three tf32 products each, float32 to a few 1e-7. The
radius is fixed by `max_sigma`, R = ceil(4·max_sigma), so that no launch depends on a value on the
GPU; beyond it lies less than 7e-5 of the mass. A σ that is negative, NaN or above `max_sigma` gives
NaN.
"""

import math

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.constants import constants_of
from fastequi.kernels.pixel_loss import pixel_error, strides_of
from fastequi.kernels.target import BlurTarget

_CHUNK = 1 << 20  # target values per chunk of the CPU path: 4 MB of float32


def radius(max_sigma: float) -> int:
    """Half-width of the kernel in pixels."""
    return max(math.ceil(4 * max_sigma), 1)


@triton.jit
def _reflect(i, size):
    """Index reflected about the border pixels (the edge is not repeated), any distance away."""
    period = tl.maximum(2 * (size - 1), 1)
    i = tl.abs(i) % period
    return tl.where(size > 1, tl.minimum(i, period - i), 0)


@triton.jit
def _band(near, far, sigma, R: tl.constexpr):
    """Gaussian weights of the offsets far - near, zero beyond R, unnormalised."""
    d = (far - near).to(tl.float32)
    rate = tl.minimum(0.5 / (sigma * sigma), 1e30)
    return tl.where(tl.abs(d) <= R, tl.exp(-d * d * rate), 0.0)


@triton.jit
def _blurred_tile(
    image_ptr, sigma, mass, row, col, H, W, stride_iy, stride_ix, max_sigma,
    R: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The blurred TILE × TILE block of one channel whose first pixel is (row, col)."""
    out = tl.arange(0, TILE)
    blurred = tl.zeros([TILE, TILE], tl.float32)
    for left in range(-R, SPAN - R, CHUNK):  # source rows and columns the block needs, then some
        to_x = left + tl.arange(0, CHUNK)
        x = _reflect(col + to_x, W)
        half = tl.zeros([TILE, CHUNK], tl.float32)
        for top in range(-R, SPAN - R, CHUNK):
            to_y = top + tl.arange(0, CHUNK)
            y = _reflect(row + to_y, H)
            part = tl.load(
                image_ptr + y[:, None] * stride_iy + x[None, :] * stride_ix,
                mask=(to_y < TILE + R)[:, None] & (to_x < TILE + R)[None, :],
                other=0,
            ).to(tl.float32)
            band = _band(out[:, None], to_y[None, :], sigma, R) / mass
            half = tl.dot(band, part, half, input_precision="tf32x3")
        band = _band(out[:, None], to_x[None, :], sigma, R) / mass
        blurred = tl.dot(half, tl.trans(band), blurred, input_precision="tf32x3")
    fine = (sigma >= 0.0) & (sigma <= max_sigma)
    return tl.where(fine, blurred, float("nan"))


@triton.jit
def blur_fwd_kernel(
    # pointers
    pred_ptr,
    image_ptr,
    sigma_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    total_ptr,
    # shapes
    K,
    H,
    W,
    GW,
    TH,
    TW,
    max_sigma,
    weight,
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
    # constants
    C: tl.constexpr,
    PATCH: tl.constexpr,
    LOSS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    SCALE: tl.constexpr,
    GRAD: tl.constexpr,
    R: tl.constexpr,
    REACH: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # LOSS "none": out[b, k] = blur(image[b], σ_bk), normalised; else total[b, k] = Σ ℓ(pred - that)
    # and out is `weight` d total / d pred
    pid = tl.program_id(0)
    k = pid % K
    tile = (pid // K) % (TH * TW)
    b = (pid // (K * TH * TW)).to(tl.int64)
    row = (tile // TW) * TILE
    col = (tile % TW) * TILE
    sigma = tl.load(sigma_ptr + b * K + k).to(tl.float32)
    y = row + tl.arange(0, TILE)[:, None]
    x = col + tl.arange(0, TILE)[None, :]
    live = (y < H) & (x < W)
    if PATCH > 0:
        token = (y // PATCH) * GW + x // PATCH
        place = token * stride_p0 + ((y % PATCH) * PATCH + x % PATCH) * C
    else:
        place = y * stride_p1 + x * stride_p2
    total = tl.zeros([TILE, TILE], tl.float32)
    mass = tl.sum(_band(R, tl.arange(0, REACH), sigma, R), 0)
    for c in range(C):  # a loop: unrolled, the channels' tiles would not fit in registers
        image = image_ptr + b * stride_ib + c * stride_ic
        v = _blurred_tile(
            image, sigma, mass, row, col, H, W, stride_iy, stride_ix, max_sigma, R, TILE, SPAN,
            CHUNK,
        )  # fmt: skip
        v *= SCALE
        if HAS_NORM:
            v = (v - tl.load(mean_ptr + c)) / tl.load(std_ptr + c)
        channel = c if PATCH > 0 else c * stride_p0
        at = b * stride_pb + k * stride_pk + place + channel
        if LOSS == "none":
            tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=live)
        else:
            pred = tl.load(pred_ptr + at, mask=live, other=0.0).to(tl.float32)
            value, slope = pixel_error(pred - v, LOSS, weight)
            total += tl.where(live, value, 0.0)
            if GRAD:
                tl.store(out_ptr + at, slope.to(out_ptr.dtype.element_ty), mask=live)
    if LOSS != "none":
        tl.store(total_ptr + (b * K + k) * TH * TW + tile, tl.sum(tl.sum(total, 1), 0))


def launch_config(max_sigma: float) -> dict[str, int]:
    """SPAN holds TILE and two radii; what is multiplied at a time, TILE × CHUNK², does not grow.

    168 registers hold it without spills and leave room for three programs of a multiprocessor.
    """
    reach, tile, chunk = radius(max_sigma), 16, 32
    return {
        "R": reach,
        "REACH": triton.next_power_of_2(2 * reach + 1),
        "TILE": tile,
        "SPAN": triton.cdiv(tile + 2 * reach, chunk) * chunk,
        "CHUNK": chunk,
        "num_warps": 4,
        "maxnreg": 168,
    }


def launch(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    out: Tensor,
    grad: bool,
    weight: float = 1.0,
) -> Tensor:
    """Blurs into `out` (loss "none"; pred is out) or writes the gradient there; returns totals.

    The gradient is multiplied by `weight`, the totals [B, K] are not.
    """
    patch_size = target.patch_size
    batch, steps = sigma.shape
    height, width = image.shape[2:]
    config = launch_config(target.max_sigma)
    tiles = triton.cdiv(height, config["TILE"]), triton.cdiv(width, config["TILE"])
    totals = image.new_empty((batch, steps, tiles[0] * tiles[1]), dtype=torch.float32)
    mean, std = constants_of(target.mean, image.device), constants_of(target.std, image.device)
    with torch.cuda.device_of(image):
        blur_fwd_kernel[(batch * steps * tiles[0] * tiles[1],)](
            pred,
            image,
            sigma.contiguous(),
            mean,
            std,
            out,
            totals,
            steps,
            height,
            width,
            width // patch_size if patch_size else 1,
            *tiles,
            target.most,
            weight,
            *pred.stride()[:2],
            *strides_of(pred, patch_size),
            *image.stride(),
            C=image.shape[1],
            PATCH=patch_size,
            LOSS=target.loss,
            HAS_NORM=mean is not None,
            SCALE=1 / 255 if image.dtype == torch.uint8 else 1.0,
            GRAD=grad,
            **config,
        )
    return totals.sum(-1)


def chunks_of(out: Tensor) -> list[slice]:
    images = max(_CHUNK // out[0].numel(), 1)
    return [slice(start, start + images) for start in range(0, len(out), images)]
