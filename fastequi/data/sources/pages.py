"""Several images in one file: pages of a TIFF, frames of DICOM, as images with their own names.

Page 7 of stack.tif is stack.tif::0007, as a scan lists it by request (--pages images). Its bytes
are a .npy of its values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import arrays, dicom, tiff

_NAME = re.compile(r"(.*)::(\d{4,})", re.DOTALL)
_START = 132  # bytes that tell a format


def split(path: str) -> tuple[str, int | None]:
    """The file and the page that a path names; None of a file as it is."""
    found = _NAME.fullmatch(path)
    if found is None or os.path.lexists(path):
        return path, None
    return found[1], int(found[2])


def file_of(name: str) -> str:
    """A name without its page."""
    found = _NAME.fullmatch(name)
    return name if found is None else found[1]


def expanded(root: str, names: Iterable[str]) -> Iterator[str]:
    """Names of files below a root, those of several pages replaced by the names of their pages."""
    for name in names:
        count = _count(os.path.join(root, name))
        if count == 1:
            yield name
        else:
            yield from (f"{name}::{k:04}" for k in range(count))


def read(file: str, page: int) -> NDArray[np.uint8]:
    """The bytes of a page, a .npy of its values [H, W, C].

    Raises:
        OSError: there is no such page, or it cannot be read.
    """
    try:
        return arrays.encoded(_values(file, page))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes a library raise
        raise OSError(f"page {page}: {error}") from error


def _values(file: str, page: int) -> NDArray[Any]:
    with open(file, "rb") as opened:
        start = opened.read(_START)
        opened.seek(0)
        if tiff.is_tiff(start):
            return tiff.decoded(opened, page=page)
        if dicom.is_dicom(start):
            return dicom.decoded(opened, frame=page)
    raise ValueError("expected a TIFF or DICOM")


def _count(file: str) -> int:
    """Pages or frames; 1 of all other files, and of those that cannot be read."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(_START)
            opened.seek(0)
            if tiff.is_tiff(start):
                return tiff.count(opened)
            return dicom.count(opened) if dicom.is_dicom(start) else 1
    except Exception:  # its header will say why
        return 1
