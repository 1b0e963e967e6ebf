"""GELU of a transformer's MLP on a CPU: value and gradient by one power of two each.

Replaces `F.gelu(x)` of float32. Bytes: x read and the value written; in the backward x and the
incoming gradient read, the gradient written. Absolute error of Φ: 1.5e-7, as of PyTorch's. Other
types and devices, and all that a compiler, an export or `torch.func` looks at, are PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_gelu
from fastequi.kernels.autograd import batched, needs_operator
from fastequi.kernels.backend import use_native


def gelu_ref(x: Tensor) -> Tensor:
    """x Φ(x), Φ the normal distribution's (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return F.gelu(x)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x) of values of any shape."""
    fits = x.device.type == "cpu" and not needs_operator(x) and native_gelu.reads(x)
    if not fits or not use_native(x):
        return gelu_ref(x)
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = _Gelu.apply(x)
        return found
    return _run(x, None)


def _run(x: Tensor, grad_out: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    native_gelu.gelu(x, grad_out, out)
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _run(x, None)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or needs_operator(grad_out) or batched(grad_out):
            return torch.ops.aten.gelu_backward(grad_out, x)  # which can be differentiated
        return _run(x, grad_out.contiguous())
