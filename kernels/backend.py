"""Which implementation an op runs: Triton kernels on a GPU, a lean PyTorch path on a CPU.

Under TRITON_INTERPRET=1 (set before Triton is first imported) the kernels also run on CPU tensors,
slowly: that is how they are tested without a GPU, through :func:`force`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

try:
    import triton
    import triton.language as tl

    TRITON_ERROR: str | None = None
except Exception as error:  # a broken install raises more than ImportError
    TRITON_ERROR = f"{type(error).__name__}: {error}"
    triton = SimpleNamespace(jit=lambda function: function)  # what a kernel's definition needs
    tl = SimpleNamespace(constexpr=object)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_forced: str | None = None


def choose(device: torch.device) -> tuple[str, str]:
    """("triton" or "torch", why) for tensors on a device."""
    if _forced is not None:
        return _forced, "forced"
    if TRITON_ERROR is not None:
        return "torch", f"Triton cannot be imported ({TRITON_ERROR})"
    if device.type == "cuda":
        return "triton", f"fused kernels, Triton {triton.__version__}"
    return "torch", "no CUDA device: gradient in the forward, a chunk of targets at a time"


def use_triton(tensor: torch.Tensor) -> bool:
    return choose(tensor.device)[0] == "triton"


@contextmanager
def force(name: str) -> Iterator[None]:
    """Insists on "triton" or "torch" within a block, for tests and benches."""
    global _forced
    if name not in ("triton", "torch"):
        raise ValueError(f"name: expected 'triton' or 'torch', got {name!r}")
    if name == "triton" and not (torch.cuda.is_available() or INTERPRETED):
        raise RuntimeError("Triton needs a CUDA device, or TRITON_INTERPRET=1 from the start")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
