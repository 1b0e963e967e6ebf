"""Small tensors of constants, copied to a device once and not in every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

Values = tuple[Any, ...]  # numbers, or rows of them


def constants(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values as a shared tensor, which must not be written to.

    Under torch.compile and torch.export it becomes a constant of the graph. Under a dispatch mode
    with tensors of its own (FakeTensorMode) it is a new one of that mode, not cached, since later
    calls would get it.
    """
    if torch.compiler.is_dynamo_compiling():
        return _of_graph(values, device, dtype)
    if _get_current_dispatch_mode() is not None:
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, device, dtype)


def constants_of(values: Sequence[float] | None, device: torch.device) -> Tensor | None:
    """Mean or std as a kernel reads them, float32, if there are any."""
    return None if values is None else constants(tuple(values), device, torch.float32)


@lru_cache(maxsize=256)
def _kept(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    # autograd cannot save a tensor made in inference mode, as a validation before training may be
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@torch.compiler.assume_constant_result
def _of_graph(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Called by the compiler itself, while it traces."""
    return _kept(values, device, dtype)
