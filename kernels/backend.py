"""Which implementation an op runs: Triton kernels on a GPU, C on a CPU, else an eager PyTorch path.

Under TRITON_INTERPRET=1 (set before Triton is first imported) the kernels also run on CPU tensors,
slowly: that is how they are tested without a GPU, through :func:`force`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.autograd import forward_ad

from fastequi.kernels import native
from fastequi.kernels.graphs import constant_in_graphs

try:
    import triton
    import triton.language as tl

    TRITON_ERROR: str | None = None
except Exception as error:  # a broken install raises more than ImportError
    TRITON_ERROR = f"{type(error).__name__}: {error}"
    triton = SimpleNamespace(jit=lambda function: function)  # what a kernel's definition needs
    tl = SimpleNamespace(constexpr=object)

logger = logging.getLogger(__name__)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

NAMES = ("triton", "native", "torch")

forced: str | None = None


def choose(device: torch.device) -> tuple[str, str]:
    """("triton", "native" or "torch", why) for tensors on a device."""
    if forced is not None:
        return forced, "forced"
    if device.type == "cuda":
        if TRITON_ERROR is not None:
            return "torch", f"Triton cannot be imported ({TRITON_ERROR})"
        return "triton", f"fused kernels, Triton {triton.__version__}"
    if device.type != "cpu":
        return "torch", f"no kernels for {device.type}"
    reason = native.obstacle()
    if reason is not None:
        return "torch", f"eager PyTorch path, since the C kernels cannot run: {reason}"
    isa = native.instruction_set()
    return "native", f"C kernels, instruction set {isa}"


def transformed() -> bool:
    """Whether a `torch.func` transform or forward-mode differentiation is under way.

    The losses then run as their references: plain PyTorch, as far as it has rules (`grid_sample`
    has none for forward mode).
    """
    active = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if active and not torch.compiler.is_compiling():
        say_plain()
    return active


@functools.cache
def say_plain() -> None:
    logger.warning("under torch.func and forward-mode differentiation plain PyTorch runs, slower")


def use_triton(tensor: torch.Tensor) -> bool:
    if transformed():
        return False
    if forced is not None:
        return forced == "triton"
    return tensor.device.type == "cuda" and TRITON_ERROR is None


@constant_in_graphs
def _c_runs() -> bool:
    """Whether there are C kernels; compilers do not look into how it is found out."""
    return native.obstacle() is None


def use_native(tensor: torch.Tensor) -> bool:
    if transformed():
        return False
    if forced is not None:
        return forced == "native"
    return tensor.device.type == "cpu" and _c_runs()


def say_type(
    name: str, *dtypes: torch.dtype, takes: str = "float32 or bfloat16 alike", shape: str = ""
) -> None:
    """Logs, once for each, that the C kernel of an op does not take such tensors; `shape`: what
    there is to say of theirs."""
    if not torch.compiler.is_compiling():
        _say_type(name, takes, shape, *sorted(set(dtypes), key=str))


@functools.cache
def _say_type(name: str, takes: str, shape: str, *dtypes: torch.dtype) -> None:
    kinds = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    found = ", ".join([*kinds, shape] if shape else kinds)
    logger.warning("%s of %s runs in PyTorch on a CPU, slower; C takes %s", name, found, takes)


@contextmanager
def force(name: str) -> Iterator[None]:
    """Forces one of NAMES within a block, for tests and benches."""
    global forced
    if name not in NAMES:
        raise ValueError(f"name: expected one of {NAMES}, got {name!r}")
    if name == "triton" and not (torch.cuda.is_available() or INTERPRETED):
        raise RuntimeError("Triton needs a CUDA device, or TRITON_INTERPRET=1 from the start")
    if name == "native" and (reason := native.obstacle()) is not None:
        raise RuntimeError(f"the C kernels cannot run here: {reason}")
    before, forced = forced, name
    try:
        yield
    finally:
        forced = before
