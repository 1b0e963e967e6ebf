"""Where images come from: nine embedded photographs, any folder, or tar shards.

A source is a sorted list of images with their sizes: crops are drawn in pixels before anything is
decoded. Sizes come from an index (`fastequi data scan`, see `fastequi.data.index`), or every header
is opened once, when the source is made; those of shards are then kept beside them. Images that
Pillow cannot open are named, counted and left out; when they are more than a set share (and more
than one), or all, something else is wrong and the source is refused. Data damaged further in shows
when it is decoded: see `fastequi.data.loader`.

Every image comes out as 8-bit RGB: grey, palette and CMYK images are converted, 16 bits scaled
to 8, an alpha channel dropped (its colour is kept, not blended), of an animation the first picture
is taken. EXIF orientation is applied.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fastequi.data import index as indices
from fastequi.data.encoded import Header, header, read, why
from fastequi.data.index import Index, Row
from fastequi.data.listing import Listing, folder_listing
from fastequi.data.parameters import WHOLE, Region
from fastequi.data.shards import is_shards, shard_archives, shard_listing

logger = logging.getLogger(__name__)

TOLERATE = 0.1
_NAMED = 10
_CHUNK = 256  # headers per task of the thread pool


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    Attributes:
        paths: of the files they are in, sorted.
        names: the images' paths relative to their folder; a member's begins with its shard's.
        sizes: [n, 2] height, width in pixels, upright.
        region: part (x0, y0, x1, y1) of every image that may be seen, as fractions of its width
            and height. (Antialiasing reaches about a pixel beyond.)
        spans: [n, 2] first byte and number of bytes within the file, of members of tar shards;
            None where every image is a file.
    """

    paths: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    sizes: NDArray[np.int32] = field(repr=False, compare=False)
    region: Region = WHOLE
    spans: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

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
        spans = None if self.spans is None else self.spans[chosen]
        return replace(self, paths=paths, names=names, sizes=self.sizes[chosen], spans=spans)

    def fingerprint(self) -> str:
        """Of all names and sizes in their order: 16 hexadecimal digits that know a set again."""
        digest = hashlib.sha256("\0".join(self.names).encode(errors="surrogateescape"))
        digest.update(np.ascontiguousarray(self.sizes, "<i4").data)
        return digest.hexdigest()[:16]

    def file(self, i: int) -> str | NDArray[np.uint8]:
        """What is decoded of image i: its path, or its bytes in a source with spans.

        Bytes that cannot be read are one byte, which cannot be decoded.
        """
        if self.spans is None:
            return self.paths[i]
        try:
            return self.encoded(i)
        except OSError:
            return np.zeros(1, np.uint8)

    def encoded(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image i, of a source with spans; raises OSError as `encoded.read` does."""
        assert self.spans is not None
        first, count = self.spans[i].tolist()
        return read(self.paths[i], (first, count))


def embedded_photos(region: Region = WHOLE) -> Source:
    """The nine photographs in the package (licences beside them)."""
    folder = Path(str(resources.files("fastequi.data").joinpath("photos")))
    return image_folder(folder, region)


def open_source(
    data: str | os.PathLike[str],
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = TOLERATE,
) -> Source:
    """A folder (:func:`image_folder`) or tar shards (:func:`tar_shards`), by what `data` names."""
    kind = tar_shards if is_shards(Path(data).expanduser()) else image_folder
    return kind(data, region, index, tolerate)


def image_folder(
    path: str | os.PathLike[str],
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = TOLERATE,
) -> Source:
    """All images of a folder, flat or nested: no labels needed, any case of the extension.

    Symbolic links are followed; names that start with a dot are passed over.

    Args:
        path: the folder.
        region: part of every image that may be seen; see :class:`Source`.
        index: what a scan wrote; by default the one in the folder, if there is one.
        tolerate: the share of unreadable images up to which a folder is taken.

    Raises:
        FileNotFoundError: no such folder or index.
        NotADirectoryError: a file instead of a folder.
        ValueError: no image in it, too many of them unreadable, or the index is out of date.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"image folder: {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"image folder: {folder} is a file; expected a folder of images")
    listing = folder_listing(folder)
    file = index or listing.index
    known = _read_index(file, index is not None, of_shards=False)
    if known is None:
        known = _open_headers(listing)
    elif how := indices.differences(known, folder, (), set(listing.names)):
        raise indices.stale(file, known, how)
    return _source(f"image folder: {folder}", folder, file, known, region, tolerate)


def tar_shards(
    data: str | os.PathLike[str],
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = TOLERATE,
) -> Source:
    """The images in WebDataset shards: a .tar file, a glob, or a range such as {000..012}.

    Args:
        data: what `fastequi.data.shards` takes.
        region, index, tolerate: as :func:`image_folder`'s. Without an index the members are listed
            and their headers opened once, and that is kept where a scan's index would be.

    Raises:
        FileNotFoundError: a shard or the index is not there.
        ValueError: as :func:`image_folder`'s, or a shard is compressed.
    """
    pattern = Path(data).expanduser()
    root, archives, place = shard_archives(pattern)
    file = index or place
    known = _read_index(file, index is not None, of_shards=True)
    if known is not None and (how := indices.differences(known, root, archives, set())):
        if known.decoded:
            raise indices.stale(file, known, how)
        logger.info("%s; the shards are listed again", how)
        known = None
    if known is None:
        known = _open_headers(shard_listing(pattern))
        try:
            known = indices.write(file, known)
            logger.info(
                "%d images listed in shards; their places are kept: %s", len(known.rows), file
            )
        except OSError as error:
            logger.info("the list of members is not kept: %s", error)
    return _source(f"shards: {pattern}", root, file, known, region, tolerate)


def scanned_listing(data: str | os.PathLike[str]) -> Listing:
    """What a scan goes through: everything `data` names, whatever an index says of it."""
    path = Path(data).expanduser()
    if is_shards(path):
        return shard_listing(path)
    if not path.is_dir():
        raise FileNotFoundError(f"data: {path} is no folder, .tar file or pattern of those")
    return folder_listing(path)


def tolerated(num_files: int, share: float = TOLERATE) -> int:
    """Damaged files a set may have: that share, and one in any case unless it is 0."""
    return max(int(share > 0), int(num_files * share))


def _read_index(file: Path, required: bool, of_shards: bool) -> Index | None:
    if not file.is_file():
        if required:
            raise FileNotFoundError(f"index: {file} does not exist")
        return None
    known = indices.read(file)
    if bool(known.archives) != of_shards:
        raise ValueError(f"index: {file} is {'not ' if of_shards else ''}one of tar shards")
    return known


def _source(
    what: str, root: Path, file: Path, known: Index, region: Region, tolerate: float
) -> Source:
    """From an index: checks how much it left out, and says so in a line."""
    bad, total = len(known.left_out), len(known.left_out) + len(known.rows)
    if bad:
        each = [f"{name} ({reason})" for name, reason in known.left_out.items()]
        named = ", ".join(each[:_NAMED]) + (", ..." if len(each) > _NAMED else "")
        counted = f"{bad} of {total} images in {root} cannot be read: {named}"
        if not known.rows or bad > tolerated(total, tolerate):
            raise ValueError(f"{what.partition(':')[0]}: {counted}")
        if not known.decoded:
            logger.warning("%s; left out", counted)
    if known.decoded:
        told = len(known.rows), file, known.when, bad
        logger.info("%d images by the index %s, scanned %s; %d left out", *told)
    listing = known.listing(root, file)
    count = len(listing)
    spans = None if listing.spans is None else np.array(listing.spans, np.int64).reshape(-1, 2)
    sizes = np.array([row[2:4] for row in known.rows], np.int32).reshape(-1, 2)
    paths = tuple(listing.path(i) for i in range(count))
    return Source(paths, tuple(listing.names), sizes, region, spans)


def _open_headers(listing: Listing) -> Index:
    """Every image's header, opened in parallel."""
    Image.init()  # registers the formats before threads ask for them

    def opened(part: range) -> list[Header | str]:
        return [_header(listing, i) for i in part]

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only headers are read
        count = len(listing)
        parts = (range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK))
        found = [one for part in pool.map(opened, parts) for one in part]
    left_out, rows = dict(listing.left_out), []
    for i, (name, one) in enumerate(zip(listing.names, found, strict=True)):
        if isinstance(one, str):
            left_out[name] = one
        else:
            span = listing.span(i)
            rows.append(Row(name, *one[:3], offset=None if span is None else span[0]))
    return Index(rows, left_out, decoded=False, archives=listing.archives)


def _header(listing: Listing, i: int) -> Header | str:
    path, span = listing.path(i), listing.span(i)
    if span is None:
        return header(path)
    try:
        return header(read(path, span))
    except OSError as error:
        return why(error, path)
