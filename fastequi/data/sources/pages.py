"""Several images in one file: pages of a TIFF, frames of DICOM, as images with their own names.

Page 7 of stack.tif is stack.tif::0007, as a scan lists it by request (--pages images). Its bytes
are a .npy of its values.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import arrays, dicom, tiff, tiff_stacks, tiff_tags
from fastequi.data.sources.member_file import opened_span
from fastequi.data.sources.remote import Unreadable

_NAME = re.compile(r"(.*)::(\d{4,})", re.DOTALL)


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


def names_of(name: str, several: int) -> list[str]:
    """Those of a file's pages; its own, if it has one page."""
    return [name] if several == 1 else [f"{name}::{k:04}" for k in range(several)]


def of_member(name: str) -> int | None:
    """The page that the name of a member of a shard says; None of a member as it is."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[2])


def read(file: str, page: int, span: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The bytes of a page, a .npy of its values [H, W, C].

    Args:
        file: a TIFF or DICOM, or a shard that holds it.
        page: from 0.
        span: its first byte and number of bytes in the shard.

    Raises:
        OSError: there is no such page, or it cannot be read.
    """
    with opened_span(file, span) as opened:
        return _encoded(opened, page)


def of_bytes(content: bytes, page: int) -> NDArray[np.uint8]:
    """The same of a TIFF or DICOM in memory."""
    return _encoded(io.BytesIO(content), page)


def _encoded(opened: BinaryIO, page: int) -> NDArray[np.uint8]:
    try:
        return arrays.encoded(_values(opened, page))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes a library raise
        raise OSError(f"page {page}: {error}") from error


def _values(opened: BinaryIO, page: int) -> NDArray[Any]:
    start = opened.read(dicom.START)
    opened.seek(0)
    if tiff_tags.is_tiff(start):
        return tiff.decoded(opened, page=page)
    if dicom.is_dicom(start):
        return dicom.decoded(opened, frame=page)
    raise ValueError("expected a TIFF or DICOM")


def count(file: str, span: tuple[int, int] | None = None) -> int:
    """Pages or frames; 1 of all other files, and of those that cannot be read.

    Args:
        file, span: as in :func:`read`.

    Raises:
        tiff_tags.CutOff: a TIFF ends before its last page.
    """
    try:
        with opened_span(file, span) as opened:
            return count_in(opened)
    except OSError:  # reading it will say why
        return 1


def count_in(opened: BinaryIO) -> int:
    """The same of a file that is open; what reading it raises of a network is raised."""
    try:
        start = opened.read(dicom.START)
        opened.seek(0)
        if tiff_tags.is_tiff(start):
            return tiff_stacks.count(opened)
        return dicom.count(opened) if dicom.is_dicom(start) else 1
    except (tiff_tags.CutOff, Unreadable):  # a header, of the first page, does not know of them
        raise
    except Exception:  # its header will say why
        return 1
