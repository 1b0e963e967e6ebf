"""Sets malloc to keep freed memory for the next training step."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_heap() -> bool:
    """Lets malloc keep freed memory for the next tensors; False where it is not glibc's.

    By default large blocks are returned to the system and mapped anew, with a page fault per page:
    without that, eager path losses of 64 images of 224 px take 66 ms instead of 149 on two
    cores (bench/results/cpu.json, cpu_fresh_memory.json). The process then holds its peak until it
    ends, so this is for commands, not for a library to do on import.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
