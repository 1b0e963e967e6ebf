"""RotNet's network batch: every image in its four turns, scaled, normalised and cast in one pass.

Replaces::

    x = (images.float() / 255 - mean) / std                                 # [B, C, N, N]
    turned = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)], 1)
    out = turned.flatten(0, 1).to(dtype)                                    # [4B, C, N, N]

Never materialised: the float images, the turned copies before they are stacked or cast. Bytes per
value: 1 read and, in half precision, 8 written.

out[i, j] of turn k is in[i, j], in[j, N-1-i], in[N-1-i, N-1-j], in[N-1-j, i]: transposes and
mirrors, so the values are those of `np.rot90`. A tile of the image is turn 0 as it is and turn 1
transposed; the tile as far from the last pixel, read backwards, is turn 2 and turn 3 in the same
way. So a program loads and converts two tiles for four. A warp loads 32 neighbours of a row, single
bytes from one or two cache lines (in the layout of the stores it would be 8 to 16 lines, which took
227 µs of an H200 where the bytes need 61); shared memory brings a tile into rows of eight half
precision values a thread. 22 instructions for each pixel that is written, all channels, sm_90:
26 µs of issue for 192 images of 224x224.

On a CPU a C kernel (rot90_batch.c) looks every byte up among the 256 values of its channel. Of
uint16, which 65535 is 1 of, the lines above run there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native_rot90_batch
from fastequi.kernels.autograd import Operator
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native, use_triton
from fastequi.kernels.constants import constants, kept
from fastequi.kernels.prepared import Again

TILE, WARPS = 32, 4
GROUP = 4  # channels of a launch, which are unrolled


@triton.jit
def _tile(image, row, col, flip, N, mean, gain, stride_iy, stride_ix, TILE: tl.constexpr):
    """[TILE, TILE] values from (row, col) on, or that far from the image's last pixel if flip."""
    at = tl.arange(0, TILE * TILE)  # one axis, so that a warp loads neighbours in a row
    y = row + at // TILE
    x = col + at % TILE
    live = (y < N) & (x < N)
    y = tl.where(flip, N - 1 - y, y)
    x = tl.where(flip, N - 1 - x, x)
    v = tl.load(image + y * stride_iy + x * stride_ix, mask=live, other=0).to(tl.float32)
    return tl.reshape(v * gain - mean, [TILE, TILE])


@triton.jit
def _store(out, v, row, col, N, stride_oy, stride_ox, TURNED: tl.constexpr, TILE: tl.constexpr):
    """The tile as it is at (row, col); or, a quarter turned, where the turn takes it."""
    v = v.to(out.dtype.element_ty)
    rows = row + tl.arange(0, TILE)
    cols = col + tl.arange(0, TILE)
    if TURNED:
        places = out + (N - 1 - cols)[:, None] * stride_oy + rows[None, :] * stride_ox
        tl.store(places, tl.trans(v), mask=(cols < N)[:, None] & (rows < N)[None, :])
    else:
        places = out + rows[:, None] * stride_oy + cols[None, :] * stride_ox
        tl.store(places, v, mask=(rows < N)[:, None] & (cols < N)[None, :])


