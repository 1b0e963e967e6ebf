"""An instruction set that nothing measured goes beyond: what a machine without AVX-512 sees."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

LIMITS = {
    "avx2": {
        "FASTEQUI_MAX_ISA": "v3",  # ours
        "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's kernels, the vectors of torch.compile
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",  # and what its C++ compiler makes of the rest
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENCV_CPU_DISABLE": "AVX512-SKX",
        "OPENCV_IPP": "avx2",
    }
}
"""Names of limits, and the environment that libraries read as they are loaded."""


def limit() -> str | None:
    """The limit that this process runs under, or None."""
    names = (name for name, switches in LIMITS.items() if switches.items() <= os.environ.items())
    return next(names, None)


def restart_limited(name: str, argv: list[str]) -> NoReturn:
    """Becomes `python -m bench` with the same arguments, under the limit."""
    command = [sys.executable, "-m", "bench", *argv]
    os.execve(sys.executable, command, {**os.environ, **LIMITS[name]})
