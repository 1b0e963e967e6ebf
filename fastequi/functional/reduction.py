"""How the path losses are reduced: from sums per image and step to a mean, a sum or neither."""

from __future__ import annotations

from torch import Tensor


def divisor_of(values: int, pairs: int, reduction: str, masked: bool) -> int:
    """What the sums [B, K] over `values` each are to be divided by, where that is a constant."""
    if masked or reduction == "sum":
        return 1
    return max(values * (pairs if reduction == "mean" else 1), 1)


def reduced(total: Tensor, count: Tensor | None, reduction: str, single: bool) -> Tensor:
    """Sums as they are, or divided by what `count` has left of the values."""
    if count is not None and reduction != "sum":
        total = total / count.clamp(min=1)
    return total[:, 0] if single and reduction == "none" else total
