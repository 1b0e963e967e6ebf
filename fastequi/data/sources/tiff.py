"""Values of TIFF that Pillow does not know, such as twelve channels, by tifffile (extra `tiff`):
channels that lie one after the other, floats, and whole numbers of more than 16 bits."""

from __future__ import annotations

import logging
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources.limits import expect_pixels
from fastequi.data.sources.tiff_stacks import stack_of
from fastequi.data.sources.tiff_tags import (
    BITS,
    BLACK_IS_0,
    COMPRESSION,
    EXTRA,
    FORMATS,
    NODATA,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR,
    RGB,
    SAMPLES,
    WHITE_IS_0,
    chain_of,
    load,
    tags_of,
)

_TYPES = {"H": 3, "I": 4}  # of a tag's values: SHORT, LONG


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
    logging.getLogger("tifffile").addFilter(_is_of_pixels)
    tags = tags_of(file)
    stack, (all_places, _) = stack_of(file, tags), chain_of(file)
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
        planar = samples > 1 and first.planarconfig == 2
        if len(places) == 1 and channels is not None:
            places = list(range(page, min(page + max(channels // samples, 1), number)))
        taken = dict(zip(places, [first, *map(at, places[1:])], strict=True))
        _expect_channels(taken)
        for one in taken.values():
            if one.is_tiled:  # as tiff_tags.expect_tiles does of the first page
                expect_pixels(one.tilelength, one.tilewidth, 1 if planar else samples)
        pages = [one.asarray() for one in taken.values()]
        orientation = _orientation(first)
        inverted = first.photometric == WHITE_IS_0 and first.dtype.kind == "u"
    if samples == 1:
        values = np.stack(pages, -1)
    else:
        values = np.concatenate([np.moveaxis(p, 0, -1) if planar else p for p in pages], -1)
    if inverted:
        values = np.iinfo(values.dtype).max - values
    return turned(values, orientation)


def tags_of_image(file: BinaryIO, page: int) -> Any:
    """The tags of an image's page, of its first one where several hold its channels."""
    tags = tags_of(file)
    if not page:
        return tags
    stack, (places, _) = stack_of(file, tags), chain_of(file)
    number = stack.pages(page)[0] if stack and page < stack.images else page
    if number >= len(places):
        return tags
    own = load(file, places[number])
    if NODATA not in own and NODATA in tags:  # the first page says it of all
        own[NODATA] = tags[NODATA]
    return own


def _is_of_pixels(record: logging.LogRecord) -> bool:
    """Whether a message is of more than a tag that is read here by itself."""
    return "GDAL_NODATA" not in record.getMessage()


def _orientation(page: Any) -> int:
    return int(page.tags[ORIENTATION].value) if ORIENTATION in page.tags else 1


def _expect_channels(pages: dict[int, Any]) -> None:
    """Raises an error unless tifffile's pages can be decoded, and are channels of one image."""
    first, *_ = pages.values()
    samples = int(first.samplesperpixel)
    expect_pixels(first.imagelength, first.imagewidth, samples * len(pages))
    kind = first.shape, first.dtype, first.photometric
    for k, one in pages.items():
        expect_pixels(one.imagelength, one.imagewidth, int(one.samplesperpixel))
        if _orientation(one) != _orientation(first):
            raise ValueError(
                f"page {k} has orientation {_orientation(one)}, another channel's page "
                f"{_orientation(first)}"
            )
        if len(one.shape) != (2 if samples == 1 else 3):
            raise ValueError(f"a page of shape {one.shape}, expected one of {samples} samples")
        if (one.shape, one.dtype, one.photometric) != kind:
            raise ValueError(
                f"page {k} is {one.dtype} {one.shape} of photometric {int(one.photometric)}, "
                f"another channel's page {first.dtype} {first.shape} of {int(first.photometric)}"
            )


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
        PHOTOMETRIC: ("H", [RGB if rgb else BLACK_IS_0]),
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
