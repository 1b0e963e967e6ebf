"""Several pages of a TIFF as images: what OME-TIFF and ImageJ say of them, or a request."""

from __future__ import annotations

import math
import re
from typing import Any, BinaryIO, NamedTuple

from fastequi.data.sources.tiff_tags import (
    BITS,
    DESCRIPTION,
    FORMATS,
    PHOTOMETRIC,
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
_OME_PIXELS = re.compile(r"(<(?:\w+:)?Pixels[^<>]*>)(.*?)(?=<(?:\w+:)?Pixels|$)", re.DOTALL)
_OME_SAMPLES = re.compile(r'SamplesPerPixel="(\d+)"')
_OME_CHANNEL = re.compile(r"<(?:\w+:)?Channel\b")
_OME_PLACE = re.compile(r"<(?:\w+:)?TiffData\b([^<>]*)>")
_OME_NUMBER = re.compile(r'\b(IFD|FirstC|FirstZ|FirstT)="(\d+)"')
_OME_OWN = re.compile(r'<(?:\w+:)?OME\b[^<>]*\bUUID="([^"]+)"')
_OME_FILE = re.compile(r"<(?:\w+:)?UUID\b[^<>]*>\s*([^<\s]+)\s*<")
_OME_SIZE = re.compile(r'Size([CZT])="(\d+)"')
_OME_ORDER = re.compile(r'DimensionOrder="(XY(?:CZT|CTZ|ZCT|ZTC|TCZ|TZC))"')
_FASTEST_FIRST = "XYCZT"  # of ImageJ always
_OME, _IMAGEJ = "<OME", "ImageJ="
_ALIKE = (256, 257, SAMPLES, BITS, FORMATS, PHOTOMETRIC)  # tags of pages that are channels
_IMAGEJ_SIZE = re.compile(r"^(channels|images)=(\d+)", re.MULTILINE)


class Series(NamedTuple):
    """Pages that are images of one kind, planes of depth and time.

    Attributes:
        channels: pages of an image.
        images: how many.
        apart: pages from a channel to the next.
    """

    channels: int
    images: int
    apart: int

    @property
    def needed(self) -> int:
        """Pages of all images."""
        return self.channels * self.images

    def pages(self, image: int) -> list[int]:
        """Those of an image, a channel each; all from 0."""
        before, within = divmod(image, self.apart)
        first = before * self.apart * self.channels + within
        return [first + c * self.apart for c in range(self.channels)]


class Stack(NamedTuple):
    """How the pages of an OME-TIFF or ImageJ's file are images.

    Attributes:
        series: one behind the other.
        whole: whether the file holds all that it says; else each page is an image.
    """

    series: tuple[Series, ...]
    whole: bool = True

    @property
    def channels(self) -> int:
        """Pages of the first image."""
        return self.series[0].channels

    @property
    def images(self) -> int:
        return sum(one.images for one in self.series)

    def pages(self, image: int) -> list[int]:
        """Those of an image, a channel each; all from 0."""
        first = 0
        for one in self.series:
            if image < one.images:
                break
            image, first = image - one.images, first + one.needed
        return [first + page for page in one.pages(image)]


def stack_of(file: BinaryIO, tags: Any) -> Stack | None:
    """What an OME-TIFF or ImageJ says of its pages; None of other files.

    Args:
        file: the TIFF.
        tags: of its first page.

    Raises:
        CutOff: its pages lie beyond the end of the file.
        ValueError: ImageJ's, whose other images have no pages.
    """
    said = _said(tags)
    series = _of_ome(said, int(tags.get(SAMPLES, 1))) if _OME in said else _of_imagej(said)
    if series is not None and (
        not series or min(map(min, series)) < 1 or (len(series) == 1 and series[0].needed == 1)
    ):
        return None
    places, damage = chain_of(file)
    number = len(places)
    if series is None:
        return Stack((Series(1, number, 1),), whole=False)
    first = series[0]
    for many in range(len(series), 0, -1):  # the others in files of their own
        if number == sum(one.needed for one in series[:many]):
            return Stack(series[:many])
    if first.images == 1 and number >= first.channels:
        return Stack(series[:1])
    if damage:
        raise CutOff(damage)
    if _OME not in said and number < first.needed:
        raise ValueError(
            f"ImageJ's file of {first.needed} images has {number} pages, expected as many"
        )
    # in other files too, or others' pages in this one
    return Stack((Series(1, number, 1),), whole=False)


def _of_ome(said: str, samples: int) -> tuple[Series, ...] | None:
    """The images of an OME-TIFF that are in this file, each of planes; None where its pages are in
    another order than theirs.

    Args:
        said: the description.
        samples: of the first page, where an image's channels say none.
    """
    found = list[Series]()
    own, first = _OME_OWN.search(said), 0
    for number, (pixels, inside) in enumerate(_OME_PIXELS.findall(said)):
        files = set(_OME_FILE.findall(inside))
        if own and files and own[1] not in files:
            continue  # its pages are in other files
        sizes = {name: int(n) for name, n in _OME_SIZE.findall(pixels)}
        each = [int(n) for n in _OME_SAMPLES.findall(inside)]
        named = len(_OME_CHANNEL.findall(inside))
        if not each:  # a channel of several samples is named once
            each = [samples if not number else max(sizes.get("C", 1) // max(named, 1), 1)]
        sizes["C"] = sizes.get("C", 1) // each[0]
        written = _OME_ORDER.search(pixels)
        order = (written[1] if written else _FASTEST_FIRST)[2:]
        apart = math.prod(sizes.get(name, 1) for name in order[: order.index("C")])
        found.append(Series(sizes["C"], sizes.get("Z", 1) * sizes.get("T", 1), apart))
        if not files and not _in_order(inside, sizes, order, first):
            return None
        first += found[-1].needed
    return tuple(found)


def _in_order(inside: str, sizes: dict[str, int], order: str, first: int) -> bool:
    """Whether an OME image's planes are the pages from `first` on, one after the other, as far as
    it says."""
    for said in _OME_PLACE.findall(inside):
        place = {name: int(n) for name, n in _OME_NUMBER.findall(said)}
        plane, apart = 0, 1
        for name in order:
            plane, apart = plane + apart * place.get(f"First{name}", 0), apart * sizes.get(name, 1)
        if place.get("IFD", first + plane) != first + plane:
            return False
    return True


def _of_imagej(said: str) -> tuple[Series, ...]:
    lines = {name: int(size) for name, size in _IMAGEJ_SIZE.findall(said)}
    channels, total = lines.get("channels", 1), lines.get("images", 1)
    if channels < 1 or total % channels:
        return ()
    return (Series(channels, total // channels, 1),)


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
        return 1, PAGES if tags.next and len(chain_of(file, most=2)[0]) > 1 else "TIFF"
    places = places_of(file)
    _expect_alike(file, tags, places)
    return len(places), "TIFF"


def _said(tags: Any) -> str:
    """The description of an OME-TIFF or ImageJ's file; "" of others."""
    text = str(tags.get(DESCRIPTION, ""))
    return text if _OME in text or text.startswith(_IMAGEJ) else ""


def _expect_alike(file: BinaryIO, first: Any, places: list[int]) -> None:
    """That pages are of the first one's size, samples and colours, if they are channels.

    Raises:
        ValueError: they differ.
    """
    for number, place in enumerate(places[1:], 2):
        page = load(file, place)
        if any(page.get(tag) != first.get(tag) for tag in _ALIKE):
            raise ValueError(
                f"channel {number}'s page is unlike the first: no channels of one image"
            )


def count(file: BinaryIO) -> int:
    """How many images its pages are."""
    stack = stack_of(file, tags_of(file))
    return stack.images if stack else len(places_of(file))
