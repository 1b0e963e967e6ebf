"""Matrices as kernels read them: row by row."""

from __future__ import annotations

from torch import Tensor


def dense_rows(x: Tensor) -> Tensor:
    """x [R, N], copied if the values of a row do not lie side by side, or are those of a view that
    turns their sign."""
    x = x.resolve_neg()
    return x if x.stride(1) == 1 else x.contiguous()
