"""One encoded image: where its bytes are, and what its header says before anything is decoded.

The bytes are a whole file, or a span of one (a member of a tar shard). Pillow reads the header, but
for NumPy's files and DICOM: the size is needed before decoding, and an image that claims more
pixels than Pillow's own limit is refused here, so that nothing ever allocates memory for it.

A file is an image if its name ends with one of EXTENSIONS, in any case; in shards too. Where there
is none in a set, those that end with one of ARRAYS are: elsewhere they are likely to be labels or
features. With them is DICOM without an extension, in folders and lists.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from fastequi.data.sources import arrays, dicom, kinds, pages, tiff, tiff_stacks, tiff_tags
from fastequi.data.sources.extensions import OF_ARRAYS, OF_IMAGES
from fastequi.data.sources.kinds import DICOM_FRAME, FILLED_TIFF, TIFF_PAGE, Kind
from fastequi.data.sources.limits import MAX_BYTES, expect_pixels
from fastequi.data.sources.member_file import opened_span
from fastequi.data.sources.parts import WHOLE, FilePart, split
from fastequi.data.sources.quiet_pillow import quiet_pillow
from fastequi.data.sources.trouble import expect_read, patiently, raise_trouble


def has_avif() -> bool:
    """Whether this Pillow decodes AVIF; since 11.3 its wheels do."""
    try:
        from PIL import AvifImagePlugin

        return bool(AvifImagePlugin.SUPPORTED)
    except Exception:  # an older one has no such module
        return False


_EXTENSIONS = {form: ends for form, ends in OF_IMAGES.items() if form != "AVIF" or has_avif()}
FORMATS = tuple(_EXTENSIONS)  # that DALI or Pillow decodes
ARRAYS = tuple(f".{name}" for names in OF_ARRAYS.values() for name in names)
EXTENSIONS = tuple(f".{name}" for names in _EXTENSIONS.values() for name in names)
# instead of Pillow's name, or behind it, where values are inverted, or some are none
INVERTED_TIFF, INVERTED_DICOM = "MINISWHITE TIFF", "MONOCHROME1 DICOM"
NO_DATA = "GDAL_NODATA"
# behind NPY, what was read as one; behind others, that pixels without data are as they were
NPZ_ARRAY, NOT_FILLED = "NPZ array", "not filled"
OF_TYPE = "of "  # before the type of values that are read as another one
_RGB, _NO_RGB = "RGB", "no RGB"  # of what is read as NPY, which does not say it
_MAX_KINDS = 8  # kinds of files that are named

Span = tuple[int, int]  # first byte and number of bytes within a file


class Header(NamedTuple):
    """Encoded bytes, upright size in pixels, Pillow's name of the format (or NPY, NPZ, DICOM), with
    marks of it behind commas, and what its values are (`fastequi.data.sources.kinds`)."""

    bytes: int
    height: int
    width: int
    format: str
    kind: int = 0


def is_marked(form: str, *marks: str) -> bool:
    """Whether a header's format is one of these, or has one of them for a mark."""
    return not set(form.split(", ")).isdisjoint(marks)


def unmarked(form: str) -> str:
    """A header's format without marks."""
    return form.partition(", ")[0]


def is_image_name(name: str) -> bool:
    """Whether a file's name, without folders, is that of an image that is not hidden."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def is_array_name(name: str) -> bool:
    """Whether a file's name is that of an image where there are no others."""
    return os.path.splitext(name)[1].lower() in ARRAYS and not name.startswith(".")


def format_of(name: str) -> str:
    """Pillow's name of the format that a file's extension stands for."""
    extension = os.path.splitext(name)[1].lower()[1:]
    every = (_EXTENSIONS | OF_ARRAYS).items()
    return next((kind for kind, names in every if extension in names), "")


def kind_of(name: str) -> str:
    """The kind of a file that is passed over: hidden, or its extension."""
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without extension"


def counted(kinds: Mapping[str, int]) -> str:
    """Counts by kind as a short text, the most frequent first."""
    most = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    words = [f"{count} × {kind}" for kind, count in most[:_MAX_KINDS]]
    if rest := sum(count for _, count in most[_MAX_KINDS:]):
        words.append(f"{rest} of {len(most) - _MAX_KINDS} other kinds")
    return ", ".join(words)


