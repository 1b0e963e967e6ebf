"""Tiles of the similarities z · every of a batch's rows, which NT-Xent and KoLeo go through.

A tile has -inf where a row meets itself. Kernels make it in registers; without one a few rows at a
time are multiplied with all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastequi.kernels.backend import INTERPRETED, tl, triton, use_triton

CHUNK = 1 << 20  # similarities at a time where there is no kernel: 4 MB of float32
GPU_CHUNK = 1 << 26  # 256 MB: launches that are longer than the host's time to start them
_WIDEST = 512  # channels that a program's sums fit into registers for
_WIDEST_FLOAT32 = 64  # beyond them a library's float32 products are several times as fast


@triton.jit
def own_rows(z_ptr, ids_ptr, M, D, stride_z, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """This program's rows: their places, values [BLOCK_M, BLOCK_D] and ids."""
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (rows < M)[:, None] & (offs_d < D)[None, :]
    z = tl.load(z_ptr + rows[:, None] * stride_z + offs_d[None, :], mask=mask, other=0.0)
    return rows, z, tl.load(ids_ptr + rows, mask=rows < M, other=-1)


@triton.jit
def similarity_tile(
    z, every, ids, cols, G, D, inverse_temp,
    BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    start, stride_e,
):  # fmt: skip
    """A tile of s, -inf on the diagonal and beyond the end; and its columns' rows [BLOCK_G, D]."""
    at = start + cols
    offs_d = tl.arange(0, BLOCK_D)
    mask = (at < G)[:, None] & (offs_d < D)[None, :]
    others = tl.load(every + at[:, None] * stride_e + offs_d[None, :], mask=mask, other=0.0)
    if WIDEN:  # the interpreter's products know no bfloat16
        z = z.to(tl.float32)
        others = others.to(tl.float32)
    s = tl.dot(z, tl.trans(others), input_precision=PRECISION) * inverse_temp
    other = (at < G)[None, :] & (at[None, :] != ids[:, None])
    return tl.where(other, s, float("-inf")), others


def launch_config(z: Tensor) -> dict[str, object]:
    wide = triton.next_power_of_2(max(z.shape[1], 16))
    full = z.dtype == torch.float32
    block = 64 if wide <= 256 and not full else 32
    return {
        "BLOCK_M": block,
        "BLOCK_G": block,
        "BLOCK_D": wide,
        "PRECISION": "tf32x3" if full else "tf32",
        "WIDEN": INTERPRETED and z.dtype == torch.bfloat16,
        "num_warps": 8 if wide > 128 else 4,
        "num_stages": 2,  # with three the gradient's sums spill
    }


def runs_fused(z: Tensor) -> bool:
    widest = _WIDEST_FLOAT32 if z.dtype == torch.float32 else _WIDEST
    return use_triton(z) and z.dtype != torch.float64 and z.shape[1] <= widest and z.numel() > 0


def eager_tiles(
    z: Tensor, every: Tensor, ids: Tensor, temp: float
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of similarities, a few at a time."""
    at_once = max((GPU_CHUNK if z.is_cuda else CHUNK) // max(len(every), 1), 1)
    others = every.to(torch.promote_types(z.dtype, torch.float32))
    for start in range(0, len(z), at_once):
        part = slice(start, start + at_once)
        s = z[part].to(others.dtype) @ others.T
        if temp != 1:
            s /= temp
        s.scatter_(1, ids[part, None], -torch.inf)
        yield part, s
