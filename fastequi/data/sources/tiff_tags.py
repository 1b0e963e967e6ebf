"""What a TIFF's tags say, by Pillow, and where the directories of its pages are."""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

from PIL import TiffImagePlugin

from fastequi.data.sources.limits import expect_pixels
from fastequi.data.sources.quiet_pillow import quiet_pillow
from fastequi.data.sources.trouble import expect_read, raise_trouble

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DESCRIPTION, ORIENTATION, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA, FORMATS = (
    *(270, 274, 258, 259, 262, 277, 284, 338, 339),
)
NODATA = 42113  # GDAL's: a number that stands for none, as text
WHITE_IS_0, BLACK_IS_0, RGB = 0, 1, 2
_LABS = (8, 9, 10)  # CIE L*a*b*, of ICC, of ITU
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_SHORT = 3  # the type of a tag's numbers
_SUBFILE, _REDUCED, _MASK = 254, 1, 4  # a page that is another's at a smaller size, or its mask
_PREFIX = 8, 16  # bytes of a TIFF's first header, of a BigTIFF's
# of compression: none, LZW, deflate (two numbers), PackBits, which libtiff reads
_BY_LIBTIFF = (1, 5, 8, 32773, 32946)


class CutOff(ValueError):
    """A file that ends before what it says."""


def is_tiff(start: bytes) -> bool:
    """By the first four bytes."""
    return start[:4] in MAGIC


def tags_of(file: BinaryIO) -> Any:
    """The tags of the first page by number.

    Raises:
        Exception: whatever damaged ones make Pillow raise.
    """
    return load(file, _directory(file).next)


def load(file: BinaryIO, place: int) -> Any:
    """The tags of the page whose directory is there."""
    tags = _directory(file)
    file.seek(place)
    with quiet_pillow():
        tags.load(file)
    expect_read(file)
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
        and tags.get(PHOTOMETRIC, 1) in (BLACK_IS_0, RGB)
        and tags.get(COMPRESSION, 1) in _BY_LIBTIFF
        and tags.get(ORIENTATION, 1) == 1
        and _says_extra(tags)  # or libtiff warns of every image
    )


def is_odd(tags: Any) -> bool:
    """Whether DALI makes RGB of it that is wrong: of two channels, and of 16 bits where the planes
    lie one after the other or white is 0."""
    deep, samples = set(tags.get(BITS, (1,))) == {16}, tags.get(SAMPLES, 1)
    planar, white = tags.get(PLANAR, 1) == 2, tags.get(PHOTOMETRIC, 1) == WHITE_IS_0
    whole = set(tags.get(FORMATS, (1,))) <= {1, 4}
    return whole and (samples == 2 or (deep and (white or (planar and samples > 1))))


def multiplies_by_alpha(tags: Any) -> bool:
    """Whether DALI, which makes 8-bit RGB, multiplies colours by alpha: of images that it turns.
    Not of planes, of which Pillow does not decode all."""
    turned, planes = tags.get(ORIENTATION, 1) != 1, tags.get(PLANAR, 1) == 2
    return turned and EXTRA in tags and not planes


def is_inverted(tags: Any) -> bool:
    """Whether 0 is white in whole numbers of 8 bits or more, whose values runs invert."""
    whole = set(tags.get(FORMATS, (1,))) <= {1, 4}
    return whole and tags.get(BITS, (1,))[0] >= 8 and tags.get(PHOTOMETRIC, 1) == WHITE_IS_0


def is_for_pillow(tags: Any) -> bool:
    """Palettes, CMYK, YCbCr and fewer than eight bits, which Pillow makes RGB or grey of."""
    bits, photometric = tags.get(BITS, (1,))[0], tags.get(PHOTOMETRIC, 1)
    return bits < 8 or photometric in (3, 5, 6)


def is_filled(tags: Any) -> bool:
    """Whether values without data can be told and filled: none that are converted when read."""
    return not is_for_pillow(tags) and tags.get(PHOTOMETRIC, 1) not in _LABS


