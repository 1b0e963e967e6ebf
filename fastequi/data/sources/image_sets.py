"""Sources of images: nine embedded photographs, folders, list files, tar shards, or several.

A source is a sorted list of images with their sizes: crops are drawn in pixels before anything is
decoded. Sizes come from an index (`fastequi data scan`, see `fastequi.data.sources.index`), or
every header is opened once, when the source is made; those of shards are then kept beside them.
Images that Pillow cannot open are named, counted and left out; if they are more than a given share
(and more than one), or all, the source is refused. Damage after the header is found when an image
is decoded: see `fastequi.data.loader`. Files whose names are not those of images are counted by
kind and passed over.

Unless a run keeps the channels (`fastequi.data.sources.wanted`), every image is decoded to 8-bit
RGB: grey, palette and CMYK images are converted, 16 bits scaled to 8, which is told, an alpha
channel dropped (colours are kept, not blended); of an animation the first picture is used. EXIF
orientation is applied. Images that DALI refuses are decoded by Pillow (`fastequi.data.given`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from fastequi.data.sources import index as indices
from fastequi.data.sources import remote_listing
from fastequi.data.sources.changes import differences, stale
from fastequi.data.sources.columns import Rows
from fastequi.data.sources.extras import readable_now
from fastequi.data.sources.headers import headers_of
from fastequi.data.sources.images import WHOLE, Region, Source, united
from fastequi.data.sources.index import Index
from fastequi.data.sources.listing import Listing, folder_listing, is_list, list_listing
from fastequi.data.sources.of_index import differs, headers_for, source_of
from fastequi.data.sources.parts import part_named
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.remote_reader import RemoteShards
from fastequi.data.sources.selection import Data, Place, Selection, places_in
from fastequi.data.sources.shard_cache import ShardCache
from fastequi.data.sources.shards import is_shards, shard_archives, shard_listing
from fastequi.data.sources.tolerance import Tolerance
from fastequi.data.sources.urls import is_url
from fastequi.data.sources.wanted import Wanted

logger = logging.getLogger(__name__)

_ALL, _RGB = Patterns(), Wanted()
_TOLERATE = Tolerance.share


@dataclass(frozen=True)
class Part:
    """The images of one place.

    Attributes:
        place: a folder, a list file, a shard or a pattern of shards.
        root: the folder that the names of its images are relative to.
        source: the images.
    """

    place: Path
    root: Path
    source: Source = field(repr=False)

    @property
    def is_shards(self) -> bool:
        return self.source.spans is not None

    @property
    def is_list(self) -> bool:
        return is_list(self.place)


def embedded_photos(region: Region = WHOLE) -> Source:
    """The nine photographs in the package (licences beside them)."""
    folder = Path(str(resources.files("fastequi.data").joinpath("photos")))
    listing = replace(folder_listing(folder), passed_over={})  # the licences
    return _of_files(f"image folder: {folder}", listing, region, None, _TOLERATE, _ALL, _RGB)


def open_source(
    data: Data,
    region: Region = WHOLE,
    index: Path | Sequence[Path] | None = None,
    tolerate: float | None = None,
    cache: ShardCache | None = None,
    wanted: Wanted = _RGB,
) -> Source:
    """The images that `data` names, as one source: :func:`open_parts`, united."""
    parts = open_parts(data, region, index, tolerate, cache, wanted)
    return united([(part.root, part.source) for part in parts])[0]


def open_parts(
    data: Data,
    region: Region = WHOLE,
    index: Path | Sequence[Path] | None = None,
    tolerate: float | None = None,
    cache: ShardCache | None = None,
    wanted: Wanted = _RGB,
) -> list[Part]:
    """The images that `data` names, place by place, without places that have none.

    Args:
        data: see :class:`Selection`.
        region: as in :func:`image_folder`.
        index: as in :func:`image_folder`; with several places, one for each.
        tolerate: largest share of unreadable images of each place; by default as `data` says, else
            as is wanted.
        cache: for whole shards of a URL.
        wanted: what is asked of the images' channels.

    Raises:
        ValueError, OSError: as the functions for one place do; or patterns choose no image.
    """
    chosen = Selection.of(data)
    places = places_in(chosen)
    given = (index,) if isinstance(index, Path) else tuple(index or ())
    if given and len(given) != len(places):
        raise ValueError(
            f"--index: expected one for each of the {len(places)} places in {chosen.option}, "
            f"got {len(given)}"
        )
    shares = tolerate, chosen.tolerate, wanted.tolerance.share
    share = next(share for share in shares if share is not None)
    wanted = replace(wanted, tolerance=Tolerance(share, chosen.tolerate_as))
    opened = [
        _opened(place, region, given[i] if given else None, share, chosen.patterns, cache, wanted)
        for i, place in enumerate(places)
    ]
    found = [part for part in opened if len(part.source)]
    if not found:
        raise ValueError(f"{chosen.option}: {chosen.patterns} chooses no image in {places[0]}")
    return found


def image_folder(
    path: Place,
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = _TOLERATE,
    patterns: Patterns = _ALL,
    wanted: Wanted = _RGB,
) -> Source:
    """All images of a folder, flat or nested: no labels needed, any case of the extension.

    Symbolic links are followed; names that start with a dot are passed over.

    Args:
        path: the folder.
        region: part of every image that may be seen; see :class:`Source`.
        index: written by a scan; by default the one in the folder, if there is one.
        tolerate: largest share of unreadable images.
        patterns: that select images by name.
        wanted: what is asked of their channels.

    Raises:
        FileNotFoundError: no such folder or index.
        NotADirectoryError: a file instead of a folder.
        ValueError: no image in it, too many of them unreadable, or the index is out of date.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"image folder: {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"image folder: {folder} is a file; expected a folder of images, tar shards (.tar) or "
            f"a list (.txt) with one path per line"
        )
    listing = folder_listing(folder)
    return _of_files(f"image folder: {folder}", listing, region, index, tolerate, patterns, wanted)


