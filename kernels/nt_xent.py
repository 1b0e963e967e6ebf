"""SimCLR's cross-entropy over all similarities of a batch, which are never stored.

Replaces, for unit rows z_i of which row p_i is the other view of the same image::

    s = z @ every.T / temp                             # M·G values
    s[arange(M), ids] = -inf                           # none is its own negative
    loss = F.cross_entropy(s, positives)

The positive is kept apart from the negatives, since a loss near zero is the difference of nearly
equal numbers otherwise: with n_i the log-sum-exp over the negatives of row i::

    loss_i = log(1 + exp(n_i - s_{i p_i})),   lse_i = s_{i p_i} + loss_i
    w_i = 1 - exp(-loss_i) = sigmoid(n_i - s_{i p_i})            # what the negatives weigh

Two passes over tiles of similarities: the first keeps a running log-sum-exp per row, the second,
once all rows' are known, sums the gradient, which needs both a row's and its columns' softmax::

    d Σ loss/d z_i = (Σ_{j ≠ p_i} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j
                      - (w_i + w_{p_i}) z_{p_i}) / temp

Memory O(M + G) beyond the rows; arithmetic 6·M·G·D, of which the plain form does 6 as well.
(Chen et al., A simple framework for contrastive learning, ICML 2020, equation 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_nt_xent, native_similarities, native_unit_rows
from fastequi.kernels.autograd import FusedLoss, Operator, refuse
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native
from fastequi.kernels.constants import kept
from fastequi.kernels.precision import autocast_off, without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.similarities import (
    eager_tiles,
    launch_config,
    own_rows,
    runs_fused,
    similarity_tile,
)
from fastequi.kernels.unit_rows import EPS, unit_rows_grad, unit_rows_op, unit_rows_ref

_EXACT = 60.0  # beyond it log(1 + exp(x)) is x in float64 too


@triton.jit
def nt_xent_lse_kernel(
    # pointers
    z_ptr,
    every_ptr,
    ids_ptr,
    positives_ptr,
    negative_ptr,
    positive_ptr,
    # shapes
    M,
    G,
    D,
    # strides
    stride_z,
    stride_e,
    # scalars
    inverse_temp,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # negative[i] = log Σ_{j ≠ id_i, p_i} exp(s_ij), positive[i] = s_{i p_i}, s = z · every / temp
    rows, z, ids = own_rows(z_ptr, ids_ptr, M, D, stride_z, BLOCK_M, BLOCK_D)
    partner = tl.load(positives_ptr + rows, mask=rows < M, other=-1)
    alike = tl.zeros([BLOCK_M], tl.float32)
    cols = tl.arange(0, BLOCK_G).to(tl.int64)
    high = tl.full([BLOCK_M], -1e30, tl.float32)
    acc = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, G, BLOCK_G):
        s, _ = similarity_tile(
            z, every_ptr, ids, cols, G, D, inverse_temp, BLOCK_G, BLOCK_D, PRECISION, WIDEN,
            start, stride_e,
        )  # fmt: skip
        ours = (start + cols)[None, :] == partner[:, None]
        alike += tl.sum(tl.where(ours, s, 0.0), 1)
        s = tl.where(ours, float("-inf"), s)
        above = tl.maximum(high, tl.max(s, 1))
        acc = acc * tl.exp(high - above) + tl.sum(tl.exp(s - above[:, None]), 1)
        high = above
    tl.store(negative_ptr + rows, high + tl.log(acc), mask=rows < M)
    tl.store(positive_ptr + rows, alike, mask=rows < M)


@triton.jit
def nt_xent_grad_kernel(
    # pointers
    z_ptr,
    every_ptr,
    ids_ptr,
    positives_ptr,
    lse_ptr,
    every_lse_ptr,
    pull_ptr,
    grad_ptr,
    # shapes
    M,
    G,
    D,
    # strides
    stride_z,
    stride_e,
    stride_g,
    # scalars
    inverse_temp,
    # constants
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # grad[i] = (Σ_{j ≠ p_i} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) every_j
    #            - pull_i every_{p_i}) / temp
    rows, z, ids = own_rows(z_ptr, ids_ptr, M, D, stride_z, BLOCK_M, BLOCK_D)
    lse = tl.load(lse_ptr + rows, mask=rows < M, other=0.0)
    positive = tl.load(positives_ptr + rows, mask=rows < M, other=0)
    pull = tl.load(pull_ptr + rows, mask=rows < M, other=0.0)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (rows < M)[:, None] & (offs_d < D)[None, :]
    other = tl.load(
        every_ptr + positive[:, None] * stride_e + offs_d[None, :], mask=mask, other=0.0
    )
    acc = -pull[:, None] * other.to(tl.float32)  # first: its addresses need registers
    cols = tl.arange(0, BLOCK_G).to(tl.int64)
    for start in range(0, G, BLOCK_G):
        s, others = similarity_tile(
            z, every_ptr, ids, cols, G, D, inverse_temp, BLOCK_G, BLOCK_D, PRECISION, WIDEN,
            start, stride_e,
        )  # fmt: skip
        s = tl.where((start + cols)[None, :] == positive[:, None], float("-inf"), s)
        theirs = tl.load(every_lse_ptr + start + cols, mask=start + cols < G, other=0.0)
        p = tl.exp(s - lse[:, None]) + tl.exp(s - theirs[None, :])
        acc = tl.dot(p.to(others.dtype), others, acc, input_precision=PRECISION)
    grad = acc * inverse_temp
    tl.store(grad_ptr + rows[:, None] * stride_g + offs_d[None, :], grad, mask=mask)


def _logits(
    z: Tensor, every: Tensor, ids: Tensor, positives: Tensor, temp: float
) -> tuple[Tensor, Tensor]:
    """What a row's loss is made of, [M] each, for z [M, D] and every [G, D].

    log Σ_{j ≠ ids[i], positives[i]} exp(s_ij) and s_{i positives[i]}, with s = z · every / temp.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    negative = torch.empty(len(z), dtype=dtype, device=z.device)
    positive = torch.empty_like(negative)
    if runs_fused(z):
        config = launch_config(z)
        with torch.cuda.device_of(z):
            nt_xent_lse_kernel[(triton.cdiv(len(z), config["BLOCK_M"]),)](
                z, every, ids, positives, negative, positive, len(z), len(every), z.shape[1],
                z.stride(0), every.stride(0), 1 / temp, **config,
            )  # fmt: skip
        return negative, positive
    if use_native(z) and native_similarities.reads(z):
        return native_nt_xent.logits(z, every, ids, positives, temp)
    for part, s in eager_tiles(z, every, ids, temp):
        partner = positives[part, None]
        positive[part] = s.gather(1, partner)[:, 0]
        negative[part] = s.scatter_(1, partner, -torch.inf).logsumexp(1)
    return negative, positive


