"""One encoded image: where its bytes are, and what its header says before anything is decoded.

The bytes are a whole file, or a span of one (a member of a tar shard). Pillow reads the header: the
size is needed before decoding, and an image that claims more pixels than Pillow's own limit is
refused here, so that nothing ever allocates memory for it.
"""

from __future__ import annotations

import os
import stat
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MAX_BYTES = 1 << 30  # encoded; no image below Pillow's limit of 179 million pixels needs more
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM")  # that DALI decodes
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width

Span = tuple[int, int]  # first byte and number of bytes within a file


class Header(NamedTuple):
    """Encoded bytes, upright size in pixels and Pillow's name of the format."""

    bytes: int
    height: int
    width: int
    format: str


def is_image_name(name: str) -> bool:
    """Whether a file's name, without folders, is that of an image that is not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def read(path: str, span: Span | None = None) -> NDArray[np.uint8]:
    """The encoded bytes: of a file, or of a span of one.

    Raises:
        OSError: it cannot be opened or read, is no regular file, has no byte or more than 2^30, or
            ends before the span does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer never waits
    try:
        told = os.fstat(descriptor)
        if not stat.S_ISREG(told.st_mode):
            raise OSError("not a regular file")
        first, count = span or (0, told.st_size)
        if count == 0:
            raise OSError("empty file")
        if count > MAX_BYTES:
            raise OSError(f"{count} bytes, more than {MAX_BYTES}")
        if first + count > told.st_size:
            raise OSError(f"{os.path.basename(path)} ends inside it, after {told.st_size} bytes")
        values = np.empty(count, np.uint8)
        done = 0
        while done < count:  # one call gives 2 GiB at most, and less where a signal comes
            got = os.preadv(descriptor, [values[done:].data], first + done)
            if got == 0:
                raise OSError(f"{os.path.basename(path)} ended while it was read")
            done += got
        return values
    finally:
        os.close(descriptor)


def header(image: str | NDArray[np.uint8]) -> Header | str:
    """From a file's path or encoded bytes; or, in words, why there is none.

    Call `Image.init()` before several threads do this, and ignore `DecompressionBombWarning`.
    """
    file: str | BytesIO
    try:
        if isinstance(image, str):
            told = os.stat(image)
            if not stat.S_ISREG(told.st_mode):
                return "not a regular file"
            if told.st_size == 0:
                return "empty file"
            count, file = told.st_size, image
        else:
            count, file = len(image), BytesIO(image.data)
        with Image.open(file, formats=_FORMATS) as opened:
            (width, height), exif = opened.size, opened.info.get("exif")
            kind = opened.format or ""
    except Image.DecompressionBombError as error:
        return f"refused undecoded: {error}"
    except Exception as error:  # whatever a damaged header makes Pillow raise
        return why(error, image if isinstance(image, str) else "")
    if exif and _turned(exif):
        height, width = width, height
    return Header(count, height, width, kind)


def why(error: Exception, path: str = "") -> str:
    """An error in a few words, without the path it repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if " object at 0x" in text:  # of the bytes, which have no name
        return "no image in a format that is read"
    return text.replace(f" {path!r}", "") or type(error).__name__


def _turned(exif: bytes) -> bool:
    """Whether EXIF turns the image by 90 or 270 degrees; damaged EXIF does not."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(_ORIENTATION, 1)) in (5, 6, 7, 8)
    except Exception:
        return False