@triton.jit
def rot90_batch_kernel(
    # pointers
    image_ptr,
    turns_ptr,
    means_ptr,
    gains_ptr,
    out_ptr,
    # shapes
    N,
    TILES,
    # strides
    stride_ib,
    stride_ic,
    stride_iy,
    stride_ix,
    stride_ob,
    stride_oc,
    stride_oy,
    stride_ox,
    # constants
    C: tl.constexpr,
    ALL: tl.constexpr,
    TILE: tl.constexpr,
):
    # out[4 b + k] = rot90(image[b], k) · gain - mean; or out[b] = rot90(image[b], turns[b])
    pid = tl.program_id(0)
    tile = pid % (TILES * TILES)
    b = (pid // (TILES * TILES)).to(tl.int64)
    row = (tile // TILES) * TILE
    col = (tile % TILES) * TILE
    for c in tl.static_range(C):
        image = image_ptr + b * stride_ib + c * stride_ic
        mean = tl.load(means_ptr + c)
        gain = tl.load(gains_ptr + c)
        if ALL:
            out = out_ptr + 4 * b * stride_ob + c * stride_oc
            for k in tl.static_range(0, 4, 2):
                v = _tile(image, row, col, k == 2, N, mean, gain, stride_iy, stride_ix, TILE)
                to = out + k * stride_ob
                _store(to, v, row, col, N, stride_oy, stride_ox, False, TILE)
                _store(to + stride_ob, v, row, col, N, stride_oy, stride_ox, True, TILE)
        else:
            out = out_ptr + b * stride_ob + c * stride_oc
            turn = tl.load(turns_ptr + b)
            v = _tile(image, row, col, turn >= 2, N, mean, gain, stride_iy, stride_ix, TILE)
            if turn % 2 == 1:
                _store(out, v, row, col, N, stride_oy, stride_ox, True, TILE)
            else:
                _store(out, v, row, col, N, stride_oy, stride_ox, False, TILE)


def _compute(
    images: Tensor,
    turns: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    out = _empty(images, turns, dtype, channels_last)
    if out.numel() == 0:
        return out
    channels, side = images.shape[1:3]
    native = use_native(images) and images.dtype == torch.uint8
    if native and dtype.itemsize in (2, 4):
        values = _values(channels, _both(mean, std), dtype)
        native_rot90_batch.rot90_batch(out, images, turns, values)
    elif use_triton(images) and dtype != torch.float64:
        tiles = triton.cdiv(side, TILE)
        shift = mean if mean is not None else (0.0,) * channels
        scale = std if std is not None else (1.0,) * channels
        means, gains = (
            constants(tuple(values), images.device, torch.float32)
            for values in (
                [m / s for m, s in zip(shift, scale, strict=True)],
                [1 / (torch.iinfo(images.dtype).max * s) for s in scale],
            )
        )
        with torch.cuda.device_of(images):
            for first in range(0, channels, GROUP):
                few = slice(first, first + GROUP)
                ours, theirs = images[:, few], out[:, few]
                rot90_batch_kernel[(len(images) * tiles * tiles,)](
                    ours, turns, means[few], gains[few], theirs, side, tiles,
                    *ours.stride(), *theirs.stride(),
                    C=ours.shape[1], ALL=turns is None, TILE=TILE, num_warps=WARPS,
                )  # fmt: skip
    else:
        if native:
            say_type("rot90_batch", dtype, takes="results of two or four bytes")
        out.copy_(rot90_batch_ref(images, turns, mean, std, dtype))
    return out


def prepared(
    images: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Again | None:
    """What :func:`rot90_batch` does for all four turns of images like these, in C; or None."""
    reads = images.dtype == torch.uint8 and dtype.itemsize in (2, 4) and images.numel()
    if not (use_native(images) and reads) or images.is_neg():
        return None
    out = _empty(images, None, dtype, channels_last)
    values = _values(images.shape[1], _both(mean, std), dtype)
    run = native_rot90_batch.prepared(out, images, values)
    shape, kind = out.shape, torch.channels_last if channels_last else torch.contiguous_format

    def call(images: Tensor) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device="cpu", memory_format=kind)
        run(out, images)
        return out

    return call


def _both(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]] | None:
    return None if mean is None or std is None else (tuple(mean), tuple(std))


def _empty(images: Tensor, turns: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    copies = 4 if turns is None else 1
    kind = torch.channels_last if channels_last else torch.contiguous_format
    shape = (copies * images.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=kind)


@kept
def _values(
    channels: int, normalisation: tuple[Sequence[float], Sequence[float]] | None, dtype: torch.dtype
) -> Tensor:
    """[C, 256] what each byte becomes, on the CPU; by mean and std."""
    every = torch.arange(256, dtype=torch.uint8, device="cpu").view(1, 1, 256, 1)
    every = every.expand(1, channels, 256, 1)
    mean, std = normalisation or (None, None)
    return _normalised(every, mean, std, dtype)[0, :, :, 0].contiguous()


def _fake(images, turns, mean, std, dtype, channels_last) -> Tensor:
    return _empty(images, turns, dtype, channels_last)


rot90_batch_op = Operator("rot90_batch", _compute, _fake)


def _normalised(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    x = images.to(wide) / torch.iinfo(images.dtype).max
    if mean is not None and std is not None:
        center, scale = (
            torch.tensor(v, dtype=wide, device=x.device).view(1, -1, 1, 1) for v in (mean, std)
        )
        x = (x - center) / scale
    return x.to(dtype)


def rot90_batch_ref(
    images: Tensor,
    turns: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
) -> Tensor:
    """The chain in plain PyTorch. Oracle, baseline and fallback."""
    x = _normalised(images, mean, std, dtype)
    turned = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)], 1)
    if turns is None:
        return turned.flatten(0, 1)
    return turned[torch.arange(len(x), device=x.device), turns.long()]


def rot90_batch(
    images: Tensor,
    turns: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """[4B, C, N, N], or [B, C, N, N] with turns [B] int32; arguments already checked."""
    if transformed():
        return rot90_batch_ref(images, turns, mean, std, dtype)
    return rot90_batch_op(images, turns, mean, std, dtype, channels_last)