def _grad(
    z: Tensor, every: Tensor, ids: Tensor, positives: Tensor, lse: Tensor, every_lse: Tensor,
    pull: Tensor, temp: float,
) -> Tensor:  # fmt: skip
    """d Σ_{all rows} loss/d z_i, [M, D], once the log-sum-exps of all rows are known.

    Args:
        lse, every_lse: [M] and [G] log-sum-exps over positive and negatives.
        pull: [M] w_i + w_{p_i}.
    """
    out = torch.empty_like(z, dtype=lse.dtype, memory_format=torch.contiguous_format)
    if runs_fused(z):
        config = launch_config(z)
        with torch.cuda.device_of(z):
            nt_xent_grad_kernel[(triton.cdiv(len(z), config["BLOCK_M"]),)](
                z, every, ids, positives, lse, every_lse, pull, out, len(z), len(every),
                z.shape[1], z.stride(0), every.stride(0), out.stride(0), 1 / temp, **config,
            )  # fmt: skip
        return out
    if use_native(z) and native_similarities.reads(z):
        rows = z, every, ids, positives
        return native_nt_xent.grad(*rows, lse, every_lse, pull, temp)
    others = every.to(lse.dtype)
    for part, s in eager_tiles(z, every, ids, temp):
        s.scatter_(1, positives[part, None], -torch.inf)
        p = torch.exp(s - lse[part, None]) + torch.exp(s - every_lse)
        out[part] = (p @ others - pull[part, None] * others[positives[part]]) / temp
    return out


def _fake_logits(z, every, ids, positives, temp) -> tuple[Tensor, Tensor]:
    one = z.new_empty(z.shape[0], dtype=torch.promote_types(z.dtype, torch.float32))
    return one, torch.empty_like(one)


def _fake_grad(z, every, ids, positives, lse, every_lse, pull, temp) -> Tensor:
    return torch.empty_like(z, dtype=lse.dtype, memory_format=torch.contiguous_format)


def _compute(z1: Tensor, z2: Tensor, temp: float, grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss of one process, its gradients or empty), normalisation included: in C."""
    loss, grads = native_nt_xent.nt_xent(z1.detach(), z2.detach(), temp, grad)
    if not grads:
        return loss, z1.new_empty(0, 0), z1.new_empty(0, 0)
    return loss, grads[0], grads[1]


def _fake(z1, z2, temp, grad) -> tuple[Tensor, Tensor, Tensor]:
    shape = z1.shape if grad else (0, 0)
    return z1.new_empty((), dtype=torch.float32), z1.new_empty(shape), z1.new_empty(shape)


nt_xent_op = FusedLoss("nt_xent_loss", _compute, _fake, {0: 1, 1: 2})
logits_op = Operator("nt_xent_logits", _logits, _fake_logits)
grad_op = Operator("nt_xent_grad", _grad, _fake_grad)


@kept
def _places(n: int, first: int, total: int, device: torch.device) -> Tensor:
    """[2, 2n]: of this process's rows among all, both views, and of their positives."""
    local = torch.arange(first, first + n, device=device)
    ids = torch.cat([local, local + total])
    return torch.stack([ids, ids.roll(n)])


