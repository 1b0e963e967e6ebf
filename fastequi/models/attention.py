"""One attention function over several backends.

xformers' memory_efficient_attention where it can run (a CUDA device, half precision), PyTorch's
scaled_dot_product_attention elsewhere. Both take tokens as [B, N, H, D], which is how a fused qkv
projection leaves them: no transposed copies.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "xformers", "sdpa")


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(q kᵀ / √D) v, for every image and head on its own.

    Args:
        q, k, v: [B, N, H, D] queries, keys and values; k and v may have another N.
        backend: "auto" takes the first of xformers and sdpa that can run; a name insists on it.

    Returns:
        [B, N, H, D].

    Raises:
        ValueError: unknown backend, or shapes that do not belong together.
        RuntimeError: the backend asked for cannot run on these tensors; says why.
    """
    _check(q, k, v, backend)
    if backend == "sdpa" or (backend == "auto" and q.device.type == "cpu"):
        return _sdpa(q, k, v)
    obstacle = _xformers_obstacle(q.device.type, q.dtype, q.shape[-1])
    if obstacle is None:
        return _xformers().memory_efficient_attention(q, k, v)
    if backend == "xformers":
        raise RuntimeError(f"attention backend 'xformers' cannot run here: {obstacle}")
    _log_once(obstacle)
    return _sdpa(q, k, v)


def available_backends() -> dict[str, tuple[bool, str]]:
    """Whether each backend could run here in half precision, and why; auto takes the first."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    obstacle = _xformers_obstacle(device, torch.bfloat16, 64)
    return {
        "xformers": (obstacle is None, obstacle or "memory-efficient attention on this GPU"),
        "sdpa": (True, "part of PyTorch"),
    }


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16):
        # half precision gains nothing here and its backward loses: 8.3 ms against 1.8 at 16 tokens,
        # level from 200 on (torch 2.13, AVX-512 with bf16); autocast would cast back
        with torch.autocast("cpu", enabled=False):
            return _sdpa(q.float(), k.float(), v.float()).to(q.dtype)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


@torch.compiler.assume_constant_result  # a question about the machine, not a part of the graph
@functools.cache
def _xformers_obstacle(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why xformers cannot serve such tensors, or None; it is imported only where there is a GPU."""
    if device != "cuda":
        return f"it needs a CUDA device, the tensors are on {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, got {dtype}"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install fastequi[xformers])"
    try:
        probe = torch.zeros(1, 1, 1, head_dim, device=device, dtype=dtype)
        _xformers().memory_efficient_attention(probe, probe, probe)
    except Exception as error:  # a wheel built for another torch raises more than ImportError
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


@functools.cache
def _xformers() -> Any:
    import xformers.ops

    return xformers.ops


@torch.compiler.assume_constant_result
@functools.cache
def _log_once(obstacle: str) -> None:
    logger.warning("attention runs on SDPA instead of xformers: %s", obstacle)


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, BACKENDS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}{hint}")
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape
    if not fits or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k, v: expected [B, N, H, D] that agree in B, H, D, got {shapes}")
