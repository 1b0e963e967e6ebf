"""Small tensors of constants, copied to a device once and not in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastequi.kernels.graphs import constant_in_graphs

P = ParamSpec("P")
Values = tuple[Any, ...]  # numbers, or rows of them


def constants(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values as a shared tensor, which must not be written to.

    Under torch.compile and torch.export it becomes a constant of the graph. Under a dispatch mode
    with tensors of its own (FakeTensorMode) or a transform of `torch.func` it is a new one, not
    kept, since later calls would get it.
    """
    if torch.compiler.is_dynamo_compiling():
        return _of_graph(values, device, dtype)
    if _wrapped():
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, device, dtype)


def constants_of(values: Sequence[float] | None, device: torch.device) -> Tensor | None:
    """Mean or std as a kernel reads them, float32, if there are any."""
    return None if values is None else constants(tuple(values), device, torch.float32)


def kept(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A function of numbers and a device whose tensors are kept, which must not be written to.

    Compilers trace the function itself; modes and transforms get tensors of their own, as above. So
    does a CUDA graph that is being captured, whose tensors have no values before it is replayed.
    """

    @lru_cache(maxsize=64)
    def cached(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.inference_mode(False):
            return make(*args, **kwargs)

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling() or _wrapped() or _capturing():
            return make(*args, **kwargs)
        return cached(*args, **kwargs)  # type: ignore[arg-type]

    call.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return call


def _capturing() -> bool:
    """Compilers cannot look into this."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _wrapped() -> bool:
    """Whether new tensors are made as others than plain ones, by a mode or by functionalize."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or _get_current_dispatch_mode() is not None


@lru_cache(maxsize=256)
def _kept(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    # autograd cannot save a tensor made in inference mode, as a validation before training may be
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@constant_in_graphs
def _of_graph(values: Values, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Called by the compiler itself, while it traces."""
    return _kept(values, device, dtype)