@without_autocast
def nt_xent_loss_ref(z1: Tensor, z2: Tensor, temp: float) -> Tensor:
    """The plain form of two views' embeddings [N, D]: every similarity stored."""
    n = len(z1)
    unit = unit_rows_ref(torch.cat([z1, z2]), torch.promote_types(z1.dtype, torch.float32))
    z = unit + (unit.to(z1.dtype).to(unit.dtype) - unit).detach()
    if n == 1:  # without a negative the loss is 0
        return (0 * z).sum()
    s = z @ z.T / temp
    rows = torch.arange(2 * n, device=z.device)
    partner = rows.roll(n)[:, None]
    negatives = s.masked_fill((rows == rows[:, None]) | (rows == partner), -torch.inf)
    return F.softplus(negatives.logsumexp(1) - s.gather(1, partner)[:, 0], threshold=_EXACT).mean()


class Shard(NamedTuple):
    """Which images of a batch that several processes share are this one's.

    Attributes:
        first, total: images of the processes before it, and of all.
        processes: how many.
        gather: rows [n, ...] of this process to [total, ...] of all, in the order of their ranks.
    """

    first: int
    total: int
    processes: int
    gather: Callable[[Tensor], Tensor]


class _NTXent(torch.autograd.Function):
    """Of the embeddings of this process, both views of an image n rows apart.

    Not a `FusedLoss`: between the two kernels the processes exchange their rows' sums, and an
    operator's arguments cannot hold what does that. The products take unit rows in the embeddings'
    own type; the gradient by those stays in float32, since a row's need not fit into float16
    before it is divided by the embedding's length and multiplied by a loss scale.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, temp: float, shard: Shard | None) -> tuple[Tensor, Any]:
        z = unit_rows_op(x.detach(), x.dtype, EPS)
        n = z.shape[0] // 2
        first, total, processes, gather = shard or Shard(0, n, 1, lambda part: part)
        ids, positives = _places(n, first, total, z.device).unbind()
        every = z if shard is None else torch.cat([gather(part) for part in z.chunk(2)])
        negative, positive = logits_op(z, every, ids, positives, temp)
        if shard is not None:
            both = torch.stack([negative, positive], 1)
            negative, positive = torch.cat([gather(part) for part in both.chunk(2)]).unbind(1)
        # of every row: its loss, its log-sum-exp, what its negatives weigh
        apart = negative - positive
        each = F.softplus(apart, threshold=_EXACT)
        loss = each.mean()
        if not ctx.needs_input_grad[0]:
            return loss, None
        lse, weight = positive + each, torch.sigmoid(apart)
        own_lse, pull = lse, weight + weight.roll(n)
        if shard is not None:
            own_lse, pull = lse[ids], weight[ids] + weight[positives]
        grad = grad_op(z, every, ids, positives, own_lse, lse, pull, temp)
        anchor = loss.new_empty(0)  # not the loss, which its owner may change in place
        ctx.scale = processes / (2 * total)
        ctx.save_for_backward(anchor, x, grad)
        return loss, anchor

    @staticmethod
    def backward(ctx: Any, g_loss: Tensor, *unused: Any) -> tuple[Tensor, None, None]:
        anchor, x, grad = ctx.saved_tensors
        found = unit_rows_grad(x, grad, g_loss, ctx.scale)
        if torch.is_grad_enabled():  # create_graph=True
            found = found + refuse("nt_xent_loss", anchor).to(found.dtype)
        return found, None, None


def nt_xent_loss(z1: Tensor, z2: Tensor, temp: float, shard: Shard | None = None) -> Tensor:
    """A scalar, of embeddings [N, D] of two views; arguments already checked.

    With a shard it is the whole batch's on every process, and the gradient as
    `fastequi.functional.distributed` says.
    """
    if transformed() and shard is None:
        return nt_xent_loss_ref(z1, z2, temp)
    in_c = use_native(z1) and native_unit_rows.reads(z1, z2)
    if use_native(z1) and not in_c:
        say_type("nt_xent_loss", z1.dtype, z2.dtype)
    if shard is None and in_c:
        grad = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
        return nt_xent_op(z1, z2, temp, grad)[0]
    with autocast_off(z1.device):
        return _NTXent.apply(torch.cat([z1, z2]), temp, shard)[0]


def prepared(z1: Tensor, z2: Tensor, temp: float) -> Again | None:
    """What :func:`nt_xent_loss` does for few embeddings like these, in C; or None."""
    if not use_native(z1) or not native_unit_rows.reads(z1, z2):
        return None
    wants = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
    run = native_nt_xent.prepared(z1, z2, temp, wants)
    if run is None:
        return None
    return nt_xent_op.again(run) if wants else lambda *given: run(*given)[0]
