"""TIFF: what its tags say, and values that Pillow does not know, such as twelve channels.

The tags are read by Pillow; values by tifffile (extra `tiff`) where DALI does not read them:
channels that lie one after the other, floats, and whole numbers of more than 16 bits.
"""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

PAGES = "TIFF of several pages"  # instead of Pillow's name, where the first is the image
PARTIAL = "OME-TIFF without all its planes"  # the same, where they are in other files, say
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DESCRIPTION = 270
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels[^<>]*>")
_OME_SIZE = re.compile(r'Size([CZT])="(\d+)"')
_OME_ORDER = re.compile(r'DimensionOrder="(XY(?:CZT|CTZ|ZCT|ZTC|TCZ|TZC))"')
_OME, _IMAGEJ = "<OME", "ImageJ="
_IMAGEJ_SIZE = re.compile(r"^(channels|images)=(\d+)", re.MULTILINE)
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
    return _load(file, _directory(file).next)


def _load(file: BinaryIO, place: int) -> Any:
    """The tags of the page whose directory is there."""
    tags = _directory(file)
    file.seek(place)
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


class CutOff(ValueError):
    """A file that ends before what it says."""


class Stack(NamedTuple):
    """How the pages of an OME-TIFF or ImageJ's file are images: planes of depth and time.

    Attributes:
        channels: pages of an image.
        images: of the file.
        apart: pages from a channel to the next.
        whole: whether the file holds all that it says; else each page is an image.
    """

    channels: int
    images: int
    apart: int
    whole: bool = True

    def pages(self, image: int) -> list[int]:
        """Those of an image, a channel each; all from 0."""
        before, within = divmod(image, self.apart)
        first = before * self.apart * self.channels + within
        return [first + c * self.apart for c in range(self.channels)]


