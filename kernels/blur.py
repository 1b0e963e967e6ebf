"""The Triton kernel that blurs, for `gaussian_blur.py` and `blur_recon.py`.

It blurs by products of small matrices, V · X · Hᵀ, with banded matrices V and H built in registers
from σ, once for a program. A program owns 16 rows and walks along their columns. A block of 16
columns, with the rows above and below that the blur reaches, is loaded once for four σ, whose V lie
one under the other in one product of 64 rows; then each warp multiplies the block of its σ by the
two parts of H: it lies to the right of the pixels it completes and to the left of the next ones.
Where the radius exceeds half a block, the blocks that a blur reaches are made for each again.

float16 and tf32 hold bytes as they are. Half precision images of bytes, and losses of half
precision predictions but l1 (a sign may not flip), take one float16 product of weights that are
rounded, and divide by their sum; other targets of bytes take two or three, with what float16 rounds
away, float32 to a few 1e-7; images of floats take three tf32 products.

Patch tokens of three channels are read and written by groups of four pixels (`quads.py`): stores of
single values would write a sector in three parts.

Instructions of a turn per pixel and σ, all channels, on sm_90 (tests/test_offline_compile.py): 22
of images, 57 with loss and gradient; with what a program does first 33 and 69 at 224². Bytes: 3/K
and 6, or 12. For B=256, K=4, 224² on an H200 (132 multiprocessors of four schedulers at 1.9 GHz,
4.27 TB/s) 52 µs of issue beside 81 of bytes, and 110 beside 155. (Tiles of 16 x 16 with 32 x 32
sources of one σ took 776 instructions a pixel, and 4082 and 4259 µs.)

The radius is fixed by `max_sigma`, R = ceil(4·max_sigma), so that no launch depends on a value on
the GPU; beyond it lies less than 7e-5 of the mass. A σ that is negative, NaN or above `max_sigma`
gives NaN.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.constants import constants_of
from fastequi.kernels.pixel_loss import pixel_error, strides_of
from fastequi.kernels.quads import load_group, store_group, unpacked
from fastequi.kernels.sampling import expect_narrow, reflected_index, unit
from fastequi.kernels.target import BlurTarget

# A program blurs ROWS rows of at most BLOCKS blocks of COLS columns, a block of GROUP channels and
# of STACK σ in a turn, one σ a warp.
ROWS, COLS, BLOCKS, GROUP, STACK = 16, 16, 14, 3, 4
REGISTERS = 168  # of a thread that compares: twelve warps fit on a multiprocessor
_MOST = 31  # largest σ, of sums of weights that float16 holds 255 times
_TURNS = 12288  # of warps: eight for each that an H100 holds; fewer are shared by more programs
_CHUNK = 1 << 20  # target values per chunk of the CPU path: 4 MB of float32


def radius(max_sigma: float) -> int:
    """Half-width of the kernel in pixels."""
    return max(math.ceil(4 * max_sigma), 1)


@triton.jit
def _band(near, far, sigma, R: tl.constexpr):
    """Gaussian weights of the offsets far - near, zero beyond R, unnormalised."""
    d = (far - near).to(tl.float32)
    rate = tl.minimum(0.5 / (sigma * sigma), 1e30)
    return tl.where(tl.abs(d) <= R, tl.exp(-d * d * rate), 0.0)


@triton.jit
def _product(a, b, acc, PRODUCTS: tl.constexpr):
    """acc + a · b, of float16 once or thrice, with what that rounds away; or of tf32, thrice."""
    if PRODUCTS == "tf32":
        acc = tl.dot(a, b, acc, input_precision="tf32x3")
    else:
        high = a.to(tl.float16)
        b_high = b.to(tl.float16)
        acc = tl.dot(high, b_high, acc)
        if PRODUCTS == "split":
            acc = tl.dot((a - high.to(tl.float32)).to(tl.float16), b_high, acc)
            if b.dtype != tl.float16:
                acc = tl.dot(high, (b - b_high.to(tl.float32)).to(tl.float16), acc)
    return acc


@triton.jit
def _down(
    image_ptr, sigma, row, col, H, W, stride_iy, stride_ix,
    R: tl.constexpr, FAR: tl.constexpr, PRODUCTS: tl.constexpr, STACK: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The ROWS x COLS block of one channel from (row, col) on, blurred along its columns by each σ;
    its sums of weights are not yet divided by. [STACK, ROWS, COLS]."""
    at = tl.arange(0, CHUNK * COLS)  # one axis, so that a warp loads neighbours in a row
    x = reflected_index(col + at % COLS, W, FAR)
    near = tl.arange(0, STACK * ROWS)[:, None] % ROWS
    half = tl.zeros([STACK * ROWS, COLS], tl.float32)
    for top in range(-R, SPAN - R, CHUNK):  # source rows that the block needs, then some
        y = reflected_index(row + top + at // COLS, H, FAR)
        part = tl.load(image_ptr + y * stride_iy + x * stride_ix)
        part = part.to(tl.float32 if PRODUCTS == "tf32" else tl.float16)  # which holds all bytes
        band = _band(near, top + tl.arange(0, CHUNK)[None, :], sigma, R)
        half = _product(band, tl.reshape(part, [CHUNK, COLS]), half, PRODUCTS)
    return tl.reshape(half, [STACK, ROWS, COLS])


@triton.jit
def _compared(
    pred, out, values, live, offs, weight,
    LOSS: tl.constexpr, GRAD: tl.constexpr, STACK: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """[T] errors of groups of four pixels of three channels, side by side in pred from offs [T] on;
    their slopes to out."""
    quads = ()
    for c in tl.static_range(3):
        even, odd = tl.split(tl.reshape(values[c], [T, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        quads += (x0, x1, x2, x3)  # type: ignore[assignment]
    p = unpacked(load_group(pred, offs, 0, live, True), True, T)
    total = tl.zeros([T], tl.float32)
    slopes = ()
    for i in tl.static_range(12):
        value, slope = pixel_error(p[i] - quads[i % 3 * 4 + i // 3], LOSS, weight)
        total += value
        slopes += (slope,)  # type: ignore[assignment]
    if GRAD:
        store_group(out, offs, 0, live, slopes, True, T)
    return tl.where(live, total, 0.0)


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
    BLOCKS,
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
    FAR: tl.constexpr,
    PRODUCTS: tl.constexpr,
    REACH: tl.constexpr,
    QUADS: tl.constexpr,
    GROUP: tl.constexpr,
    STACK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # LOSS "none": out[b, k] = blur(image[b], σ_bk), normalised; else total[b, k] = Σ ℓ(pred - that)
    # and out is `weight` d total / d pred
    pid = tl.program_id(0)
    stacks = tl.cdiv(K, STACK)
    first = (pid % stacks) * STACK
    tile = (pid // stacks) % (TH * TW)
    b = (pid // (stacks * TH * TW)).to(tl.int64)
    row = (tile // TW) * ROWS
    start = (tile % TW) * BLOCKS * COLS
    k = first + tl.arange(0, STACK)
    of_row = first + tl.arange(0, STACK * ROWS) // ROWS
    sigma = tl.load(sigma_ptr + b * K + k, mask=k < K, other=0.0).to(tl.float32)
    sigmas = tl.load(sigma_ptr + b * K + of_row, mask=of_row < K, other=0.0).to(tl.float32)[:, None]
    each = sigma[:, None, None]
    fine = (sigma >= 0.0) & (sigma <= max_sigma)
    weights = _band(R, tl.arange(0, REACH)[None, :], sigma[:, None], R)
    if PRODUCTS == "once":
        weights = weights.to(tl.float16).to(tl.float32)
    mass = tl.sum(weights, 1)
    scale = tl.where(fine, SCALE / (mass * mass), float("nan"))[:, None, None]
    near = tl.arange(0, COLS)[None, None, :]
    far = tl.arange(0, COLS)[None, :, None] - R
    left = _band(near, far, each, R)
    right = _band(near, far + COLS, each, R)
    T: tl.constexpr = STACK * ROWS * COLS // (4 if QUADS else 1)
    total = tl.zeros([T], tl.float32)
    zeros = tl.zeros([STACK, ROWS, COLS], tl.float32)
    pred = pred_ptr + b * stride_pb
    out = out_ptr + b * stride_pb
    for c in range(0, C, GROUP):
        image = image_ptr + b * stride_ib + c * stride_ic
        gains = ()
        shifts = ()
        begun = ()
        for i in tl.static_range(GROUP):
            if HAS_NORM:
                std = tl.load(std_ptr + c + i)
                gains += (scale / std,)  # type: ignore[assignment]
                shifts += (tl.load(mean_ptr + c + i) / std,)  # type: ignore[assignment]
            if 2 * R <= COLS:
                block = _down(
                    image + i * stride_ic, sigmas, row, start - R, H, W, stride_iy, stride_ix,
                    R, FAR, PRODUCTS, STACK, ROWS, COLS, SPAN, CHUNK,
                )  # fmt: skip
                begun += (_product(block, left, zeros, PRODUCTS),)  # type: ignore[assignment]
        for col in range(start, start + BLOCKS * COLS, COLS):
            values = ()
            after = ()
            for i in tl.static_range(GROUP):
                if 2 * R <= COLS:  # a block lies to the right of these pixels and left of the next
                    block = _down(
                        image + i * stride_ic, sigmas, row, col + COLS - R, H, W, stride_iy,
                        stride_ix, R, FAR, PRODUCTS, STACK, ROWS, COLS, SPAN, CHUNK,
                    )  # fmt: skip
                    v = _product(block, right, begun[i], PRODUCTS)
                    after += (_product(block, left, zeros, PRODUCTS),)  # type: ignore[assignment]
                else:
                    v = zeros
                    for offset in range(0, COLS + 2 * R, COLS):
                        block = _down(
                            image + i * stride_ic, sigmas, row, col + offset - R, H, W, stride_iy,
                            stride_ix, R, FAR, PRODUCTS, STACK, ROWS, COLS, SPAN, CHUNK,
                        )  # fmt: skip
                        v = _product(block, _band(near, far + offset, each, R), v, PRODUCTS)
                if HAS_NORM:
                    v = v * gains[i] - shifts[i]
                else:
                    v = v * scale
                values += (v,)  # type: ignore[assignment]
            begun = after
            if QUADS:
                at = tl.arange(0, T)
                step = first + at // (ROWS * COLS // 4)
                y = row + at // (COLS // 4) % ROWS
                x = col + at % (COLS // 4) * 4
                live = (step < K) & (y < H) & (x < W)
                offs = step * stride_pk + (y // PATCH * GW + x // PATCH) * stride_p0
                offs += (y % PATCH * PATCH + x % PATCH) * 3
                total += _compared(pred, out, values, live, offs, weight, LOSS, GRAD, STACK, T)
            else:
                step = k[:, None, None]
                y = row + tl.arange(0, ROWS)[None, :, None]
                x = col + tl.arange(0, COLS)[None, None, :]
                live = (step < K) & (y < H) & (x < W)
                for i in tl.static_range(GROUP):
                    if PATCH > 0:
                        at = (y // PATCH * GW + x // PATCH) * stride_p0
                        at += (y % PATCH * PATCH + x % PATCH) * C + c + i
                    else:
                        at = y * stride_p1 + x * stride_p2 + (c + i) * stride_p0
                    at += step * stride_pk
                    v = values[i]
                    if LOSS == "none":
                        tl.store(out + at, v.to(out_ptr.dtype.element_ty), mask=live)
                    else:
                        guess = tl.load(pred + at, mask=live, other=0.0).to(tl.float32)
                        value, slope = pixel_error(guess - v, LOSS, weight)
                        total += tl.reshape(tl.where(live, value, 0.0), [T])
                        if GRAD:
                            tl.store(out + at, slope.to(out_ptr.dtype.element_ty), mask=live)
    if LOSS != "none":
        sums = tl.sum(tl.reshape(total, [STACK, T // STACK]), 1)
        tl.store(total_ptr + (b * K + k) * TH * TW + tile, sums, mask=k < K)


def launch_config(
    pred: Tensor, image: Tensor, steps: int, target: BlurTarget, aligned: bool = True
) -> dict[str, Any]:
    """Constants and compiler options; `aligned`: pairs of pred's values are words."""
    reach, channels, half = radius(target.max_sigma), image.shape[1], pred.dtype.itemsize == 2
    products = "once" if half and target.loss != "l1" else "split"
    if image.dtype != torch.uint8 or target.max_sigma > _MOST:
        products = "tf32"
    tf32, near = products == "tf32", 2 * reach <= COLS
    group = GROUP if channels == 3 and near and not tf32 else 1
    quads = group == 3 and aligned and target.loss != "none" and target.patch_size > 0
    quads = quads and target.patch_size % 4 == 0
    stack = min(triton.next_power_of_2(steps), STACK)
    if tf32:
        stack = max(stack, 2)  # of one warp the registers would not do
    wide = products == "once" and COLS < 2 * reach <= 32  # then a block still reaches one more
    chunk = min(triton.next_power_of_2(ROWS + 2 * reach), 64 if wide else 32)
    return {
        "C": channels,
        "PATCH": target.patch_size,
        "LOSS": target.loss,
        "SCALE": unit(image.dtype),
        "R": reach,
        "REACH": triton.next_power_of_2(2 * reach + 1),
        "PRODUCTS": products,
        "QUADS": quads,
        "GROUP": group,
        "STACK": stack,
        "ROWS": ROWS,
        "COLS": 32 if wide else COLS,
        "SPAN": triton.cdiv(ROWS + 2 * reach, chunk) * chunk,
        "CHUNK": chunk,
        "num_warps": stack,
        "maxnreg": REGISTERS if quads and products == "once" and stack > 1 else None,
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
    expect_narrow("image", image, 1)
    expect_narrow("pred", pred, 1)
    patch_size = target.patch_size
    batch, steps = sigma.shape
    height, width = image.shape[2:]
    aligned = (pred.data_ptr() | out.data_ptr()) % 4 == 0
    config = launch_config(pred, image, steps, target, aligned)
    stacks, bands = triton.cdiv(steps, config["STACK"]), triton.cdiv(height, config["ROWS"])
    blocks = triton.cdiv(width, config["COLS"])
    turns = batch * stacks * bands * blocks * config["num_warps"]
    strips = triton.cdiv(blocks, min(max(turns // _TURNS, 2), BLOCKS))
    blocks = triton.cdiv(blocks, strips)
    last = bands * config["ROWS"] + config["SPAN"], (strips * blocks + 2) * config["COLS"]
    far = any(
        end + config["R"] > 2 * size - 2 for end, size in zip(last, (height, width), strict=True)
    )
    totals = image.new_empty((batch, steps, bands * strips), dtype=torch.float32)
    mean, std = constants_of(target.mean, image.device), constants_of(target.std, image.device)
    with torch.cuda.device_of(image):
        blur_fwd_kernel[(batch * stacks * bands * strips,)](
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
            bands,
            strips,
            blocks,
            target.most,
            weight,
            *pred.stride()[:2],
            *strides_of(pred, patch_size),
            *image.stride(),
            HAS_NORM=mean is not None,
            GRAD=grad,
            FAR=far,
            **config,
        )
    return totals.sum(-1)


def chunks_of(out: Tensor) -> list[slice]:
    images = max(_CHUNK // out[0].numel(), 1)
    return [slice(start, start + images) for start in range(0, len(out), images)]
