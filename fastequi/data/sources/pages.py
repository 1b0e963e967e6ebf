"""Images that are not a file as it is, with names of their own, as a scan lists them by request.

Page 7 of stack.tif, or frame 7 of DICOM, is stack.tif::0007 (--pages images); the array image of
tile.npz is tile.npz::image, tile.npy of axes [C, H, W] is tile.npy::chw, and both of a .npz
tile.npz::image:chw (--array image --axes chw). The bytes of such an image are a .npy of its values.
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

Page = int | arrays.Chosen

_NAME = re.compile(r"(.*)::(\d{4,})", re.DOTALL)
_ARRAY = re.compile(r"(.*\.(npy|npz))::([^/]+)", re.DOTALL | re.IGNORECASE)
_ARRAYS = re.compile(r".*\.(npy|npz)", re.DOTALL | re.IGNORECASE)


def split(path: str) -> tuple[str, Page | None]:
    """The file and the page or array that a path names; None of a file as it is."""
    file, page = _parts(path)
    return (path, None) if page is not None and os.path.lexists(path) else (file, page)


def file_of(name: str) -> str:
    """A name without its page or array."""
    return _parts(name)[0]


def _parts(name: str) -> tuple[str, Page | None]:
    if "::" not in name:
        return name, None
    if found := _ARRAY.fullmatch(name):
        return found[1], arrays.Chosen.parsed(found[3])
    found = _NAME.fullmatch(name)
    return (name, None) if found is None else (found[1], int(found[2]))


def names_of(name: str, several: int) -> list[str]:
    """Those of a file's pages; its own, if it has one page."""
    return [name] if several == 1 else [f"{name}::{k:04}" for k in range(several)]


def name_of(name: str, chosen: arrays.Chosen) -> str:
    """That of the array that was chosen in a file; its own of a file that is no array's, or whose
    array is taken as it is."""
    found = _ARRAYS.fullmatch(name)
    end = "" if found is None else str(chosen.of(found[1].upper()))
    return f"{name}::{end}" if end else name


def of_member(name: str) -> Page | None:
    """The page or array that the name of a member of a shard says; None of a member as it is."""
    return _parts(name)[1]


def read(file: str, page: Page, span: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The bytes of a page or array, a .npy of its values [H, W, C].

    Args:
        file: a TIFF, DICOM or NumPy's, or a shard that holds it.
        page: from 0; or which array.
        span: its first byte and number of bytes in the shard.

    Raises:
        OSError: there is no such page or array, or it cannot be read.
    """
    with opened_span(file, span) as opened:
        return _encoded(opened, page)


def of_bytes(content: bytes, page: Page) -> NDArray[np.uint8]:
    """The same of a file in memory."""
    return _encoded(io.BytesIO(content), page)


def _encoded(opened: BinaryIO, page: Page) -> NDArray[np.uint8]:
    try:
        if not isinstance(page, int):
            return arrays.taken(opened, page)
        return arrays.encoded(_values(opened, page))
    except OSError:
        raise
    except Exception as error:  # whatever damage makes a library raise
        what = f"page {page}: " if isinstance(page, int) else ""
        raise OSError(f"{what}{error}") from error


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