def image_list(
    path: Place,
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = _TOLERATE,
    patterns: Patterns = _ALL,
    wanted: Wanted = _RGB,
) -> Source:
    """The images that a list file names, in the order of their names.

    Args:
        path: the list; see `fastequi.data.sources.listing`.
        region, index, tolerate, patterns, wanted: as in :func:`image_folder`.

    Raises:
        FileNotFoundError: no such list or index.
        ValueError: as :func:`image_folder`'s.
    """
    file = Path(path).expanduser()
    return _of_files(f"list: {file}", list_listing(file), region, index, tolerate, patterns, wanted)


def tar_shards(
    data: Place,
    region: Region = WHOLE,
    index: Path | None = None,
    tolerate: float = _TOLERATE,
    patterns: Patterns = _ALL,
    wanted: Wanted = _RGB,
) -> Source:
    """The images in WebDataset shards: a .tar file, a glob, or a range such as {000..012}.

    Args:
        data: see `fastequi.data.sources.shards`.
        region, index, tolerate, patterns, wanted: as in :func:`image_folder`. Without an index the
            members are listed and their headers opened once; the result is kept in the place of a
            scan's index.

    Raises:
        FileNotFoundError: a shard or the index is not there.
        ValueError: as :func:`image_folder`'s, or a shard is compressed.
    """
    pattern = Path(data).expanduser()
    root, archives, place = shard_archives(pattern)
    file = index or indices.present(place)
    known = _read_index(file, index is not None, of_shards=True)
    if known is not None and (how := differences(known, root, archives, ())):
        if known.decoded:
            raise stale(file, known, how)
        logger.info("%s; the shards are listed again", how)
        known = None
    if known is not None and not known.decoded and (some := readable_now(known.left_out)):
        logger.info("of members %s; the shards are listed again", some)
        known = None
    if wanted.part and (known is None or not known.decoded):  # that list is of whole members
        known = headers_for(shard_listing(pattern), wanted)
    if known is None:
        file, known = index or place, headers_of(shard_listing(pattern))
        try:
            indices.write(file, known)
            known = indices.read(file)  # mapped
            logger.info(
                "%d images listed in shards; their places are kept: %s", len(known.rows), file
            )
        except OSError as error:
            logger.info("the list of members is not kept: %s", error)
    return source_of(f"shards: {pattern}", root, file, known, region, tolerate, patterns, wanted)


def scanned_listing(data: Place, patterns: Patterns = _ALL) -> Listing:
    """The images of a place for a scan, regardless of an index."""
    if isinstance(data, str) and is_url(data):
        return remote_listing.scanned(data).only(patterns)
    path = Path(data).expanduser()
    if is_shards(path):
        return shard_listing(path).only(patterns)
    if is_list(path):
        return list_listing(path).only(patterns)
    if not path.is_dir():
        raise FileNotFoundError(
            f"data: {path} is no folder, .tar file or pattern of those, nor a list (.txt)"
        )
    return folder_listing(path).only(patterns)


def _opened(
    place: Path | str,
    region: Region,
    index: Path | None,
    tolerate: float,
    patterns: Patterns,
    cache: ShardCache | None,
    wanted: Wanted,
) -> Part:
    options = region, index, tolerate, patterns, wanted
    if isinstance(place, str):
        root, file, known = remote_listing.found(place, index, tolerate)
        if not known.decoded and differs(wanted, known.columns.names):
            raise ValueError(
                f"shards: {place}: expected an index, as the run read of each file what no listing "
                f"says: fastequi data scan PLACE {part_named(wanted.part).options}"
            )
        more = region, tolerate, patterns, wanted
        source = source_of(f"shards: {place}", root, file, known, *more)
        if known.pages == "images" and cache is None:
            logger.warning(
                "%s: each page is fetched with all of its file; of shards in data.cache_dir it is "
                "read alone",
                place,
            )
        reader = RemoteShards(root, known.archives, cache)
        return Part(Path(place), Path(root), replace(source, remote=reader))
    if is_shards(place):
        return Part(place, shard_archives(place)[0], tar_shards(place, *options))
    if is_list(place):
        return Part(place, place.parent, image_list(place, *options))
    return Part(place, place, image_folder(place, *options))


def _of_files(
    what: str,
    listing: Listing,
    region: Region,
    index: Path | None,
    tolerate: float,
    patterns: Patterns,
    wanted: Wanted,
) -> Source:
    """Of images that are files, by an index or by their headers."""
    total, listing = len(listing), listing.only(patterns)
    file = index or indices.present(listing.index)
    known = _read_index(file, index is not None, of_shards=False)
    if known is None:
        known = headers_for(listing, wanted)
    else:
        known = known.only(patterns)
        if how := differences(known, listing.root, (), listing.names):
            raise stale(file, known, how)
    known = replace(known, passed_over=listing.passed_over)
    more = region, tolerate, patterns, wanted
    return source_of(what, listing.root, file, known, *more, total)


def _read_index(file: Path, required: bool, of_shards: bool) -> Index | None:
    if not file.is_file():
        if required:
            raise FileNotFoundError(f"index: {file} does not exist")
        return None
    known = indices.read(file)
    if bool(known.archives) != of_shards:
        raise ValueError(f"index: {file} is {'not ' if of_shards else ''}one of tar shards")
    return replace(known, rows=Rows(known.columns))  # of JSON lines made once
