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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_koleo, native_similarities, native_unit_rows
from fastequi.kernels.autograd import FusedLoss, Operator, batched
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native
from fastequi.kernels.constants import kept
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.similarities import (
    eager_tiles,
    launch_config,
    own_rows,
    runs_fused,
    similarity_tile,
)
from fastequi.kernels.unit_rows import fused as fused_rows
from fastequi.kernels.unit_rows import launch_config as rows_config
from fastequi.kernels.unit_rows import unit_rows as unit_rows_of


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


@triton.jit
def distance_kernel(
    # pointers
    unit_ptr,
    neighbour_ptr,
    parts_ptr,
    push_ptr,
    # shapes
    M,
    D,
    # scalars
    eps,
    # constants
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    GRAD: tl.constexpr,
):
    # d_i = |unit_i - unit_near(i) + eps|; the parts add up to -Σ log(d_i + eps) / M, push[i] is
    # that sum's gradient by unit_i where it is not another's neighbour
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    mask = (rows < M)[:, None] & (c < D)[None, :]
    near = tl.load(neighbour_ptr + rows, mask=rows < M, other=0)
    apart = tl.load(unit_ptr + rows[:, None] * D + c[None, :], mask=mask, other=0.0)
    apart -= tl.load(unit_ptr + near[:, None] * D + c[None, :], mask=mask, other=0.0)
    apart = tl.where(mask, apart + eps, 0.0)
    distance = tl.sqrt_rn(tl.sum(apart * apart, 1))
    logs = tl.where(rows < M, tl.log(distance + eps), 0.0)
    tl.store(parts_ptr + tl.program_id(0), -tl.sum(logs, 0) / M)
    if GRAD:
        slope = tl.where(distance == 0, 0.0, -1 / (M * distance * (distance + eps)))
        tl.store(push_ptr + rows[:, None] * D + c[None, :], apart * slope[:, None], mask=mask)


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
        torch.argmax(s, 1, out=out[part])
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


def prepared(z: Tensor, eps: float) -> Again | None:
    """What :func:`koleo_loss` does for few embeddings like these, in C; or None."""
    if not use_native(z) or not native_unit_rows.reads(z):
        return None
    wants = torch.is_grad_enabled() and z.requires_grad
    run = native_koleo.prepared(z, eps, wants)
    if run is None:
        return None
    return koleo_op.again(run) if wants else lambda z: run(z)[0]


def unit_rows(z: Tensor, eps: float) -> Tensor:
    return unit_rows_of(z, torch.promote_types(z.dtype, torch.float32), eps)


def spread(every: Tensor, eps: float) -> Tensor:
    """-mean log of the distance of unit rows [N, D] to their nearest."""
    neighbour = nearest(every, every, _numbers(every.shape[0], every.device))
    if torch.compiler.is_compiling() or not fused_rows(every):
        return _spread_ref(every, neighbour, eps)
    loss: Tensor = _Spread.apply(every.contiguous(), neighbour, eps)
    return loss


@kept
def _numbers(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device)


def _spread_ref(every: Tensor, neighbour: Tensor, eps: float) -> Tensor:
    return -torch.log(F.pairwise_distance(every, every[neighbour], 2, eps) + eps).mean()


def _distances(every: Tensor, neighbour: Tensor, eps: float, grad: bool) -> tuple[Tensor, Tensor]:
    """(the loss, its gradient by rows that are nobody's neighbour or empty)."""
    config = rows_config(every.shape[1])
    programs = triton.cdiv(len(every), config["BLOCK_R"])
    parts, push = every.new_empty(programs), torch.empty_like(every) if grad else None
    with torch.cuda.device_of(every):
        distance_kernel[(programs,)](
            every, neighbour, parts, push, *every.shape, eps, GRAD=grad, **config
        )
    return parts.sum(), every.new_empty(0) if push is None else push


def _fake_distances(every, neighbour, eps, grad) -> tuple[Tensor, Tensor]:
    return every.new_empty(()), torch.empty_like(every) if grad else every.new_empty(0)


distances_op = Operator("koleo_distances", _distances, _fake_distances)


class _Spread(torch.autograd.Function):
    """The line of `_spread_ref` in one kernel, which knows half of the gradient as well."""

    @staticmethod
    def forward(ctx: Any, every: Tensor, neighbour: Tensor, eps: float) -> Tensor:
        loss, push = distances_op(every.detach(), neighbour, eps, ctx.needs_input_grad[0])
        ctx.save_for_backward(every, neighbour, push)
        ctx.eps = eps
        value: Tensor = loss
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        every, neighbour, push = ctx.saved_tensors
        graph = torch.is_grad_enabled()  # create_graph=True
        if graph or batched(grads[0]):
            with torch.enable_grad():
                loss = _spread_ref(every, neighbour, ctx.eps)
            return *torch.autograd.grad(loss, every, grads[0], create_graph=graph), None, None
        found = push * grads[0]
        return found.index_put_((neighbour,), -found, accumulate=True), None, None


def koleo_loss(z: Tensor, eps: float) -> Tensor:
    """A scalar, of embeddings [N, D] of one process, N >= 2; arguments already checked."""
    if use_native(z) and not native_unit_rows.reads(z):
        say_type("koleo_loss", z.dtype)
    elif use_native(z):
        return koleo_op(z, eps, torch.is_grad_enabled() and z.requires_grad)[0]
    return koleo_loss_ref(z, eps)
