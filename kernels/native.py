"""The CPU kernels in C, called through ctypes; each op's own struct is in its native_*.py.

Pointers are those of tensors that the caller holds; the kernels allocate nothing that outlives a
call. ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from ctypes import Structure, addressof, byref, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastequi.kernels import toolchain

logger = logging.getLogger(__name__)

STREAM_BYTES = 8 << 20
"""Gradients and views of more bytes are written past the caches: gradients of 9 to 28 MB then take
.72 to .8 of the time, and .8 to .95 with a reader behind (2 cores, 1 MB each and 32 MB shared)."""
_GRAIN = 1 << 14  # values, of a few nanoseconds each

DTYPES = {torch.uint8: 0, torch.float32: 1, torch.bfloat16: 2}


def obstacle() -> str | None:
    """Why the C kernels cannot run here, or None."""
    return load()[1]


def instruction_set() -> str:
    """Name of the compiled set that runs: "v4", "v3", "v2" or "base", the best that this processor
    has and $FASTEQUI_MAX_ISA allows."""
    return load()[2]


def _allowed(isa: str) -> str:
    """At most $FASTEQUI_MAX_ISA.

    Raises:
        ValueError: it is none of the compiled sets.
    """
    known = list(toolchain.instruction_sets())  # in order
    most = os.environ.get("FASTEQUI_MAX_ISA") or known[-1]
    if most not in known:
        raise ValueError(f"FASTEQUI_MAX_ISA: expected {' or '.join(known)}, got {most!r}")
    return min(isa, most, key=known.index)


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None, str]:
    """(library, obstacle, instruction set); compiles at first use. Said once in the log."""
    try:
        library = ctypes.CDLL(str(library_file()))
        level = library.fastequi_level()
        isa = {4: "v4", 3: "v3", 2: "v2", 1: "base"}.get(level)
        if isa is None:
            raise RuntimeError("the processor lacks SSE4.2")
        isa = _allowed(isa)
    except (OSError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        logger.warning("CPU kernels in C are not used, a slower PyTorch path is: %s", reason)
        return None, reason, ""
    return library, None, isa


def library_file() -> Path:
    """The one the wheel carries if it is of these sources, else the cached one; OpenMP ready."""
    for runtime in _openmp_runtimes():
        ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
    ahead = Path(__file__).with_name(toolchain.LIBRARY)
    stamp = ahead.with_suffix(".txt")
    if ahead.is_file() and stamp.is_file() and stamp.read_text() == toolchain.fingerprint():
        return ahead
    return toolchain.cached()


def _openmp_runtimes() -> list[str]:
    """PyTorch's own OpenMP library, whose threads the kernels share, or else the system's.

    Other packages (scikit-learn) bring copies of theirs, so the one beside PyTorch comes first.
    """
    maps = Path("/proc/self/maps")
    mapped = maps.read_text() if maps.is_file() else ""
    loaded = re.findall(r"\S+/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", mapped)
    return sorted(set(loaded), key=lambda path: "/torch" not in path)[:1] or ["libgomp.so.1"]


def threads(values: int) -> int:
    """How many threads a kernel gets for so many values: PyTorch's, but where waking one takes
    longer than its share of the work. The results' bits do not depend on it."""
    return min(torch.get_num_threads(), 1 + values // _GRAIN)


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's values, for C.

    Raises:
        RuntimeError: it has none that a CPU can read; better than the end of the process.
    """
    if tensor is None:
        return None
    address = tensor.data_ptr()
    if tensor.device.type != "cpu" or tensor.is_neg() or (not address and tensor.numel()):
        raise RuntimeError(f"CPU kernels in C: expected values in memory, got {tensor.device}")
    return address


def readable(tensor: Tensor) -> Tensor:
    """The tensor itself; raises the error of :func:`pointer`."""
    pointer(tensor)
    return tensor


def pointers(tensors: Sequence[Tensor]) -> Sequence[int]:
    """:func:`pointer` of each of many on one device, of which none is a negative view."""
    found = [tensor.data_ptr() for tensor in tensors]
    if tensors and (0 in found or tensors[0].device.type != "cpu"):
        return [pointer(tensor) or 0 for tensor in tensors]
    return found


def plain(tensor: Tensor) -> bool:
    """Whether C reads numbers where they lie, as float32 side by side."""
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.is_neg()


def floats(tensor: Tensor) -> Tensor:
    """Numbers as such: the tensor itself, or a copy without its history."""
    if plain(tensor):
        return tensor
    return tensor.detach().to(torch.float32).resolve_neg().contiguous()


def call(name: str, op: Structure) -> None:
    """Runs a kernel of the library.

    Raises:
        RuntimeError: the kernels cannot run, or the struct is another one in C.
        MemoryError: it found no memory for what it works on.
    """
    kernel(name, type(op))(op)


def kernel(name: str, kind: type[Structure]) -> Callable[[Structure], None]:
    """A kernel of the library, to be called again and again; errors as of :func:`call`."""
    library, reason, isa = load()
    if library is None:
        raise RuntimeError(f"CPU kernels in C: {reason}")
    return _runner(library, name, isa, kind)


Op = TypeVar("Op", bound=Structure)


def with_floats(op: Op, values: Mapping[str, Sequence[float]]) -> Op:
    """The struct with arrays of float32 behind fields ("gain", "grid.gain"), which live as long."""
    arrays = []
    for path, given in values.items():
        *outer, name = path.split(".")
        array = (c_float * len(given))(*given)
        setattr(functools.reduce(getattr, outer, op), name, addressof(array))
        arrays.append(array)
    op.kept = arrays  # type: ignore[attr-defined]
    return op


class Filled:
    """A kernel whose struct is filled for tensors of one kind, but for its pointers.

    Args:
        name: of the kernel.
        op: its struct, filled for tensors like those of later calls.
        pointers: the fields that a call sets, in its order: "out", "image.data".
    """

    def __init__(self, name: str, op: Structure, *pointers: str) -> None:
        self._run, self._struct, self._bytes = kernel(name, type(op)), type(op), bytes(op)
        self._op = op  # whose arrays the copies point to
        self._places = [_offset(type(op), path) // _WORD for path in pointers]

    def __call__(self, *tensors: Tensor | None) -> None:
        """Runs it on tensors whose memory is known to be there; None leaves a field as it was."""
        filled = bytearray(self._bytes)
        words = memoryview(filled).cast("P")
        for place, tensor in zip(self._places, tensors, strict=True):
            if tensor is not None:
                words[place] = tensor.data_ptr()
        self._run(self._struct.from_buffer(filled))


_WORD = ctypes.sizeof(c_void_p)


def _offset(kind: Any, path: str) -> int:
    """Bytes before a field, which may be a struct's within."""
    total = 0
    for name in path.split("."):
        total += getattr(kind, name).offset
        kind = dict(kind._fields_)[name]
    return total


@functools.cache
def _runner(
    library: ctypes.CDLL, name: str, isa: str, kind: type[Structure]
) -> Callable[[Structure], None]:
    function = _checked(library, f"{name}_{isa}", f"{name}_bytes_{isa}", kind)

    def run(op: Structure) -> None:
        if function(byref(op)):
            raise MemoryError(f"{name}: no memory for what it works on")

    return run


@functools.cache
def _checked(
    library: ctypes.CDLL, name: str, size_name: str, kind: type[Structure]
) -> Callable[[Any], int]:
    size = c_int64.in_dll(library, size_name).value
    if size != ctypes.sizeof(kind):
        raise RuntimeError(f"{name}: struct of {size} bytes in C, {kind} in Python")
    function: Callable[[Any], int] = getattr(library, name)
    return function
