"""Which images one scan of many takes: consecutive files of a folder or list, or whole shards.

Of shards only the part's own are listed; a folder or list is listed on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from fastequi.data.sources import index as indices
from fastequi.data.sources.image_sets import scanned_listing
from fastequi.data.sources.journal import End, Share
from fastequi.data.sources.listing import HIDDEN, INDEX, Listing, is_list
from fastequi.data.sources.parts import WHOLE, FilePart, file_of, part_named, part_of
from fastequi.data.sources.parts import pages_of as pages_of_file
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.remote_listing import expanded, place_of, scanned
from fastequi.data.sources.selection import Data, Selection, places_in
from fastequi.data.sources.shards import is_shards, shard_archives, shard_listing
from fastequi.data.sources.table import fingerprint
from fastequi.data.sources.texts import Names
from fastequi.data.sources.tiff_tags import CutOff
from fastequi.data.sources.trouble import patiently, raise_trouble

_DIGITS = 16
_THREADS = 16  # remote files whose pages are counted at a time


def portions(data: Data, share: Share) -> list[tuple[Listing, End]]:
    """The share of every place: its images, and what a journal of them ends with.

    Args:
        data: the places.
        share: of each.

    Raises:
        FileNotFoundError: a place is not there.
        ValueError: there is no image, or patterns choose none.
    """
    chosen = Selection.of(data)
    found = [_portion(place, chosen.patterns, share) for place in places_in(chosen)]
    if not any(end.total if share.count > 1 else len(listing) for listing, end in found):
        raise ValueError(f"{chosen.option}: {chosen.patterns} chooses no image in {chosen}")
    return found


def pages_of(index: Path) -> str:
    """What the pages of a file are taken for in an index, as --pages of a scan; "" where none says
    it."""
    try:
        known = indices.read(indices.present(index))
    except (OSError, ValueError) as error:  # of a damaged one a scan makes another
        raise_trouble(error)
        return ""
    if not known.decoded or known.pages:
        return known.pages
    # scans wrote names alone before
    return "images" if any(part_of(name).page is not None for name in known.columns.names) else ""


def of_pages(listing: Listing, end: End, how: str) -> tuple[Listing, End]:
    """A share with the pages of its files; with other pages it is a set that is not merged with it.

    Args:
        listing, end: of :func:`portions`.
        how: what those of a file are: the first is the image ("first"), or all are its channels
            ("channels"), or each is an image ("images").
    """
    if how == "first":
        return listing, end
    end = replace(end, digest=f"{end.digest} {how}", pages=how)
    if how == "channels":
        return replace(listing, pages_are_channels=True), end
    return _by_page(listing, end)


def part_before(index: Path) -> FilePart:
    """What a scan took of each file, but for pages; WHOLE if there is no index with images."""
    try:
        known = indices.read(indices.present(index))
    except (OSError, ValueError) as error:  # as in pages_of
        raise_trouble(error)
        return WHOLE
    return part_named(known.part) if len(known.rows) else WHOLE


def of_part(listing: Listing, end: End, part: FilePart) -> tuple[Listing, End]:
    """A share with a part of each of its files, as of :func:`of_pages`; unchanged where no file of
    the set can have it."""
    if part == WHOLE or not (end.share[1] > 1 or _fits(listing, part)):
        return listing, end
    end = replace(end, digest=f"{end.digest} of {part}", part=str(part))
    return listing.of_part(part), end


def expect_part(shares: Sequence[tuple[Listing, End]], asked: FilePart) -> None:
    """Refuses what no file of several sets can have.

    Args:
        shares: of :func:`portions`; of parts of sets nothing is said.
        asked: what was asked for.

    Raises:
        ValueError: it is so; names the option.
    """
    if any(end.share[1] > 1 or not len(listing) for listing, end in shares):
        return
    for option, kinds, one in (
        ("--array", ".npz", FilePart(array=asked.array)),
        ("--axes chw", ".npy or .npz", FilePart(planes=asked.planes)),
        (f"--nodata {asked.nodata}", "TIFF, .npy or .npz", FilePart(nodata=asked.nodata)),
    ):
        if one != WHOLE and not any(_fits(listing, one) for listing, _ in shares):
            places = ", ".join(str(listing.root) for listing, _ in shares)
            raise ValueError(f"{option}: expected {kinds} as images, got none in {places}")


def _fits(listing: Listing, part: FilePart) -> bool:
    return any(part.of(file_of(name)) != WHOLE for name in listing.names)


def _by_page(listing: Listing, end: End) -> tuple[Listing, End]:
    """Each page an image; files that end before their last page are left out."""
    names, places = list[str](), list[int]()
    left_out = dict(listing.left_out)
    for i, (name, count) in enumerate(zip(listing.names, _counts(listing), strict=True)):
        if isinstance(count, str):
            left_out[name] = count
            continue
        some = pages_of_file(name, count)
        names += some
        places += [i] * len(some)
    if listing.spans is None:
        listing = replace(listing, names=Names.of(sorted(names)), left_out=left_out)
    else:
        taken = listing.take(np.array(places, np.int64))
        listing = replace(taken, names=Names.of(names), left_out=left_out)
    return listing, replace(end, left_out=left_out)


def _counts(listing: Listing) -> Iterator[int | str]:
    """The pages of each file, or why it is left out; many at a time where that asks a server."""

    def count(i: int) -> int | str:
        try:
            return patiently(listing.pages, i)
        except CutOff as error:
            return str(error)
        except MemoryError as error:
            raise_trouble(error, listing.path(i))
            return 1  # its header will say why

    if listing.remote is None:
        yield from map(count, range(len(listing)))
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(count, range(len(listing)))


def index_places(data: Data) -> list[Path]:
    """Where the index of every place is kept, without listing any.

    Raises:
        FileNotFoundError: a place is not there.
    """
    places = places_in(Selection.of(data))
    return [place_of(p) if isinstance(p, str) else _index_place(p) for p in places]


def _portion(place: Path | str, patterns: Patterns, share: Share) -> tuple[Listing, End]:
    shards = isinstance(place, str) or is_shards(place)
    if not shards:
        whole = scanned_listing(place, patterns)
        cut, total = share.of(len(whole)), len(whole)
        listing = replace(whole, names=whole.names[cut])
        digest = fingerprint(whole.names, np.zeros((0, 2), np.int32))
    else:
        if isinstance(place, str):
            named = expanded(place)
            cut, total = share.of(len(named)), len(named)
            listing = scanned(place, cut if share.count > 1 else None).only(patterns)
            # names alone: a part asks for the state of its own shards
            text = json.dumps([named, str(patterns)])
        else:
            _, archives, _ = shard_archives(place)
            cut, total = share.of(len(archives)), len(archives)
            listing = shard_listing(place, cut if share.count > 1 else None).only(patterns)
            text = json.dumps([[asdict(archive) for archive in archives], str(patterns)])
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    end = End(
        (share.number, share.count),
        "shards" if shards else "images",
        *(cut.start, cut.stop, total, digest),
        archives=listing.archives,
        left_out=dict(listing.left_out),
        passed_over=dict(listing.passed_over),
    )
    return listing, end


def _index_place(path: Path) -> Path:
    if is_shards(path):
        return shard_archives(path)[2]
    if not path.exists():
        raise FileNotFoundError(f"data: {path} does not exist")
    return (
        path.parent / HIDDEN / f"{path.name}{INDEX}"
        if is_list(path)
        else path / HIDDEN / f"index{INDEX}"
    )