def _says_extra(tags: Any) -> bool:
    """Whether the channels beyond grey or RGB are said to be extra ones."""
    colours = 3 if tags.get(PHOTOMETRIC, 1) == RGB else 1
    return bool(tags.get(SAMPLES, 1) == colours + len(tags.get(EXTRA, ())))


def places_of(file: BinaryIO) -> list[int]:
    """Where the directories of all pages begin.

    Raises:
        CutOff: one lies beyond the end of the file.
        ValueError: there is none.
    """
    places, damage = chain_of(file)
    if damage:
        raise CutOff(damage)
    if not places:
        raise ValueError("a damaged TIFF: it has no page")
    return places


def expect_tiles(tags: Any) -> None:
    """Refuses tiles that claim more values than an image may have: libraries take memory for one
    before they read it.

    Raises:
        Exception: they do; see :func:`limits.expect_pixels`.
    """
    if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
        samples = int(tags.get(SAMPLES, 1)) if tags.get(PLANAR, 1) == 1 else 1
        expect_pixels(int(tags[_TILE_LENGTH]), int(tags[_TILE_WIDTH]), samples)


def chain_of(file: BinaryIO, most: int | None = None) -> tuple[list[int], str]:
    """Where the pages' directories begin, and what is wrong behind the last of them if so.

    Overviews and masks, which GDAL writes behind an image, are no pages.

    Args:
        file: the TIFF.
        most: pages after which it is enough; None: all.
    """
    place, entries, entry, following = _form(file)
    found: dict[int, bool] = {}  # in order; a damaged chain may come back to where it was
    while place and place not in found and (most is None or len(_pages(found)) < most):
        try:
            file.seek(place)
            (number,) = struct.unpack(entries, file.read(struct.calcsize(entries)))
            belongs = _belongs(file.read(entry), entries[0])
            file.seek(entry * (number - 1) - 1, os.SEEK_CUR)
            if number < 1 or not file.read(1):
                raise ValueError
        except (struct.error, OSError, OverflowError, ValueError) as error:
            raise_trouble(error)
            return _pages(found), f"page {len(found)} lies beyond the end of the file"
        found[place] = belongs
        behind = file.read(struct.calcsize(following))
        whole = len(behind) == struct.calcsize(following)  # else the file lacks its last bytes
        place = struct.unpack(following, behind)[0] if whole else 0
    return _pages(found), ""


def _pages(found: dict[int, bool]) -> list[int]:
    """The first, and those that do not belong to another."""
    return [place for k, (place, belongs) in enumerate(found.items()) if not (k and belongs)]


def _belongs(entry: bytes, order: str) -> bool:
    """Whether a page's first entry says that it is an overview or a mask: tags are in order, and
    none is before that one."""
    tag, kind = struct.unpack_from(order + "HH", entry)
    number = "H" if kind == _SHORT else "I"
    (value,) = struct.unpack_from(order + number, entry, 8 if len(entry) == 12 else 12)
    return tag == _SUBFILE and bool(value & (_REDUCED | _MASK))


def _form(file: BinaryIO) -> tuple[int, str, int, str]:
    """Where the first directory is, and of all: the form of the number of entries, the bytes of an
    entry, and the form of the next one's place."""
    file.seek(0)
    start = file.read(_PREFIX[1])
    order, big = "<" if start[:2] == b"II" else ">", b"+" in start[:4]
    entries, entry, following = ("Q", 20, "Q") if big else ("H", 12, "I")
    (first,) = struct.unpack_from(order + following, start, 8 if big else 4)
    return first, order + entries, entry, order + following


def expect_description(file: BinaryIO, tags: Any) -> None:
    """Raises CutOff if there is one beyond the end of the file: it may be OME's, which comes last.

    Pillow passes over it.
    """
    if DESCRIPTION in tags:
        return
    place, entries, entry, _ = _form(file)
    file.seek(place)
    (number,) = struct.unpack(entries, file.read(struct.calcsize(entries)))
    for _ in range(number):
        if len(one := file.read(entry)) < entry:
            return
        if struct.unpack(entries[0] + "H", one[:2])[0] == DESCRIPTION:
            raise CutOff("its description lies beyond the end of the file")
