"""NumPy's files as images: one array [H, W] or [H, W, C] of numbers in a .npy, or alone in a .npz.

By request it is [C, H, W], or one of several in a .npz (`fastequi.data.sources.parts`). Objects in
them are never unpickled.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fastequi.data.sources import npy_header
from fastequi.data.sources.kinds import Kind, of_shape
from fastequi.data.sources.limits import MAX_BYTES, expect_pixels

MAGIC = {b"\x93NUMPY": "NPY", b"PK\x03\x04": "NPZ", b"PK\x05\x06": "NPZ"}  # the last: empty
_LENGTH = 6  # of the longest
_NAMED = 5  # arrays


def format_of_bytes(start: bytes) -> str:
    """ "NPY" or "NPZ" by the first bytes; "" of others."""
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")


def shape_of(
    file: BinaryIO, name: str = "", planes: bool = False
) -> tuple[int, int, Kind, np.dtype[Any]]:
    """Height, width, kind and the values' own type, without reading them.

    Args:
        file, name, planes: as of :func:`taken`.

    Raises:
        ValueError: it is damaged, holds no such array, or several; or others of damaged files.
    """
    _expect_form(file, name)
    with _opened(file, name) as array:
        shape, _, dtype = npy_header.read(array)
    return *_as_image(shape, dtype, planes), dtype


def is_plain(file: BinaryIO, depth: str, channels: int) -> bool:
    """Whether it is a .npy of format 1.0 with [H, W, channels] of a type, and no byte more, in the
    form that NumPy writes: DALI reads no other, and fails without a CUDA device on some."""
    if not file.read(8).startswith(b"\x93NUMPY\x01\x00"):
        return False
    file.seek(0)
    shape, by_columns, dtype = npy_header.read(file)
    begin = file.tell()
    if by_columns or len(shape) != 3 or shape[2] != channels or dtype != np.dtype(depth):
        return False
    whole = file.seek(0, os.SEEK_END) == begin + math.prod(shape) * dtype.itemsize
    file.seek(0)
    return whole and npy_header.is_plain(file, shape, dtype)


def decoded(file: BinaryIO) -> NDArray[Any]:
    """The values [H, W, C] in their own type.

    Raises:
        ValueError: as :func:`shape_of`.
    """
    return taken(file)[1]


def taken(
    file: BinaryIO, name: str = "", planes: bool = False
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A .npy of an array, and the values [H, W, C] within it.

    Args:
        file: a .npy or .npz.
        name: of one in a .npz; "" of the only one.
        planes: whether it is [C, H, W]; of two axes it is [H, W] all the same.

    Raises:
        ValueError: there is no such array, it ends early, or as :func:`shape_of`.
        Image.DecompressionBombError: it claims too many pixels; of Pillow's.
    """
    _expect_form(file, name)
    with _opened(file, name) as array:
        shape, by_columns, dtype = npy_header.read(array)
        height, width, kind = _as_image(shape, dtype, planes)
        expect_pixels(height, width, kind.channels)
        if (count := height * width * kind.channels * dtype.itemsize) > MAX_BYTES:
            raise ValueError(f"{count} bytes of values, more than {MAX_BYTES}")
        planes = planes and len(shape) == 3
        content, values = _made((height, width, kind.channels), dtype)
        if by_columns:
            whole = _read(array, shape[::-1], dtype).transpose()
            values[...] = np.moveaxis(whole, 0, -1) if planes else whole.reshape(values.shape)
        elif planes:  # one at a time stays in the caches
            for c in range(kind.channels):
                values[..., c] = _read(array, (height, width), dtype)
        else:
            _fill(array, values)
        if array is not file and array.read(1):  # which checks the sum of a member of a .npz, too
            raise ValueError("more bytes than its header says")
    return content, values


def encoded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A .npy of values [H, W, C], as DALI reads them."""
    return packed(values)[0]


def packed(values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The same, and the values within it."""
    content, inside = _made(values.shape, values.dtype)
    inside[...] = values
    return content, inside


def _made(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """A .npy, and its values, which are not written yet."""
    about = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    head = BytesIO()
    npy.write_array_header_1_0(head, about)
    begin, count = head.tell(), math.prod(shape) * dtype.itemsize
    content = np.empty(begin + count, np.uint8)
    content[:begin] = np.frombuffer(head.getbuffer(), np.uint8)
    return content, content[begin:].view(dtype).reshape(shape)


def _expect_form(file: BinaryIO, name: str) -> None:
    """Refuses what is no array's file by its bytes, or has no arrays with names."""
    form = format_of_bytes(file.read(_LENGTH))
    file.seek(0)
    if not form or (name and form == "NPY"):
        raise ValueError(f"expected {'a .npz' if name else '.npy or .npz'} by its bytes")


def _as_image(shape: tuple[int, ...], dtype: np.dtype[Any], planes: bool) -> tuple[int, int, Kind]:
    """Height, width and kind of an array, of three axes as planes where they are."""
    if planes and (len(shape) > 3 or min(shape, default=0) < 1):
        raise ValueError(f"an array of shape {shape}, expected [H, W] or [C, H, W]")
    return of_shape((*shape[1:], shape[0]) if planes and len(shape) == 3 else shape, dtype)


def _read(file: BinaryIO, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The next values."""
    values = np.empty(shape, dtype)
    _fill(file, values)
    return values


def _fill(file: BinaryIO, values: NDArray[Any]) -> None:
    """Reads contiguous values."""
    left = values.reshape(-1).view(np.uint8).data
    while left:
        got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise ValueError("it ends before its values do")
        left = left[got:]


def _opened(file: BinaryIO, name: str = "") -> Any:
    """The .npy in a file, the only one or by its name, or the file itself."""
    start = file.read(_LENGTH)
    file.seek(0)
    if format_of_bytes(start) == "NPY":
        return _Same(file)
    archive = zipfile.ZipFile(file)
    names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    listed = ", ".join([*names[:_NAMED], *["..."] * (len(names) > _NAMED)])
    if name:
        if name not in names:
            raise ValueError(f"no array {name} in a .npz, which has {listed or 'none'}")
    elif len(names) != 1:
        how = "; fastequi data scan PLACE --array NAME, or array=NAME of read_image, takes one"
        how *= bool(names)
        raise ValueError(f"{len(names)} arrays in a .npz ({listed}), expected one{how}")
    return archive.open(f"{name or names[0]}.npy")


class _Same:
    """A file that stays open after the block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, *_: object) -> None: ...
