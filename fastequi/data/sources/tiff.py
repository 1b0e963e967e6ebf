"""TIFF: what its tags say, and values that Pillow does not know, such as twelve channels.

The tags are read by Pillow; values by tifffile (extra `tiff`) where DALI does not read them:
channels that lie one after the other, floats, and whole numbers of more than 16 bits.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DESCRIPTION = 270
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels[^>]*>")
_OME_SIZE = re.compile(r'Size([CZT])="(\d+)"')
_IMAGEJ_SIZE = re.compile(r"^(channels|images)=(\d+)", re.MULTILINE)
_MOST_PAGES = 65535
ORIENTATION, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA, FORMATS = (
    *(274, 258, 259, 262, 277, 284, 338, 339),
)
_TYPES = {"H": 3, "I": 4}  # of a tag's values: SHORT, LONG
_PREFIX = 8, 16  # bytes of a TIFF's first header, of a BigTIFF's
_WHITE_IS_0, _BLACK_IS_0, _RGB = 0, 1, 2
# of compression: none, LZW, deflate (two numbers), PackBits, which libtiff reads
_BY_LIBTIFF = (1, 5, 8, 32773, 32946)


def is_tiff(start: bytes) -> bool:
    """By the first four bytes."""
    return start[:4] in MAGIC


def tags_of(file: BinaryIO) -> Any:
    """The tags of the first page by number.

    Raises:
        Exception: whatever damaged ones make Pillow raise.
    """
    tags = _directory(file)
    file.seek(tags.next)
    with warnings.catch_warnings():  # of damage that is told where it matters
        warnings.simplefilter("ignore")
        tags.load(file)
    return tags


def _directory(file: BinaryIO) -> Any:
    """An empty one of this file's kind, which knows where the first page's is."""
    file.seek(0)
    start = file.read(_PREFIX[0])
    if start[:4] == b"MM\0+":
        raise ValueError("a BigTIFF of big-endian numbers, which Pillow does not read")
    if start[:4] == b"II+\0":
        start += file.read(_PREFIX[1] - _PREFIX[0])
    return TiffImagePlugin.ImageFileDirectory_v2(start)


def is_for_dali(tags: Any) -> bool:
    """Whether DALI reads the values as they are: 8 or 16 bits, all channels of a pixel together."""
    bits, formats = set(tags.get(BITS, (1,))), set(tags.get(FORMATS, (1,)))
    return (
        bits in ({8}, {16})
        and formats <= {1, 4}
        and (tags.get(PLANAR, 1) == 1 or tags.get(SAMPLES, 1) == 1)
        and tags.get(PHOTOMETRIC, 1) in (_BLACK_IS_0, _RGB)
        and tags.get(COMPRESSION, 1) in _BY_LIBTIFF
        and tags.get(ORIENTATION, 1) == 1
        and _says_extra(tags)  # or libtiff warns of every image
    )


def is_odd(tags: Any) -> bool:
    """Whether DALI makes RGB of it that is wrong: of two channels, and of 16 bits where the planes
    lie one after the other or white is 0."""
    deep, samples = set(tags.get(BITS, (1,))) == {16}, tags.get(SAMPLES, 1)
    planar, white = tags.get(PLANAR, 1) == 2, tags.get(PHOTOMETRIC, 1) == _WHITE_IS_0
    whole = set(tags.get(FORMATS, (1,))) <= {1, 4}
    return whole and (samples == 2 or (deep and (white or (planar and samples > 1))))


def is_inverted(tags: Any) -> bool:
    """Whether 0 is white in whole numbers of 8 bits or more, whose values runs invert."""
    whole = set(tags.get(FORMATS, (1,))) <= {1, 4}
    return whole and tags.get(BITS, (1,))[0] >= 8 and tags.get(PHOTOMETRIC, 1) == _WHITE_IS_0


def _says_extra(tags: Any) -> bool:
    """Whether the channels beyond grey or RGB are said to be extra ones."""
    colours = 3 if tags.get(PHOTOMETRIC, 1) == _RGB else 1
    return bool(tags.get(SAMPLES, 1) == colours + len(tags.get(EXTRA, ())))


def channel_pages(file: BinaryIO, tags: Any, by_request: bool = False) -> int:
    """How many pages are channels of one image: those that an OME-TIFF or ImageJ says are, or by
    request all; else the first alone.

    Args:
        file: the TIFF.
        tags: of its first page.
        by_request: whether the pages of other files are channels, too.
    """
    said = str(tags.get(_DESCRIPTION, ""))
    if "<OME" in said:
        first = _OME_PIXELS.search(said)  # of the first image of several
        sizes = {name: int(n) for name, n in _OME_SIZE.findall(first[0] if first else "")}
        others = sizes.get("Z", 1) * sizes.get("T", 1)
        return sizes.get("C", 1) // int(tags.get(SAMPLES, 1)) if others == 1 else 1
    if said.startswith("ImageJ="):
        sizes = {name: int(size) for name, size in _IMAGEJ_SIZE.findall(said)}
        of_channels = sizes.get("channels", 1)
        return of_channels if sizes.get("images", 1) == of_channels else 1
    return _count_pages(file, tags) if by_request else 1


def _count_pages(file: BinaryIO, tags: Any) -> int:
    """Pages of the first one's size and number of samples.

    Raises:
        ValueError: they differ.
    """
    number = 1
    for number, page in enumerate(_others(file, tags), 2):
        if any(page.get(tag) != tags.get(tag) for tag in (256, 257, SAMPLES, BITS, FORMATS)):
            raise ValueError(f"page {number} is unlike the first, which channels are not")
    return number


def count(file: BinaryIO) -> int:
    """How many pages it has, that are not channels of one image."""
    tags = tags_of(file)
    return 1 if channel_pages(file, tags) > 1 else 1 + sum(1 for _ in _others(file, tags))


def _others(file: BinaryIO, first: Any) -> Iterator[Any]:
    """The tags of the pages behind the first; of a damaged chain that never ends, some."""
    at = first.next
    for _ in range(_MOST_PAGES):
        if not at:
            return
        page = _directory(file)
        file.seek(at)
        page.load(file)
        yield page
        at = page.next


def decoded(file: BinaryIO, channels: int | None = None, page: int = 0) -> NDArray[Any]:
    """The values [H, W, C] of a page, upright, in their own type; 0 is black.

    Args:
        file: the TIFF.
        channels: of the image, where this and the following pages hold them.
        page: from 0.

    Raises:
        ImportError: tifffile is not installed.
        Exception: whatever damage makes it raise.
    """
    try:
        import tifffile
    except Exception as error:  # a broken install raises more than ImportError
        raise ImportError(
            f"this TIFF needs tifffile: pip install 'fastequi[tiff]' (importing it: {error})"
        ) from error
    with tifffile.TiffFile(file) as opened:
        if page >= len(opened.pages):
            raise ValueError(f"{len(opened.pages)} pages in a TIFF, expected page {page}")
        first = opened.pages[page]
        samples = int(first.samplesperpixel)
        several = 1 if channels is None else max(channels // samples, 1)
        last = min(page + several, len(opened.pages))
        pages = [opened.pages[k].asarray() for k in range(page, last)]
        orientation = first.tags[ORIENTATION].value if ORIENTATION in first.tags else 1
        planar = samples > 1 and first.planarconfig == 2
        inverted = first.photometric == _WHITE_IS_0 and first.dtype.kind == "u"
    if samples == 1:
        values = np.stack(pages, -1)
    else:
        values = np.concatenate([np.moveaxis(p, 0, -1) if planar else p for p in pages], -1)
    if inverted:
        values = np.iinfo(values.dtype).max - values
    return turned(values, int(orientation))


def encoded(values: NDArray[Any]) -> NDArray[np.uint8]:
    """An uncompressed TIFF of values [H, W, C] of one of `kinds.DEPTHS`, which DALI reads.

    Args:
        values: of at most 32 channels, more of which DALI does not read.
    """
    height, width, channels = values.shape
    content = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    rgb = channels == 3
    each = {  # of a tag: the type of its values, and those
        256: ("I", [width]),
        257: ("I", [height]),
        BITS: ("H", [8 * values.dtype.itemsize] * channels),
        COMPRESSION: ("H", [1]),
        PHOTOMETRIC: ("H", [_RGB if rgb else _BLACK_IS_0]),
        273: ("I", [0]),  # where the values are: below
        SAMPLES: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [content.nbytes]),
        PLANAR: ("H", [1]),
        EXTRA: ("H", [0] * (channels - (3 if rgb else 1))),
        FORMATS: ("H", [3 if values.dtype.kind == "f" else 1] * channels),
    }
    each = {tag: pair for tag, pair in each.items() if pair[1]}
    behind = 8 + 2 + 12 * len(each) + 4  # the header, the tags' number, they, and no next page
    long = sum(struct.calcsize(f"{len(v)}{kind}") for kind, v in each.values() if len(v) > 2)
    each[273] = "I", [behind + long]
    tags, beyond = struct.pack("<H", len(each)), b""
    for tag, (kind, numbers) in each.items():
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:  # longer than a tag's place
            place, beyond = struct.pack("<I", behind + len(beyond)), beyond + packed
            packed = place
        tags += struct.pack("<HHI", tag, _TYPES[kind], len(numbers)) + packed.ljust(4, b"\0")
    head = b"II*\0\x08\0\0\0" + tags + bytes(4) + beyond
    return np.concatenate([np.frombuffer(head, np.uint8), content.reshape(-1).view(np.uint8)])


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Values [H, W, C] upright, by EXIF's number of how they lie; unchanged by a wrong one."""
    if 5 <= orientation <= 8:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
