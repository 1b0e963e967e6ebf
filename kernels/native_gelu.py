"""GELU in C: gelu.c through ctypes."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native


class GeluStruct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "grad_out", "out")),
        ("count", c_int64),
        ("threads", c_int32),
    )


LEAST = 1 << 15  # values: of fewer a call takes longer than it saves


def reads(x: Tensor) -> bool:
    """Whether the C kernel takes such values, and is worth its call."""
    return x.dtype == torch.float32 and x.numel() >= LEAST and x.is_contiguous()


def gelu(x: Tensor, grad_out: Tensor | None, out: Tensor) -> None:
    """Fills `out` with the values at x, or with the gradient by x; all dense, of one size."""
    op = GeluStruct(
        *(native.pointer(tensor) for tensor in (x, grad_out, out)),
        x.numel(),
        native.threads(x.numel()),
    )
    native.call("gelu", op)
