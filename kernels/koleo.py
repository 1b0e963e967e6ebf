"""Each row's nearest other row by inner product, without the matrix of products; KoLeo's loss.

Replaces::

    s = z @ every.T
    s[arange(M), ids] = -inf                           # no row is its own neighbour
    neighbour = s.argmax(1)
    loss = -log(|z - every[neighbour]| + eps).mean()

The maximum is kept per row while tiles of the product are computed: memory O(M). On a CPU koleo.c
also makes the rows unit, and the loss and its gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_koleo, native_similarities, native_unit_rows
from fastequi.kernels.autograd import FusedLoss, Operator
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native
from fastequi.kernels.precision import without_autocast
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
    out = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
    if runs_fused(z):
        config = launch_config(z)
        with torch.cuda.device_of(z):
            nearest_kernel[(triton.cdiv(len(z), config["BLOCK_M"]),)](
                z, every, ids, out, len(z), len(every), z.shape[1], z.stride(0), every.stride(0),
                **config,
            )  # fmt: skip
        return out
    if use_native(z) and native_similarities.reads(z):
        return native_similarities.nearest(z, every, ids).long()
    for part, s in eager_tiles(z, every, ids, 1.0):
        out[part] = s.argmax(1)
    return out


def _fake(z, every, ids) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


nearest_op = Operator("nearest", _nearest, _fake)


def nearest_ref(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    """The lines above: every product stored."""
    own = ids[:, None] == torch.arange(len(every), device=z.device)
    return (z @ every.T).masked_fill(own, -torch.inf).argmax(1)


def nearest(z: Tensor, every: Tensor, ids: Tensor) -> Tensor:
    """[M] the row of every [G, D] nearest to each of z [M, D], leaving out row ids[i] for z_i."""
    z, every = z.detach(), every.detach()
    return (nearest_ref if transformed() else nearest_op)(z, every, ids)


def _compute(z: Tensor, eps: float, grad: bool) -> tuple[Tensor, Tensor]:
    value, by_z = native_koleo.koleo(z.detach(), eps, grad)
    return value, z.new_empty(0, 0) if by_z is None else by_z


def _fake_loss(z, eps, grad) -> tuple[Tensor, Tensor]:
    one, dense = z.new_empty((), dtype=torch.float32), torch.contiguous_format
    return one, torch.empty_like(z, memory_format=dense) if grad else z.new_empty(0, 0)


koleo_op = FusedLoss("koleo_loss", _compute, _fake_loss, {0: 1})


@without_autocast
def koleo_loss_ref(z: Tensor, eps: float) -> Tensor:
    """Of embeddings [N, D] of this process alone, in plain PyTorch but for :func:`nearest`."""
    return spread(unit_rows(z, eps), eps)


def unit_rows(z: Tensor, eps: float) -> Tensor:
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1, eps=eps)


def spread(every: Tensor, eps: float) -> Tensor:
    """-mean log of the distance of unit rows [N, D] to their nearest."""
    neighbour = nearest(every, every, torch.arange(every.shape[0], device=every.device))
    return -torch.log(F.pairwise_distance(every, every[neighbour], 2, eps) + eps).mean()


def koleo_loss(z: Tensor, eps: float) -> Tensor:
    """A scalar, of embeddings [N, D] of one process, N >= 2; arguments already checked."""
    if use_native(z) and not native_unit_rows.reads(z):
        say_type("koleo_loss", z.dtype)
    elif use_native(z):
        return koleo_op(z, eps, torch.is_grad_enabled() and z.requires_grad)[0]
    return koleo_loss_ref(z, eps)
