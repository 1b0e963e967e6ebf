"""Where images come from: nine embedded photographs, or any folder.

A source is a sorted list of files with their sizes: crops are drawn in pixels before anything is
decoded. So every header is opened once, when the source is made. Files that Pillow cannot open
are named, counted and left out; when they are more than one in ten (and more than one), or all,
something else is wrong and the source is refused. Data damaged further in shows when it is
decoded: see `fastequi.data.loader`.

Every image comes out as 8-bit RGB: grey, palette and CMYK images are converted, 16 bits scaled
to 8, an alpha channel dropped (its colour is kept, not blended). EXIF orientation is applied.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fastequi.data.augment import WHOLE, Region

logger = logging.getLogger(__name__)

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM")  # that DALI decodes
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width
_NAMED = 10
_CHUNK = 256  # headers per task of the thread pool


@dataclass(frozen=True)
class Source:
    """Image files in a fixed order.

    Attributes:
        paths: of the files, sorted.
        names: the files' paths relative to their folder.
        sizes: [n, 2] height, width in pixels, upright.
        region: part (x0, y0, x1, y1) of every image that may be seen, as fractions of its width
            and height. (Antialiasing reaches about a pixel beyond.)
    """

    paths: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    sizes: NDArray[np.int32] = field(repr=False, compare=False)
    region: Region = WHOLE

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.region
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f"region: expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
                f"0 <= y0 < y1 <= 1, got {self.region}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def with_region(self, region: Region) -> Source:
        """The same files, seen only within `region`."""
        return replace(self, region=region)

    def pick(self, places: ArrayLike) -> Source:
        """The files at these places, in their order."""
        chosen = np.asarray(places, np.int64)
        paths, names = (tuple(v[i] for i in chosen) for v in (self.paths, self.names))
        return replace(self, paths=paths, names=names, sizes=self.sizes[chosen])


def embedded_photos(region: Region = WHOLE) -> Source:
    """The nine photographs in the package (licences beside them)."""
    folder = Path(str(resources.files("fastequi.data").joinpath("photos")))
    return _source(folder, _images_under(folder), region)


def image_folder(path: str | os.PathLike[str], region: Region = WHOLE) -> Source:
    """All images of a folder, flat or nested: no labels, no index, any case of the extension.

    Symbolic links are followed; names that start with a dot are passed over.

    Args:
        path: the folder.
        region: part of every image that may be seen; see :class:`Source`.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: a file instead of a folder.
        ValueError: no image in it, or more than 10 % of them unreadable.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"image folder: {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"image folder: {folder} is a file; expected a folder of images")
    return _source(folder, _images_under(folder), region)


def _images_under(folder: Path) -> list[str]:
    """Sorted paths of the images, relative to the folder."""
    found, others, seen = [], Counter[str](), set()

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            extension = os.path.splitext(name)[1].lower()
            if extension in EXTENSIONS and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(parent, name), folder))
            else:
                others[extension or name] += 1
    if not found:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in others.most_common(5))
        raise ValueError(
            f"image folder: no image in {folder}: looked for {' '.join(EXTENSIONS)} in it and "
            f"below, found {f'only {kinds}' if kinds else 'no file at all'}"
        )
    return sorted(found)


def _source(folder: Path, names: list[str], region: Region) -> Source:
    Image.init()  # registers the formats before threads ask for them
    paths = [str(folder / name) for name in names]
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only headers are read
        chunks = (paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK))
        headers = [header for part in pool.map(_headers, chunks) for header in part]
    kept = [i for i, header in enumerate(headers) if not isinstance(header, str)]
    bad = [f"{names[i]} ({header})" for i, header in enumerate(headers) if isinstance(header, str)]
    if bad:
        named = ", ".join(bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
        counted = f"{len(bad)} of {len(names)} images in {folder} cannot be read: {named}"
        if not kept or len(bad) > tolerated(len(names)):
            raise ValueError(f"image folder: {counted}")
        logger.warning("%s; left out", counted)
    sizes = np.array([headers[i] for i in kept], np.int32).reshape(-1, 2)
    return Source(tuple(paths[i] for i in kept), tuple(names[i] for i in kept), sizes, region)


def tolerated(num_files: int) -> int:
    """Damaged files a set may have: one in ten, and one in any case."""
    return max(1, num_files // 10)


def _headers(paths: list[str]) -> list[tuple[int, int] | str]:
    return [_size(path) for path in paths]


def _size(path: str) -> tuple[int, int] | str:
    """Upright (height, width) from the header, or why there is none."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            (width, height), exif = image.size, image.info.get("exif")
    except Exception as error:  # whatever a damaged header makes Pillow raise
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            return "empty file"
        return str(error).replace(f" {path!r}", "") or type(error).__name__
    return (width, height) if exif and _turned(exif) else (height, width)


def _turned(exif: bytes) -> bool:
    """Whether EXIF turns the image by 90 or 270 degrees; damaged EXIF does not."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(_ORIENTATION, 1)) in (5, 6, 7, 8)
    except Exception:
        return False
