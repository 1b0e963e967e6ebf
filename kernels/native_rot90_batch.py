"""Images turned by right angles in C: rot90_batch.c through ctypes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_int32, c_int64, c_void_p

from torch import Tensor

from fastequi.kernels import native


class Rot90BatchStruct(Structure):
    _fields_ = (
        ("images", c_void_p),
        ("stride", c_int64 * 4),
        *((name, c_void_p) for name in ("turns", "values", "out")),
        ("out_stride", c_int64 * 4),
        *((name, c_int32) for name in ("batch", "channels", "side", "itemsize", "threads")),
    )


def rot90_batch(out: Tensor, images: Tensor, turns: Tensor | None, values: Tensor) -> None:
    """Fills `out` [4B or B, C, N, N] of two or four bytes a value, any strides.

    Args:
        images: [B, C, N, N] uint8, any strides.
        turns: [B] int32, or None for all four.
        values: [C, 256] what each byte becomes, in out's type, dense.
    """
    native.call("rot90_batch", _struct(out, images, turns, values))


def prepared(out: Tensor, images: Tensor, values: Tensor) -> Callable[[Tensor, Tensor], None]:
    """(out, images) to all four turns, for tensors like these; `values` stay."""
    op = _struct(out, images, None, values)
    run = native.Filled("rot90_batch", op, "out", "images")
    op.kept = values  # type: ignore[attr-defined]
    return run


def _struct(out: Tensor, images: Tensor, turns: Tensor | None, values: Tensor) -> Rot90BatchStruct:
    return Rot90BatchStruct(
        native.pointer(images),
        (c_int64 * 4)(*images.stride()),
        native.pointer(turns),
        native.pointer(values),
        native.pointer(out),
        (c_int64 * 4)(*out.stride()),
        *images.shape[:3],
        out.element_size(),
        native.threads(out.numel()),
    )