def read(path: str, span: Span | None = None, part: FilePart = WHOLE) -> NDArray[np.uint8]:
    """The encoded bytes: of a file, or of a span of one; or the .npy of a part of it.

    Raises:
        OSError: it cannot be opened or read, is no regular file, has no byte or more than 2^30, or
            ends before the span does.
    """
    file = path
    if span is None and part == WHOLE:
        file, part = split(path)
    if part != WHOLE:
        return pages.read(file, part, span)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer never waits
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        first, count = span or (0, status.st_size)
        if count == 0:
            raise OSError("empty file")
        if count > MAX_BYTES:
            raise OSError(f"{count} bytes, more than {MAX_BYTES}")
        if first + count > status.st_size:
            raise OSError(f"{os.path.basename(path)} ends inside it, after {status.st_size} bytes")
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


@quiet_pillow()
def header(image: str | NDArray[np.uint8], pages_are_channels: bool = False) -> Header | str:
    """The header of a file or of encoded bytes; or, as text, why it cannot be read.

    Of a TIFF with several pages the first is the image, with those that an OME-TIFF or ImageJ says
    are its channels; or all of them are channels, by request.

    Call `Image.init()` before several threads do this.

    Raises:
        MemoryError, OSError: a fault that says nothing of the image; see `trouble`.
    """
    try:
        if isinstance(image, str):
            return patiently(_header_of_file, image, pages_are_channels)
        return patiently(_header, BytesIO(image.data), len(image), pages_are_channels)
    except Image.DecompressionBombError as error:
        return f"refused undecoded: {error}"
    except Exception as error:  # whatever a damaged header makes Pillow raise
        path = image if isinstance(image, str) else ""
        raise_trouble(error, path)
        return why(error, path)


def _header_of_file(path: str, pages_are_channels: bool) -> Header | str:
    file, part = split(path)
    status = os.stat(file)
    if part != WHOLE:
        return _header_of_part(file, part)._replace(bytes=status.st_size)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size == 0:
        return "empty file"
    with open(path, "rb") as opened:
        return _header(opened, status.st_size, pages_are_channels)


def _header_of_part(file: str, part: FilePart) -> Header:
    """Of what a part is read as; of arrays without reading their values."""
    form = format_of(file)
    if form in ("NPY", "NPZ") and part.page is None:
        with opened_span(file, None) as opened:
            height, width, kind, own = arrays.shape_of(opened, part.array, part.planes)
        return _of_array(0, height, width, kind, _typed("NPY", kind, own.name))
    content = pages.read(file, part)
    with opened_span(file, None) as opened:
        marks = marks_of(opened, part)
    return marked(_header(BytesIO(content.data), len(content), False), marks)


def marked(found: Header, marks: Sequence[str]) -> Header:
    """A header with what :func:`marks_of` says."""
    own = [mark for mark in marks if mark not in (_RGB, _NO_RGB)]
    kind, code = Kind.of(found.kind), found.kind
    if kind is not None and _RGB in marks:
        code = kind._replace(rgb=True).code | code & kinds.NO_RGB
    if _NO_RGB in marks:
        code |= kinds.NO_RGB
    return found._replace(format=", ".join([found.format, *own]), kind=code)


def _typed(form: str, kind: Kind | None, own: str) -> str:
    """A format with a mark of the values' own type, where another one is read as float32."""
    read = kind is not None and kind.depth == "float32" and own != "float32"
    return f"{form}, {OF_TYPE}{own}" if read else form


def _of_array(count: int, height: int, width: int, kind: kinds.Kind, form: str) -> Header:
    of_rgb = kind.channels <= 4 and kind.depth != "float32"
    code = kind.code if of_rgb else kind.code | kinds.NO_RGB
    expect_pixels(height, width, kind.channels)
    return Header(count, height, width, form, code)


def _header(file: BinaryIO, count: int, pages_are_channels: bool) -> Header:
    file.seek(0)
    start = file.read(dicom.START)
    file.seek(0)
    form = "DICOM" if dicom.is_dicom(start) else arrays.format_of_bytes(start)
    if form == "DICOM":
        height, width, kind = dicom.shape_of(file)
        form = INVERTED_DICOM if dicom.is_inverted(file) else form
        return _of_array(count, height, width, kind, form)
    if form:
        height, width, kind, own = arrays.shape_of(file)
        return _of_array(count, height, width, kind, _typed(form, kind, own.name))
    if tiff_tags.is_tiff(start):
        return _tiff(file, count, pages_are_channels)
    with _opened(file) as opened:
        (width, height), exif = opened.size, opened.info.get("exif")
        found, form = kinds.of_opened(opened), opened.format or ""
    if orientation_of(exif) in (5, 6, 7, 8):
        height, width = width, height
    return Header(count, height, width, form, kinds.DEEPER if found is None else found.code)


