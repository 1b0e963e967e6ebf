"""Several pages of a TIFF as images: what OME-TIFF and ImageJ say of them, or a request."""

from __future__ import annotations

import math
import re
from typing import Any, BinaryIO, NamedTuple

from fastequi.data.sources.tiff_tags import (
    BITS,
    DESCRIPTION,
    FORMATS,
    SAMPLES,
    CutOff,
    chain_of,
    expect_description,
    load,
    places_of,
    tags_of,
)

PAGES = "TIFF of several pages"  # instead of Pillow's name, where the first is the image
PARTIAL = "OME-TIFF of other pages than it says"  # the same: those of other files, or series
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels[^<>]*>")
_OME_SIZE = re.compile(r'Size([CZT])="(\d+)"')
_OME_ORDER = re.compile(r'DimensionOrder="(XY(?:CZT|CTZ|ZCT|ZTC|TCZ|TZC))"')
_OME, _IMAGEJ = "<OME", "ImageJ="
_IMAGEJ_SIZE = re.compile(r"^(channels|images)=(\d+)", re.MULTILINE)


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
    places, damage = chain_of(file)
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
    expect_description(file, tags)
    if stack := stack_of(file, tags):
        places, _ = chain_of(file)
        _expect_alike(file, tags, [places[k] for k in stack.pages(0)])
        if not stack.whole:
            return 1, PARTIAL
        return stack.channels, "TIFF" if len(places) == stack.channels else PAGES
    if not by_request or _said(tags):
        return 1, PAGES if tags.next else "TIFF"
    places = places_of(file)
    _expect_alike(file, tags, places)
    return len(places), "TIFF"


def _said(tags: Any) -> str:
    """The description of an OME-TIFF or ImageJ's file; "" of others."""
    text = str(tags.get(DESCRIPTION, ""))
    return text if _OME in text or text.startswith(_IMAGEJ) else ""


def _expect_alike(file: BinaryIO, first: Any, places: list[int]) -> None:
    """That pages are of the first one's size and number of samples, if they are channels.

    Raises:
        ValueError: they differ.
    """
    for number, place in enumerate(places[1:], 2):
        page = load(file, place)
        if any(page.get(tag) != first.get(tag) for tag in (256, 257, SAMPLES, BITS, FORMATS)):
            raise ValueError(f"channel {number}'s page is unlike the first, which channels are not")


def count(file: BinaryIO) -> int:
    """How many images its pages are."""
    stack = stack_of(file, tags_of(file))
    return stack.images if stack else len(places_of(file))
