"""Attention of few tokens in C: short_attention.c through ctypes."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native

TOKENS = 100  # at most: of more, the probabilities that are kept are half as large as qkv
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDTHS = 16  # of a head, a multiple: whole vectors of every instruction set


class ShortAttentionStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("qkv", "out", "weights", "grad_out", "grad")),
        *((name, c_int64) for name in ("batch", "tokens", "heads", "width")),
        ("scale", c_float),
        ("threads", c_int32),
    )


def reads(qkv: Tensor) -> bool:
    """Whether the C kernel takes queries, keys and values [B, N, 3, H, D], as float32."""
    fits = 0 < qkv.shape[1] <= TOKENS and qkv.shape[4] % _WIDTHS == 0
    return fits and qkv.dtype in _TYPES and qkv.numel() > 0


def forward(qkv: Tensor, out: Tensor, weights: Tensor | None) -> None:
    """Fills `out` [B, N, H, D] and, if there are any, `weights` [B, H, N, N]; all dense."""
    _run(qkv, out, weights, None, None)


def backward(qkv: Tensor, weights: Tensor, grad_out: Tensor, grad: Tensor) -> None:
    """Fills `grad` as qkv, from what the forward has kept; all dense."""
    _run(qkv, None, weights, grad_out, grad)


def _run(
    qkv: Tensor,
    out: Tensor | None,
    weights: Tensor | None,
    grad_out: Tensor | None,
    grad: Tensor | None,
) -> None:
    batch, tokens, _, heads, width = qkv.shape
    op = ShortAttentionStruct(
        *(native.pointer(tensor) for tensor in (qkv, out, weights, grad_out, grad)),
        batch,
        tokens,
        heads,
        width,
        width**-0.5,
        native.threads(qkv.numel()),
    )
    native.call("short_attention", op)
