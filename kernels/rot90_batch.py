"""RotNet's network batch: every image in its four turns, scaled, normalised and cast in one pass.

Replaces::

    x = (images.float() / 255 - mean) / std                                 # [B, C, N, N]
    turned = torch.stack([torch.rot90(x, k, (2, 3)) for k in range(4)], 1)
    out = turned.flatten(0, 1).to(dtype)                                    # [4B, C, N, N]

Never materialised: the float images, the turned copies before they are stacked or cast. Bytes per
value: 1 read and, in half precision, 8 written.

out[i, j] of turn k is in[i, j], in[j, N-1-i], in[N-1-i, N-1-j], in[N-1-j, i]: transposes and
mirrors, so the values are those of `np.rot90`. A program makes one 32x32 tile of each turn from
the four tiles it comes from. Mirrors are made by the order of the loads, of single bytes that the
caches hold; a transposed tile is turned over in shared memory, so that all stores are whole rows of
eight half precision values a thread.

On a CPU a C kernel (rot90_batch.c) looks every byte up among the 256 values of its channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.kernels import native_rot90_batch
from fastequi.kernels.autograd import Operator
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native, use_triton
from fastequi.kernels.constants import constants

TILE, WARPS = 32, 4


@triton.jit
def _turned(
    image, out, rows, cols, N, mean, gain, stride_iy, stride_ix, stride_oy, stride_ox,
    K: tl.constexpr,
):  # fmt: skip
    """One tile of turn K: (rows, cols) of the result, or (cols, rows) where it is transposed."""
    live = (rows < N)[:, None] & (cols < N)[None, :]
    y = (N - 1 - rows if K == 2 or K == 3 else rows)[:, None]
    x = (N - 1 - cols if K == 1 or K == 2 else cols)[None, :]
    v = tl.load(image + y * stride_iy + x * stride_ix, mask=live, other=0).to(tl.float32)
    v = (v * gain - mean).to(out.dtype.element_ty)
    if K == 1 or K == 3:
        v = tl.trans(v)
        places = out + cols[:, None] * stride_oy + rows[None, :] * stride_ox
        tl.store(places, v, mask=(cols < N)[:, None] & (rows < N)[None, :])
    else:
        tl.store(out + rows[:, None] * stride_oy + cols[None, :] * stride_ox, v, mask=live)


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
    rows = (tile // TILES) * TILE + tl.arange(0, TILE)
    cols = (tile % TILES) * TILE + tl.arange(0, TILE)
    for c in tl.static_range(C):
        image = image_ptr + b * stride_ib + c * stride_ic
        mean = tl.load(means_ptr + c)
        gain = tl.load(gains_ptr + c)
        if ALL:
            out = out_ptr + 4 * b * stride_ob + c * stride_oc
            for k in tl.static_range(4):
                _turned(
                    image, out + k * stride_ob, rows, cols, N, mean, gain, stride_iy, stride_ix,
                    stride_oy, stride_ox, k,
                )  # fmt: skip
        else:
            out = out_ptr + b * stride_ob + c * stride_oc
            turn = tl.load(turns_ptr + b)
            for k in tl.static_range(4):
                if turn == k:
                    _turned(
                        image, out, rows, cols, N, mean, gain, stride_iy, stride_ix, stride_oy,
                        stride_ox, k,
                    )  # fmt: skip


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
    if use_native(images) and dtype.itemsize in (2, 4):
        native_rot90_batch.rot90_batch(out, images, turns, _values(images, mean, std, dtype))
    elif use_triton(images) and dtype != torch.float64:
        tiles = triton.cdiv(side, TILE)
        shift = mean if mean is not None else (0.0,) * channels
        scale = std if std is not None else (1.0,) * channels
        means, gains = (
            constants(tuple(values), images.device, torch.float32)
            for values in (
                [m / s for m, s in zip(shift, scale, strict=True)],
                [1 / (255 * s) for s in scale],
            )
        )
        with torch.cuda.device_of(images):
            rot90_batch_kernel[(len(images) * tiles * tiles,)](
                images, turns, means, gains, out, side, tiles, *images.stride(), *out.stride(),
                C=channels, ALL=turns is None, TILE=TILE, num_warps=WARPS,
            )  # fmt: skip
    else:
        if use_native(images):
            say_type("rot90_batch", dtype, takes="results of two or four bytes")
        out.copy_(rot90_batch_ref(images, turns, mean, std, dtype))
    return out


def _empty(images: Tensor, turns: Tensor | None, dtype: torch.dtype, channels_last: bool) -> Tensor:
    copies = 4 if turns is None else 1
    kind = torch.channels_last if channels_last else torch.contiguous_format
    shape = (copies * images.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=kind)


def _values(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    """[C, 256] what each byte becomes."""
    every = torch.arange(256, dtype=torch.uint8, device=images.device).view(1, 1, 256, 1)
    every = every.expand(1, images.shape[1], 256, 1)
    return _normalised(every, mean, std, dtype)[0, :, :, 0].contiguous()


def _fake(images, turns, mean, std, dtype, channels_last) -> Tensor:
    return _empty(images, turns, dtype, channels_last)


rot90_batch_op = Operator("rot90_batch", _compute, _fake)


def _normalised(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    x = images.to(wide) / 255
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
