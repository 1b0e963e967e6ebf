"""Self-attention of few tokens on a CPU, from the rows of a qkv projection and back into them.

Replaces, for images of at most 100 tokens::

    q, k, v = qkv.unbind(2)                                          # each [B, N, H, D]
    out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

PyTorch's CPU kernel is made for long sequences, and the gradients of q, k and v are then copied
into one matrix. Here a head's keys, logits and gradients stay in the first caches, and the gradient
is written where the projection's backward reads it.

Never stored: copies of q, k and v and of their gradients. Kept for the backward: probabilities
[B, H, N, N], of 16 tokens and 64 channels a twelfth of qkv. The same bits with any number of
threads. Half precision is computed in float32. What C does not take, and all that a compiler, an
export or `torch.func` looks at, is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastequi.kernels import native_short_attention
from fastequi.kernels.autograd import batched, needs_operator
from fastequi.kernels.backend import use_native
from fastequi.kernels.precision import without_autocast


def short_attention_ref(qkv: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v of every image and head: [B, N, 3, H, D] to [B, N, H, D].

    Vaswani et al., Attention is all you need, NeurIPS 2017, equation 1. In plain products, of which
    every derivative is there; of PyTorch's CPU kernel only the first.
    """
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


def is_faster(qkv: Tensor) -> bool:
    """Whether :func:`short_attention` runs such queries, keys and values in C."""
    return (
        qkv.device.type == "cpu"
        and not needs_operator(qkv)
        and native_short_attention.reads(qkv)
        and use_native(qkv)
    )


@without_autocast
def short_attention(qkv: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v, for every image and head.

    Args:
        qkv: [B, N, 3, H, D] queries, keys and values, as a projection's rows hold them.

    Returns:
        [B, N, H, D].
    """
    if not is_faster(qkv):
        return short_attention_ref(qkv)
    wide = qkv.float()
    if torch.is_grad_enabled() and qkv.requires_grad:
        found: Tensor = _ShortAttention.apply(wide)
    else:
        found = _forward(wide.detach().contiguous(), None)
    return found.to(qkv.dtype)


def _forward(qkv: Tensor, weights: Tensor | None) -> Tensor:
    batch, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(batch, tokens, heads, width)
    native_short_attention.forward(qkv, out, weights)
    return out


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        batch, tokens, _, heads, _ = qkv.shape
        weights = qkv.new_empty(batch, heads, tokens, tokens)
        ctx.save_for_backward(qkv, weights)
        return _forward(qkv.contiguous(), weights)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        qkv, weights = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_operator(grad_out) or batched(grad_out):
            again = torch.is_grad_enabled()  # create_graph=True: the gradient is differentiated
            with torch.enable_grad():
                leaf = qkv if again else qkv.detach().requires_grad_()
                out = short_attention_ref(leaf)
            (found,) = torch.autograd.grad(out, leaf, grad_out, create_graph=again)
            return found
        grad = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        native_short_attention.backward(qkv.contiguous(), weights, grad_out.contiguous(), grad)
        return grad