def stack_of(file: BinaryIO, tags: Any) -> Stack | None:
    """What an OME-TIFF or ImageJ says of its pages; None of other files.

    Args:
        file: the TIFF.
        tags: of its first page.

    Raises:
        CutOff: its pages lie beyond the end of the file.
        ValueError: ImageJ's, whose other images have no pages.
    """
    said, order = _said(tags), "XYCZT"  # the fastest first; ImageJ has no other
    if not said:
        return None
    if _OME in said:
        found = _OME_PIXELS.search(said)
        first = found[0] if found else ""  # of the first image of several
        sizes = {name: int(n) for name, n in _OME_SIZE.findall(first)}
        channels = sizes.get("C", 1) // int(tags.get(SAMPLES, 1))
        if written := _OME_ORDER.search(first):
            order = written[1]
    else:
        lines = {name: int(size) for name, size in _IMAGEJ_SIZE.findall(said)}
        channels, total = lines.get("channels", 1), lines.get("images", 1)
        if channels < 1 or total % channels:
            return None
        sizes = {"Z": total // channels}
    images = sizes.get("Z", 1) * sizes.get("T", 1)
    if channels < 1 or images < 1 or channels == images == 1:
        return None
    places, damage = _chain(file)
    number, needed = len(places), channels * images
    if number >= channels and (images == 1 or number == needed):
        apart = math.prod(sizes.get(name, 1) for name in order[2 : order.index("C")])
        return Stack(channels, images, apart)
    if damage:
        raise CutOff(damage)
    if _OME not in said and number < needed:
        raise ValueError(f"ImageJ's file of {needed} images has {number} pages, expected as many")
    return Stack(1, number, 1, whole=False)  # in other files too, or others' pages in this one


def first_image(file: BinaryIO, tags: Any, by_request: bool = False) -> tuple[int, str]:
    """How many pages the first image has; and "TIFF", or PAGES or PARTIAL where it is not all.

    Several are the channels that an OME-TIFF or ImageJ says they are, or all pages by request.

    Args:
        file: the TIFF.
        tags: of its first page.
        by_request: whether the pages of files that say nothing are channels.

    Raises:
        ValueError: pages that are channels differ, or lie beyond the end of the file.
    """
    _expect_description(file, tags)
    if stack := stack_of(file, tags):
        places, _ = _chain(file)
        _expect_alike(file, tags, [places[k] for k in stack.pages(0)])
        if not stack.whole:
            return 1, PARTIAL
        return stack.channels, "TIFF" if len(places) == stack.channels else PAGES
    if not by_request or _said(tags):
        return 1, PAGES if tags.next else "TIFF"
    places = _places(file)
    _expect_alike(file, tags, places)
    return len(places), "TIFF"


def _said(tags: Any) -> str:
    """The description of an OME-TIFF or ImageJ's file; "" of others."""
    text = str(tags.get(_DESCRIPTION, ""))
    return text if _OME in text or text.startswith(_IMAGEJ) else ""


def _expect_alike(file: BinaryIO, first: Any, places: list[int]) -> None:
    """That pages are of the first one's size and number of samples, if they are channels.

    Raises:
        ValueError: they differ.
    """
    for number, place in enumerate(places[1:], 2):
        page = _load(file, place)
        if any(page.get(tag) != first.get(tag) for tag in (256, 257, SAMPLES, BITS, FORMATS)):
            raise ValueError(f"channel {number}'s page is unlike the first, which channels are not")


def count(file: BinaryIO) -> int:
    """How many images its pages are."""
    stack = stack_of(file, tags_of(file))
    return stack.images if stack else len(_places(file))


def _places(file: BinaryIO) -> list[int]:
    """Where the directories of all pages begin.

    Raises:
        CutOff: one lies beyond the end of the file.
        ValueError: there is none.
    """
    places, damage = _chain(file)
    if damage:
        raise CutOff(damage)
    if not places:
        raise ValueError("a damaged TIFF: it has no page")
    return places


def _chain(file: BinaryIO) -> tuple[list[int], str]:
    """Where the pages' directories begin, and what is wrong behind the last of them if so."""
    place, entries, entry, following = _form(file)
    found: dict[int, None] = {}  # in order; a damaged chain may come back to where it was
    while place and place not in found:
        try:
            file.seek(place)
            (number,) = struct.unpack(entries, file.read(struct.calcsize(entries)))
            file.seek(entry * number - 1, os.SEEK_CUR)
            if number < 1 or not file.read(1):
                raise ValueError
        except (struct.error, OSError, OverflowError, ValueError):
            return list(found), f"page {len(found)} lies beyond the end of the file"
        found[place] = None
        behind = file.read(struct.calcsize(following))
        whole = len(behind) == struct.calcsize(following)  # else the file lacks its last bytes
        place = struct.unpack(following, behind)[0] if whole else 0
    return list(found), ""


def _form(file: BinaryIO) -> tuple[int, str, int, str]:
    """Where the first directory is, and of all: the form of the number of entries, the bytes of an
    entry, and the form of the next one's place."""
    file.seek(0)
    start = file.read(_PREFIX[1])
    order, big = "<" if start[:2] == b"II" else ">", b"+" in start[:4]
    entries, entry, following = ("Q", 20, "Q") if big else ("H", 12, "I")
    (first,) = struct.unpack_from(order + following, start, 8 if big else 4)
    return first, order + entries, entry, order + following


def _expect_description(file: BinaryIO, tags: Any) -> None:
    """Raises CutOff if there is one beyond the end of the file: it may be OME's, which comes last.

    Pillow passes over it.
    """
    if _DESCRIPTION in tags:
        return
    place, entries, entry, _ = _form(file)
    file.seek(place)
    (number,) = struct.unpack(entries, file.read(struct.calcsize(entries)))
    for _ in range(number):
        if len(one := file.read(entry)) < entry:
            return
        if struct.unpack(entries[0] + "H", one[:2])[0] == _DESCRIPTION:
            raise CutOff("its description lies beyond the end of the file")


def decoded(file: BinaryIO, channels: int | None = None, page: int = 0) -> NDArray[Any]:
    """The values [H, W, C] of a page, upright, in their own type; 0 is black.

    Args:
        file: the TIFF.
        channels: of the image, where several pages hold them; None: those that the file says.
        page: the image, from 0.

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
    tags = tags_of(file)
    stack, (all_places, _) = stack_of(file, tags), _chain(file)
    number = len(all_places)
    if stack and channels in (None, stack.channels * int(tags.get(SAMPLES, 1))):
        if page >= stack.images:
            raise ValueError(f"the TIFF's images are 0 .. {stack.images - 1}")
        places = stack.pages(page)
    elif page >= number:
        raise ValueError(f"the TIFF's pages are 0 .. {number - 1}")
    else:
        places = [page]
    file.seek(0)
    with tifffile.TiffFile(file) as opened:

        def at(k: int) -> Any:
            opened.filehandle.seek(all_places[k])
            return tifffile.TiffPage(opened, index=k)

        first = at(places[0])
        samples = int(first.samplesperpixel)
        if len(places) == 1 and channels is not None:
            places = list(range(page, min(page + max(channels // samples, 1), number)))
        taken = [first, *map(at, places[1:])]
        pages = [one.asarray() for one in taken]
        for k, one in zip(places, taken, strict=True):
            if (one.shape, one.dtype, one.photometric) != (
                first.shape,
                first.dtype,
                first.photometric,
            ):
                raise ValueError(
                    f"page {k} is {one.dtype} {one.shape} of photometric {int(one.photometric)}, "
                    f"another channel's page {first.dtype} {first.shape} of "
                    f"{int(first.photometric)}"
                )
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