def _opened(file: BinaryIO) -> Image.Image:
    """By Pillow, which gives no reason for JPEG 2000 of more channels than it reads."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        siz = kinds.siz_of(file.read(kinds.SIZ_WITHIN))
        if siz is None or siz[0] in (1, 2, 3, 4):
            raise
        raise ValueError(f"a JPEG 2000 of {siz[0]} channels, of which 1 to 4 are read") from None


def _tiff(file: BinaryIO, count: int, pages_are_channels: bool) -> Header:
    """Of a TIFF, by its tags: Pillow opens none of many channels."""
    tags = tiff_tags.tags_of(file)
    if 256 not in tags or 257 not in tags:
        raise ValueError("a damaged TIFF: its tags say no size")
    width, height = int(tags[256]), int(tags[257])
    tiff_tags.expect_tiles(tags)
    if tags.get(tiff_tags.ORIENTATION, 1) in (5, 6, 7, 8):
        height, width = width, height
    kind = kinds.of_tags(tags)
    several, form = tiff_stacks.first_image(file, tags, pages_are_channels and kind is not None)
    if kind is None:
        several = 1
    elif several > 1:
        kind = kinds.Kind(several * kind.channels, kind.depth)
    marks = tiff_marks(tags)
    form = ", ".join(marks if form == "TIFF" and INVERTED_TIFF in marks else [form, *marks])
    form = _typed(form, kind, kinds.type_of_tags(tags))
    # with more samples Pillow logs an error of its own for every file
    samples = tags.get(tiff_tags.SAMPLES, 1)
    few = samples <= TiffImagePlugin.MAX_SAMPLESPERPIXEL
    by_pillow = several == 1 and few and _opens(file, samples)
    if kind is None and not by_pillow:
        raise ValueError(f"values of {' '.join(map(str, tags.get(tiff_tags.BITS, ())))} bits")
    unknown = kinds.DEEPER if max(tags.get(tiff_tags.BITS, (1,))) > 8 else 0
    code = (unknown if kind is None else kind.code) | (0 if by_pillow else kinds.NO_RGB)
    expect_pixels(height, width, 1 if kind is None else kind.channels)
    return Header(count, height, width, form, code)


def tiff_marks(tags: Any) -> list[str]:
    """Of a page's format."""
    marks = [INVERTED_TIFF] if tiff_tags.is_inverted(tags) else []
    return [*marks, NO_DATA] if tiff_tags.NODATA in tags else marks


def marks_of(file: BinaryIO, part: FilePart) -> list[str]:
    """Of the format of what a part of a TIFF or DICOM is read as."""
    start = file.read(dicom.START)
    file.seek(0)
    if dicom.is_dicom(start):
        return [DICOM_FRAME] + [INVERTED_DICOM] * dicom.is_inverted(file)
    if not tiff_tags.is_tiff(start):
        return [NOT_FILLED]
    tags = tiff.tags_of_image(file, part.page or 0)
    if part.page is None and not tiff_tags.is_filled(tags):
        return [NOT_FILLED]  # its own header says the rest
    kind = kinds.of_tags(tags)
    marks = [_RGB] if kind is not None and kind.rgb else []
    if part.page is None:
        several = tiff_stacks.first_image(file, tags)[1]
        marks += [FILLED_TIFF] + [several] * (several != "TIFF")
        if _tiff(file, 0, False).kind & kinds.NO_RGB:
            marks.append(_NO_RGB)
    else:
        marks += [TIFF_PAGE]
    return [*marks, *(m for m in tiff_marks(tags) if not (part.nodata and m == NO_DATA))]


def _opens(file: BinaryIO, samples: int) -> bool:
    """Whether Pillow knows the kind of a TIFF, of which RGB can then be made. Of compressed planes,
    however many, it opens one as a grey image."""
    file.seek(0)
    try:
        with Image.open(file, formats=("TIFF",)) as opened:
            opens = samples <= 2 or len(opened.getbands()) > 1
    except Exception as error:
        raise_trouble(error)
        opens = False
    expect_read(file)
    return opens


def why(error: Exception, path: str = "") -> str:
    """An error's message in one line, without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if " object at 0x" in text or "<_io." in text:  # of the opened file
        return "no image in a format that is read"
    return text.replace(f" {path!r}", "") or type(error).__name__


def orientation_of(exif: bytes | None) -> int:
    """EXIF's number of how an image lies; 1, upright, without one and of damaged EXIF."""
    try:
        tags = Image.Exif()
        tags.load(exif or b"")
        return int(tags.get(tiff_tags.ORIENTATION, 1))
    except Exception:
        return 1
