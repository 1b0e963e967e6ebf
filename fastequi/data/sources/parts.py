"""Images that are not a file as it is, and their names, which a scan makes by request.

Page 7 of stack.tif, or frame 7 of DICOM, is stack.tif::0007 (--pages images). The array image of
tile.npz is tile.npz::image, tile.npy of axes [C, H, W] is tile.npy::chw, and both of a .npz
tile.npz::image:chw (--array image --axes chw). With --nodata each ends with ::nodata=file or
::nodata=-9999. So the name alone says how an image is read, in runs, shards and behind URLs.
"""

from __future__ import annotations

import math
import os
import re
from typing import NamedTuple

from fastequi.data.sources.extensions import OF_ARRAYS, OF_IMAGES

FILE = "file"  # of nodata: what GDAL_NODATA says, and values that are not finite
_PLANES = "chw"
_PAGE = re.compile(r"(.*)::(\d{4,})", re.DOTALL)
# what follows is no file's own name, as a file or a member of a shard may have: that ends so
_ENDINGS = "|".join(end for ends in (OF_IMAGES | OF_ARRAYS).values() for end in ends)
_ARRAY = re.compile(rf"(.*?\.np[yz])::((?!.*\.(?:{_ENDINGS})$)[^/]+)", re.DOTALL | re.IGNORECASE)
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|nan|[-+]?inf"
_DIGITS = 400  # no number that a double holds needs more
_NODATA = re.compile(
    rf"(.*\.(?:tiff?|np[yz])(?:::[^/]+)?)::nodata=(file|{_NUMBER})", re.DOTALL | re.IGNORECASE
)
_FORM = re.compile(r".*\.(tiff?|npy|npz)", re.DOTALL | re.IGNORECASE)


class FilePart(NamedTuple):
    """What of a file is an image, and how it is read.

    Attributes:
        page: of a TIFF or DICOM, from 0; None: the image that the file is.
        array: name of one in a .npz; "" of the only one.
        planes: whether an array's axes are [C, H, W]; of two axes it is [H, W] all the same.
        nodata: "file" or a number, whose pixels get the least value of their channel; "" of none.
    """

    page: int | None = None
    array: str = ""
    planes: bool = False
    nodata: str = ""

    def __str__(self) -> str:
        """The end of an image's name."""
        page = "" if self.page is None else f"{self.page:04}"
        array = ":".join(filter(None, [self.array, _PLANES * self.planes]))
        nodata = f"nodata={self.nodata}" if self.nodata else ""
        return "::".join(filter(None, [page, array, nodata]))

    @property
    def words(self) -> str:
        """Which values of a file it takes, but for the page."""
        array = f"array {self.array} of .npz" if self.array else ""
        axes = "axes [C, H, W]" if self.planes else "axes [H, W, C]" * bool(array)
        number = "GDAL_NODATA" if self.nodata == FILE else self.nodata
        nodata = f"filled where there is {number} or no number" if self.nodata else ""
        return ", ".join(filter(None, [array, axes, nodata]))

    @property
    def options(self) -> str:
        """Those of a scan that take it, but for the page."""
        axes, array = "chw" if self.planes else "hwc", f" --array {self.array!r}"
        return f"--axes {axes}{array} --nodata {self.nodata or 'none'}"

    def of(self, name: str) -> FilePart:
        """What of it there can be in a file of this name."""
        found = _FORM.fullmatch(name)
        form = "" if found is None else found[1][:3].lower()
        return FilePart(
            self.page,
            self.array if form == "npz" else "",
            self.planes and form in ("npy", "npz"),
            self.nodata if form else "",
        )


WHOLE = FilePart()


def parsed(name: str) -> tuple[str, FilePart]:
    """The file that a name says an image is in, and what of it; WHOLE of a file as it is."""
    if "::" not in name:
        return name, WHOLE
    nodata = ""
    if found := _NODATA.fullmatch(name):
        name, nodata = found[1], found[2]
    if found := _ARRAY.fullmatch(name):
        array = found[2].removesuffix(f":{_PLANES}")
        if found[2] == _PLANES:
            array = ""
        return found[1], FilePart(None, array, array != found[2], nodata)
    if found := _PAGE.fullmatch(name):
        return found[1], FilePart(int(found[2]), nodata=nodata)
    return name, FilePart(nodata=nodata)


def part_named(end: str) -> FilePart:
    """The part that names with this end say, as `str` makes it."""
    return parsed(f".npz::{end}")[1]


def split(path: str) -> tuple[str, FilePart]:
    """The same of a path on this machine, where a file may have such a name itself."""
    file, part = parsed(path)
    return (path, WHOLE) if part != WHOLE and os.path.lexists(path) else (file, part)


def file_of(name: str) -> str:
    """A name without what it says of the file."""
    return parsed(name)[0]


def part_of(name: str) -> FilePart:
    """What the name of a member of a shard says."""
    return parsed(name)[1]


def image_of(name: str) -> str:
    """A name without what it says but for the page: whatever else is taken, it is one image."""
    file, part = parsed(name)
    return file if part.page is None else f"{file}::{FilePart(part.page)}"


def pages_of(name: str, several: int) -> list[str]:
    """The names of a file's pages; its own, if it has one page."""
    return [name] if several == 1 else [f"{name}::{FilePart(k)}" for k in range(several)]


def name_of(name: str, part: FilePart) -> str:
    """The name of an image, as a file or a page is named, of which a part is taken."""
    file, known = parsed(name)
    end = str(part.of(file)._replace(page=known.page))
    return f"{file}::{end}" if end else file


def expect_array(option: str, name: str) -> None:
    """Refuses the name of an array that the name of an image cannot end with; "" is one.

    Raises:
        ValueError: it is one.
    """
    part, file = FilePart(array=name), "0.npz"
    if not name.isprintable() or parsed(name_of(file, part)) != (file, part):
        raise ValueError(
            f'{option}: expected the name of an array, without "/", that does not end with '
            f'"{_PLANES}", "::nodata=..." or as image files do, got {name!r}'
        )


def nodata_of(option: str, value: str) -> str:
    """A part's `nodata` for "file" or a number; "" of "none".

    Raises:
        ValueError: it is neither.
    """
    word = value.strip().lower()
    if word in (FILE, "none"):
        return FILE if word == FILE else ""
    number = len(word) <= _DIGITS and re.fullmatch(_NUMBER, word)
    if not number or (math.isinf(float(word)) and "inf" not in word):
        raise ValueError(f"{option}: expected {FILE}, none or a number, got {value!r}")
    whole = re.fullmatch(r"[-+]?[0-9]+", word)  # which float would round beyond 2^53
    return str(int(word)) if whole else f"{float(word) + 0.0:.17g}"  # one form of each; no -0
