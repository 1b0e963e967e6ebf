"""One attention function over several backends.

xformers' memory_efficient_attention, FlashAttention-3 (where installed) and PyTorch's
scaled_dot_product_attention take tokens as [B, N, H, D], the layout of a fused qkv projection: no
transposed copies. On a GPU "auto" is the fastest usable backend for the shape, measured once
(`attention_choice.py`); elsewhere and in exported graphs it is PyTorch's.
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
from torch._subclasses.fake_tensor import FakeTensor

from fastequi.kernels import short_attention
from fastequi.kernels.graphs import constant_in_graphs
from fastequi.models.attention_choice import Attend, fastest
from fastequi.versions import version_of

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "flash3", "xformers", "sdpa")
_PACKAGES = {"flash3": "flash_attn_interface", "xformers": "xformers"}
_GRAPHS_BATCH = 64  # images measured for a compiled graph, whose batch may change

Sizes = tuple[int, int, int, int, int]  # B, N, M keys, H, D


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(q kᵀ / √D) v, for every image and head.

    Args:
        q, k, v: [B, N, H, D] queries, keys and values; k and v may have another N.
        backend: a name, or "auto": on a GPU the fastest usable one for this shape, measured at
            first use and kept in the cache folder; on other devices PyTorch's.

    Returns:
        [B, N, H, D].

    Raises:
        ValueError: unknown backend, or shapes that do not fit together.
        RuntimeError: the given backend cannot run on these tensors; with the reason.
    """
    _check(q, k, v, backend)
    if backend == "sdpa" or (backend == "auto" and not _can_measure(q)):
        return _sdpa(q, k, v)
    if backend == "auto":
        grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        batch = _GRAPHS_BATCH if torch.compiler.is_compiling() else q.shape[0]
        sizes = batch, int(q.shape[1]), int(k.shape[1]), int(q.shape[2]), int(q.shape[3])
        return _attend(_auto(q.device.index or 0, q.dtype, sizes, grad))(q, k, v)
    obstacle = _obstacle(backend, q.device.type, q.dtype, int(q.shape[-1]))
    if obstacle is not None:
        raise RuntimeError(f"attention backend {backend!r} cannot run here: {obstacle}")
    return _attend(backend)(q, k, v)


def self_attention(qkv: Tensor, *, backend: str = "auto") -> Tensor:
    """:func:`attention` of the queries, keys and values of one projection.

    On a CPU "auto" is our kernel for images of at most 100 tokens (`kernels/short_attention.py`).

    Args:
        qkv: [B, N, 3, H, D].
        backend: as of :func:`attention`.

    Returns:
        [B, N, H, D].
    """
    if backend == "auto" and short_attention.is_faster(qkv):
        return short_attention.short_attention(qkv)
    return attention(*qkv.unbind(2), backend=backend)


def available_backends() -> dict[str, tuple[bool, str]]:
    """Whether each backend could run here in half precision, and why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = {name: _obstacle(name, device, torch.bfloat16, 64) for name in BACKENDS[1:]}
    return {name: (why is None, why or "can run here") for name, why in reasons.items()}


def _can_measure(q: Tensor) -> bool:
    """Whether the choice can be measured: not for fake tensors and exports."""
    exported = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return q.device.type == "cuda" and not exported and not isinstance(q, FakeTensor)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.device.type == "cpu" and q.dtype in (torch.float16, torch.bfloat16):
        # half precision gains nothing here and its backward is several times slower at few tokens
        # (torch 2.13, AVX-512 with bf16); autocast would cast back
        with torch.autocast("cpu", enabled=False):
            return _sdpa(q.float(), k.float(), v.float()).to(q.dtype)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _module("flash_attn_interface").flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # some versions give the log-sum-exp too


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _module("xformers.ops").memory_efficient_attention(q, k, v)


def _attend(name: str) -> Attend:
    return {"flash3": _flash3, "xformers": _xformers, "sdpa": _sdpa}[name]


_choices: dict[tuple[Any, ...], str] = {}


@constant_in_graphs  # depends on the machine, not on the graph
def _auto(device: int, dtype: torch.dtype, sizes: Sizes, grad: bool) -> str:
    """The fastest usable backend on a GPU; the first usable one during CUDA graph capture."""
    key = device, dtype, sizes[1:], grad
    if key not in _choices:
        can = {
            name: _attend(name)
            for name in BACKENDS[1:]
            if _obstacle(name, "cuda", dtype, sizes[-1]) is None
        }
        if "xformers" not in can:
            _log_once(str(_obstacle("xformers", "cuda", dtype, sizes[-1])))
        if torch.cuda.is_current_stream_capturing():  # nothing can be timed now
            return next(iter(can))
        versions = [f"torch{version_of('torch')}"]
        versions += [f"{name}{version_of(_PACKAGES[name])}" for name in can if name in _PACKAGES]
        where = torch.device("cuda", device)
        _choices[key] = fastest(can, sizes, dtype, where, grad, "-".join(versions))
    return _choices[key]


@constant_in_graphs
@functools.cache
def _obstacle(name: str, device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a backend cannot take such tensors, or None; imports it only if there is a GPU."""
    if name == "sdpa":
        return None
    if device != "cuda":
        return f"it needs a CUDA device, the tensors are on {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, got {dtype}"
    package = _PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        hint = " (pip install fastequi[xformers])" if name == "xformers" else ""
        return f"{package} is not installed{hint}"
    try:
        probe = torch.zeros(1, 1, 1, head_dim, device=device, dtype=dtype)
        _attend(name)(probe, probe, probe)
    except Exception as error:  # a wheel built for another torch raises more than ImportError
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


@functools.cache
def _module(name: str) -> Any:
    if name == "xformers.ops":
        import xformers.ops as module
    else:
        import flash_attn_interface as module
    return module


@functools.cache
def _log_once(obstacle: str) -> None:
    logger.warning("attention runs without xformers: %s", obstacle)


def _check(q: Tensor, k: Tensor, v: Tensor, backend: str) -> None:
    if backend not in BACKENDS:
        near = difflib.get_close_matches(backend, BACKENDS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}{hint}")
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape
    if not fits or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k, v: expected [B, N, H, D] that agree in B, H, D, got {shapes}")
