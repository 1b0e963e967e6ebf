"""NumPy's files as images: one array [H, W] or [H, W, C] of numbers in a .npy, or alone in a .npz.

Objects in them are never unpickled.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fastequi.data.sources.kinds import Kind, of_shape

MAGIC = {b"\x93NUMPY": "NPY", b"PK\x03\x04": "NPZ"}
_LENGTH = 6  # of the longest


def format_of_bytes(start: bytes) -> str:
    """ "NPY" or "NPZ" by the first bytes; "" of others."""
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")


def shape_of(file: BinaryIO) -> tuple[int, int, Kind]:
    """Height, width and kind, without reading the values.

    Raises:
        ValueError: it is damaged, holds no such array, or several; or others of damaged files.
    """
    with _opened(file) as array:
        shape, dtype = _header(array)
    return of_shape(shape, dtype)


def is_plain(file: BinaryIO, depth: str, channels: int) -> bool:
    """Whether it is a .npy of format 1.0 with [H, W, channels] of a type, which DALI reads."""
    if not file.read(8).startswith(b"\x93NUMPY\x01\x00"):
        return False
    file.seek(0)
    shape, dtype = _header(file)
    return len(shape) == 3 and shape[2] == channels and dtype == np.dtype(depth)


def decoded(file: BinaryIO) -> NDArray[Any]:
    """The values [H, W, C] in their own type.

    Raises:
        ValueError: as :func:`shape_of`.
    """
    with _opened(file) as array:
        values = npy.read_array(array, allow_pickle=False)
    of_shape(values.shape, values.dtype)
    return values.reshape(*values.shape[:2], -1)


def encoded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A .npy of values [H, W, C], as DALI reads them."""
    file = BytesIO()
    npy.write_array(file, np.ascontiguousarray(values), version=(1, 0), allow_pickle=False)
    return np.frombuffer(file.getbuffer(), np.uint8)


def _opened(file: BinaryIO) -> Any:
    """The .npy in a file, or the file itself."""
    start = file.read(_LENGTH)
    file.seek(0)
    if format_of_bytes(start) == "NPY":
        return _Same(file)
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(names) != 1 or not names[0].endswith(".npy"):
        raise ValueError(f"{len(names)} arrays in a .npz ({', '.join(names[:5])}), expected one")
    return archive.open(names[0])


class _Same:
    """A file that stays open after the block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, *_: object) -> None: ...


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"an array file of version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    return shape, dtype
