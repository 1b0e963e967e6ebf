"""Pairs of views, (student's, teacher's), as kernels read them: s0, t0, s1, t1, ... in int32."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def on_device(device: torch.device, pairs: tuple[int, ...]) -> Tensor:
    """Copied there once."""
    return torch.tensor(pairs, dtype=torch.int32, device=device)
