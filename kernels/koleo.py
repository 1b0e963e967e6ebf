"""Each row's nearest other row by inner product, without the matrix of products.

Replaces::

    s = z @ every.T
    s[arange(M), ids] = -inf                           # no row is its own neighbour
    neighbour = s.argmax(1)

The maximum is kept per row while tiles of the product are computed: memory O(M).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.kernels.autograd import Operator
from fastequi.kernels.backend import tl, transformed, triton
from fastequi.kernels.similarities import (
    eager_tiles,
    launch_config,
    own_rows,
    runs_fused,
    similarity_tile,
)


@triton.jit
def nearest_kernel(
    # pointers
    z_ptr,
    every_ptr,
    ids_ptr,
    out_ptr,
    # shapes
    M,
    G,
    D,
    # strides
    stride_z,
    stride_e,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # out[i] = argmax_{j ≠ id_i} z_i · every_j, the first of equals
    rows, z, ids = own_rows(z_ptr, ids_ptr, M, D, stride_z, BLOCK_M, BLOCK_D)
    cols = tl.arange(0, BLOCK_G).to(tl.int64)
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    where = tl.where(ids == 0, 1, 0).to(tl.int64)  # some other row, if none is better than NaN
    for start in range(0, G, BLOCK_G):
        s, _ = similarity_tile(
            z, every_ptr, ids, cols, G, D, 1.0, BLOCK_G, BLOCK_D, PRECISION, WIDEN, start, stride_e
        )
        high = tl.max(s, 1)
        at = tl.argmax(s, 1, tie_break_left=True) + start
        where = tl.where(high > best, at, where)
        best = tl.maximum(best, high)
    tl.store(out_ptr + rows, where, mask=rows < M)


def _nearest(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    out = torch.empty(len(z), dtype=torch.int64, device=z.device)
    if runs_fused(z):
        config = launch_config(z)
        with torch.cuda.device_of(z):
            nearest_kernel[(triton.cdiv(len(z), config["BLOCK_M"]),)](
                z, every, ids, out, len(z), len(every), z.shape[1], z.stride(0), every.stride(0),
                **config,
            )  # fmt: skip
        return out
    for part, s in eager_tiles(z, every, ids, 1.0):
        out[part] = s.argmax(1)
    return out


def _fake(z, every, ids) -> Tensor:
    return z.new_empty(len(z), dtype=torch.int64)


nearest_op = Operator("nearest", _nearest, _fake)


def nearest_ref(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    """The lines above: every product stored."""
    own = ids[:, None] == torch.arange(len(every), device=z.device)
    return (z @ every.T).masked_fill(own, -torch.inf).argmax(1)


def nearest(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    """[M] the row of every [G, D] nearest to each of z [M, D], leaving out row ids[i] for z_i."""
    z, every = z.detach(), every.detach()
    return (nearest_ref if transformed() else nearest_op)(z, every, ids)
