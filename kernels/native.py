"""The CPU kernels in C, called through ctypes.

Struct for struct what packed.h, warp.c and warp_recon.c declare. Pointers are those of tensors that
the caller holds; the kernels allocate nothing that outlives a call. ctypes releases the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastequi.kernels import toolchain
from fastequi.kernels.target import Sums, Target

logger = logging.getLogger(__name__)

DTYPES = {torch.uint8: 0, torch.float32: 1, torch.bfloat16: 2}
_LOSSES = {"mse": 0, "l1": 1, "smooth_l1": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}
_STREAM_BYTES = 32 << 20  # a gradient beyond the caches is written past them


class ImageStruct(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64 * 4),
        *((name, c_int32) for name in ("dtype", "channels", "height", "width")),
    )


class GridStruct(Structure):
    _fields_ = (
        ("theta", c_void_p),
        ("color", c_void_p),
        ("gain", c_float * 4),
        ("bias", c_float * 4),
        *((name, c_int32) for name in ("batch", "steps", "height", "width", "padding", "align")),
    )


class WarpStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        ("grid", GridStruct),
        ("out", c_void_p),
        ("dtype", c_int32),
        ("threads", c_int32),
    )


class WarpReconStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        ("grid", GridStruct),
        *((name, c_void_p) for name in ("pred", "grad", "total", "count", "dtheta")),
        ("pred_stride", c_int64 * 5),
        ("grad_bytes", c_int64),
        ("weight", c_float),
        *((name, c_int32) for name in ("dtype", "loss", "patch", "planar", "stream", "threads")),
    )


class Rot90BatchStruct(Structure):
    _fields_ = (
        ("images", c_void_p),
        ("stride", c_int64 * 4),
        *((name, c_void_p) for name in ("turns", "values", "out")),
        ("out_stride", c_int64 * 4),
        *((name, c_int32) for name in ("batch", "channels", "side", "itemsize", "threads")),
    )


_STRUCTS: dict[str, type[Structure]] = {
    "warp": WarpStruct, "warp_recon": WarpReconStruct, "rot90_batch": Rot90BatchStruct
}  # fmt: skip


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
        for name, struct in _STRUCTS.items():
            size = c_int64.in_dll(library, f"{name}_bytes_{isa}").value
            if size != ctypes.sizeof(struct):
                raise RuntimeError(f"{name}: struct of {size} bytes in C, {struct} in Python")
            getattr(library, f"{name}_{isa}").argtypes = [POINTER(struct)]
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


def samples(image: Tensor) -> bool:
    """Whether the C sampler takes such an image: its type, and a size whose coordinates are exact.

    Bounds of half a pixel want sides below 2^22 in float32, texel indices an area below 2^31.
    """
    height, width = image.shape[2:]
    fits = (height + 4) * (width + 4) < 2**31 and 0 < height < 2**22 and 0 < width < 2**22
    return image.dtype in DTYPES and 1 <= image.shape[1] <= 4 and fits


def warp(out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target) -> None:
    """Fills `out` [B, K, C, H, W], dense, uint8, float32 or bfloat16."""
    theta, color = _dense(theta), None if color is None else _dense(color)
    op = WarpStruct(
        _image(image),
        _grid(theta, color, target),
        out.data_ptr(),
        DTYPES[out.dtype],
        torch.get_num_threads(),
    )
    _call("warp", op)


def reads(pred: Tensor, patch_size: int) -> bool:
    """Whether the C loss takes such a prediction: its type, and rows without gaps."""
    return pred.dtype in (torch.float32, torch.bfloat16) and _rows(pred, patch_size) is not None


def _rows(pred: Tensor, patch_size: int) -> str | None:
    """How a row of the prediction lies in memory: "planar", "interleaved" or, with gaps, None."""
    if patch_size:
        return "interleaved" if pred.stride(-1) == 1 else None
    channels, width = pred.shape[2], pred.shape[4]
    by_channel, by_pixel = pred.stride(2), pred.stride(4)
    if channels > 1 and by_channel == 1 and (by_pixel == channels or width == 1):
        return "interleaved"
    return "planar" if by_pixel == 1 or width == 1 else None


def warp_recon(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
) -> None:
    """Fills what of the sums is not empty; the gradient as pred lies, `weight` times as large."""
    theta, color = _dense(theta), None if color is None else _dense(color)
    inner = (pred.stride(2), 1, 1) if target.patch_size else pred.stride()[2:]
    total, count, grad, dtheta = sums
    grad_bytes = grad.numel() * grad.element_size()
    op = WarpReconStruct(
        _image(image),
        _grid(theta, color, target),
        *(t.data_ptr() if t.numel() else None for t in (pred, grad, total, count, dtheta)),
        (c_int64 * 5)(*pred.stride()[:2], *inner),
        grad_bytes,
        weight,
        DTYPES[pred.dtype],
        _LOSSES[target.loss],
        target.patch_size,
        _rows(pred, target.patch_size) == "planar",
        grad_bytes > _STREAM_BYTES,
        torch.get_num_threads(),
    )
    _call("warp_recon", op)


def rot90_batch(out: Tensor, images: Tensor, turns: Tensor | None, values: Tensor) -> None:
    """Fills `out` [4B or B, C, N, N] of two or four bytes a value, any strides.

    Args:
        images: [B, C, N, N] uint8, any strides.
        turns: [B] int32, or None for all four.
        values: [C, 256] what each byte becomes, in out's type, dense.
    """
    op = Rot90BatchStruct(
        images.data_ptr(),
        (c_int64 * 4)(*images.stride()),
        None if turns is None else turns.data_ptr(),
        values.data_ptr(),
        out.data_ptr(),
        (c_int64 * 4)(*out.stride()),
        *images.shape[:3],
        out.element_size(),
        torch.get_num_threads(),
    )
    _call("rot90_batch", op)


def _call(name: str, op: Structure) -> None:
    library, reason, isa = load()
    if library is None:
        raise RuntimeError(f"CPU kernels in C: {reason}")
    if getattr(library, f"{name}_{isa}")(byref(op)):
        raise MemoryError(f"{name}: no memory for the packed images")


@functools.cache
def kernel(name: str, struct: type[Structure]) -> Callable[[Any], int]:
    """A kernel of the library that takes such a struct.

    Raises:
        RuntimeError: the kernels cannot run, or the struct is another one in C.
    """
    library, reason, isa = load()
    if library is None:
        raise RuntimeError(f"CPU kernels in C: {reason}")
    size = c_int64.in_dll(library, f"{name}_bytes_{isa}").value
    if size != ctypes.sizeof(struct):
        raise RuntimeError(f"{name}: struct of {size} bytes in C, {struct} in Python")
    function: Callable[[Any], int] = getattr(library, f"{name}_{isa}")
    return function


def call(name: str, op: Structure) -> None:
    """Runs a kernel.

    Raises:
        MemoryError: it found no memory for its scratch.
    """
    if kernel(name, type(op))(byref(op)):
        raise MemoryError(f"{name}: no memory")


def _image(image: Tensor) -> ImageStruct:
    return ImageStruct(
        image.data_ptr(), (c_int64 * 4)(*image.stride()), DTYPES[image.dtype], *image.shape[1:]
    )


def _grid(theta: Tensor, color: Tensor | None, target: Target) -> GridStruct:
    gain, bias = [1.0] * 4, [0.0] * 4
    if target.mean is not None and target.std is not None:
        gain = [1 / s for s in target.std]
        bias = [-m / s for m, s in zip(target.mean, target.std, strict=True)]
    return GridStruct(
        theta.data_ptr(),
        None if color is None else color.data_ptr(),
        (c_float * 4)(*gain),
        (c_float * 4)(*bias),
        *theta.shape[:2],
        *target.size,
        _PADDINGS[target.padding_mode],
        target.align_corners,
    )


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()
