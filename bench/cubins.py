"""What compiled kernels use, read from their machine code by the tools that Triton brings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Usage(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes
    spills: int  # loads and stores of spilled registers


def usage(cubin: Path) -> Usage:
    """Of the one kernel of a cubin."""
    text = _run("cuobjdump", "-res-usage", cubin)
    registers, stack = (re.search(rf"{name}:(\d+)", text) for name in ("REG", "STACK"))
    if registers is None or stack is None:
        raise ValueError(f"cuobjdump said nothing of registers: {text[:500]}")
    spills = len(re.findall(r"\b(?:LDL|STL)\b", disassembly(cubin)))
    return Usage(int(registers[1]), int(stack[1]), spills)


def disassembly(cubin: Path) -> str:
    """Its instructions and labels, a line each."""
    return _run("nvdisasm", "-c", cubin)


def _run(tool: str, *arguments: str | Path) -> str:
    run = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=False)
    return run.stdout + run.stderr
