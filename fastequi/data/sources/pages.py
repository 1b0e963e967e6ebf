"""Parts of files that are images (`fastequi.data.sources.parts`): pages of a TIFF, frames of DICOM,
arrays of NumPy's, pixels without data filled in. The bytes of such an image are a .npy of its
values."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import arrays, dicom, nodata, tiff, tiff_stacks, tiff_tags
from fastequi.data.sources.member_file import opened_span
from fastequi.data.sources.parts import FILE, FilePart
from fastequi.data.sources.trouble import expect_read, raise_trouble

_Packed = tuple[NDArray[np.uint8], NDArray[Any]]  # a .npy, and the values within it


def read(file: str, part: FilePart, span: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The bytes of an image, a .npy of its values [H, W, C].

    They are the file's own where nothing is filled in: of a TIFF with a palette, YCbCr, CMYK,
    L*a*b* or fewer than 8 bits, and of formats that have no word for it.

    Args:
        file: a TIFF, DICOM or NumPy's, or a shard that holds it.
        part: what of it.
        span: its first byte and number of bytes in the shard.

    Raises:
        OSError: there is no such page or array, no pixel has data, or it cannot be read.
    """
    with opened_span(file, span) as opened:
        return _encoded(opened, part)


def of_bytes(content: bytes, part: FilePart) -> NDArray[np.uint8]:
    """The same of a file in memory."""
    return _encoded(io.BytesIO(content), part)


def _encoded(opened: BinaryIO, part: FilePart) -> NDArray[np.uint8]:
    try:
        start = opened.read(dicom.START)
        opened.seek(0)
        if dicom.is_dicom(start) and part.page is not None:  # it may begin as a TIFF does
            return arrays.encoded(dicom.decoded(opened, frame=part.page))
        if tiff_tags.is_tiff(start):
            return _of_tiff(opened, part)
        if part.page is not None:
            raise ValueError("expected a TIFF or DICOM")
        if part == FilePart(nodata=part.nodata) and not arrays.format_of_bytes(start):
            return np.frombuffer(opened.read(), np.uint8)  # of another format than its name says
        content, values = arrays.taken(opened, part.array, part.planes)
        if part.nodata:
            nodata.fill(values, nodata.number_of(None if part.nodata == FILE else part.nodata))
        return content
    except (MemoryError, OSError):
        expect_read(opened)
        raise
    except Exception as error:  # whatever damage makes a library raise
        expect_read(opened)
        what = f"page {part.page}: " if part.page is not None else ""
        raise OSError(f"{what}{error}") from error


def _of_tiff(opened: BinaryIO, part: FilePart) -> NDArray[np.uint8]:
    if part.array or part.planes:
        raise ValueError(f"expected {'a .npz' if part.array else '.npy or .npz'} by its bytes")
    tags = tiff.tags_of_image(opened, part.page or 0)
    opened.seek(0)
    if part.page is None and not tiff_tags.is_filled(tags):
        return np.frombuffer(opened.read(), np.uint8)
    content, values = arrays.packed(tiff.decoded(opened, page=part.page or 0))
    if part.nodata and tiff_tags.is_filled(tags):
        said = tags.get(tiff_tags.NODATA) if part.nodata == FILE else part.nodata
        number = nodata.number_of(said)
        if number is not None and tiff_tags.is_inverted(tags):
            number = int(np.iinfo(values.dtype).max) - number
        nodata.fill(values, number)
    return content


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
    except OSError as error:
        raise_trouble(error)
        return 1  # reading it will say why


def count_in(opened: BinaryIO) -> int:
    """The same of a file that is open; what reading it raises of a network is raised."""
    try:
        start = opened.read(dicom.START)
        opened.seek(0)
        if dicom.is_dicom(start):
            return dicom.count(opened)
        return tiff_stacks.count(opened) if tiff_tags.is_tiff(start) else 1
    except tiff_tags.CutOff:  # a header, of the first page, does not know of them
        expect_read(opened)
        raise
    except Exception as error:
        raise_trouble(error)
        expect_read(opened)
        return 1  # its header will say why
