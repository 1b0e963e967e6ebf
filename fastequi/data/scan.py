"""Decodes every image of a set once, as training does, and records its size or its error.

Threads read and hash files while DALI decodes the previous ones. Memory is bounded: at
most 64 MiB of encoded bytes are taken at a time (or one larger image), and at most 64 megapixels
(or one larger image) are decoded together. An image whose header claims more than
Pillow's limit of 179 megapixels is refused. The sizes in the index are those of the decoded pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.decode import require_dali
from fastequi.data.given import decoded_sizes
from fastequi.data.pixels import Pixels
from fastequi.data.scan_report import Scan
from fastequi.data.sources.columns import Row
from fastequi.data.sources.encoded import Header, header, is_array_name, marked, why
from fastequi.data.sources.index import Index
from fastequi.data.sources.kinds import NO_RGB, Kind
from fastequi.data.sources.listing import Listing, State
from fastequi.data.sources.measured import Counts, added
from fastequi.data.sources.parts import WHOLE, file_of, part_of
from fastequi.data.sources.trouble import patiently, raise_trouble

_FILES = 256  # per DALI pipeline, whose construction takes 6 ms
_BYTES = 1 << 26
_UNSEEN = 1 << 24  # bytes that a part of a file becomes, until some were read
_PIXELS = 1 << 26
_DIGITS = 16


class _Read(NamedTuple):
    data: NDArray[np.uint8]
    sha256: str
    header: Header


Show = Callable[[int, int], None]  # called after every part with the images done and their number
Entry = tuple[State, Row | tuple[str, str], str]  # a row, or name and reason; Pillow's format or ""


def scan(listing: Listing, num_threads: int = 0, show: Show = lambda done, total: None) -> Scan:
    """Reads, hashes and decodes every image of a listing on the CPU; the rows stay in memory.

    Args:
        listing: of a folder or of shards.
        num_threads: of reading and of DALI; 0: all usable cores.
        show: called after every part with the images done and their number.

    Raises:
        ImportError: DALI is not installed.
        ValueError: num_threads is negative.
    """
    rows: list[Row] = []
    left_out, formats = dict(listing.left_out), Counter[str]()
    values: dict[int, Counts] = {}
    for part, some in scanned(listing, num_threads, show):
        added(values, some)
        for _, row, kind in part:
            if isinstance(row, Row):
                rows.append(row)
                formats[kind] += 1
            else:
                left_out[row[0]] = row[1]
    archives, others = listing.archives, listing.passed_over
    kinds = tuple(sorted(formats))
    measured = {code: counts.measured() for code, counts in values.items()}
    index = Index(rows, left_out, True, "", archives, others, kinds, measured=measured)
    return Scan(index, dict(formats.most_common()))


def scanned(
    listing: Listing, num_threads: int, show: Show, first: int = 0
) -> Iterator[tuple[list[Entry], dict[int, Counts]]]:
    """The images of a listing from `first` on, a part at a time, in order; see :func:`scan`. With
    them the counts of their values by kind."""
    require_dali()
    if num_threads < 0:
        raise ValueError(f"threads: expected 0 (every core) or more, got {num_threads}")
    threads = num_threads or len(os.sched_getaffinity(0))
    Image.init()  # registers the formats before threads ask for them
    with ThreadPoolExecutor(threads) as pool:
        largest = [0]
        for part, known, futures in _ahead(listing, first, pool, largest):
            read = [future.result() for future in futures]
            sizes = [len(one.data) for one in read if not isinstance(one, str)]
            largest[0] = max(largest[0], *sizes, 0)
            try:
                found, values = _decode(read, threads)
            except MemoryError as error:
                some = f"one of {listing.names[part.start]} to {listing.names[part.stop - 1]}"
                raise MemoryError(f"{some}: {str(error) or 'while it was decoded'}") from error
            entries: list[Entry] = []
            for i, state, one in zip(part, known, found, strict=True):
                name, span = listing.names[i], listing.span(i)
                if isinstance(one, str):
                    entries.append((state, (name, one), ""))
                    continue
                offset = None if span is None else span[0]
                count, height, width, form, kind = one.header
                if part_of(name) != WHOLE:
                    count = state.bytes  # of the file
                row = Row(name, count, height, width, one.sha256, offset, kind)
                entries.append((state, row, form))
            yield entries, values
            show(part.stop, len(listing))


_Part = tuple[range, list[State], list["Future[_Read | str]"]]


def _ahead(
    listing: Listing, first: int, pool: ThreadPoolExecutor, largest: Sequence[int]
) -> Iterator[_Part]:
    """Parts of the listing with their reads; the next part is already being read."""
    waiting: _Part | None = None
    for part, known in _parts(listing, first, largest):
        coming = part, known, [pool.submit(_read, listing, i) for i in part]
        if waiting is not None:
            yield waiting
        waiting = coming
    if waiting is not None:
        yield waiting


def _parts(
    listing: Listing, first: int, largest: Sequence[int]
) -> Iterator[tuple[range, list[State]]]:
    """Ranges of consecutive images within the limits of files and bytes, of at least one image.

    Args:
        largest: how many bytes an image was read as so far, at most: a part of a file is taken
            to become as many, whatever the file has.
    """
    start, total, known = first, 0, list[State]()
    for i in range(first, len(listing)):
        state = listing.state(i)
        size = max(state.bytes, 0)
        if part_of(listing.names[i]) != WHOLE:
            size = largest[0] or max(size, _unseen(listing, i))
        if known and (len(known) == _FILES or total + size > _BYTES):
            yield range(start, i), known
            start, total, known = i, 0, []
        known.append(state)
        total += size
    if known:
        yield range(start, len(listing)), known


def _unseen(listing: Listing, i: int) -> int:
    """Bytes that a part of a file becomes, before any was read: of an array by its header."""
    if listing.span(i) is None and is_array_name(file_of(listing.names[i])):
        found = header(listing.path(i))
        kind = None if isinstance(found, str) else Kind.of(found.kind)
        if not isinstance(found, str) and kind is not None:
            return found.height * found.width * kind.channels * np.dtype(kind.depth).itemsize
    return _UNSEEN


def _read(listing: Listing, i: int) -> _Read | str:
    try:
        data, marks = patiently(listing.read, i), patiently(listing.marks, i)
        found = header(data, listing.pages_are_channels)
    except (MemoryError, OSError) as error:
        raise_trouble(error, listing.path(i))  # of which the index shall not know
        return why(error, listing.path(i))
    if isinstance(found, str):
        return found
    return _Read(data, hashlib.sha256(data.data).hexdigest()[:_DIGITS], marked(found, marks))


def _decode(
    images: Sequence[_Read | str], threads: int
) -> tuple[list[_Read | str], dict[int, Counts]]:
    """Each with the size that it decodes to, or why it cannot be decoded, and counts of all values
    by kind; a few at a time."""
    found, values = list(images), dict[int, Counts]()
    group: list[int] = []
    pixels = 0

    def decode() -> None:
        chosen = [(i, image) for i in group if not isinstance(image := images[i], str)]
        for code in sorted({image.header.kind for _, image in chosen}):
            those = [(i, image) for i, image in chosen if image.header.kind == code]
            sizes, counted = examined([image.data for _, image in those], code, threads)
            if counted is not None:
                added(values, {code % NO_RGB: counted})
            for (i, image), size in zip(those, sizes, strict=True):
                if isinstance(size, str):
                    found[i] = size
                else:
                    upright = image.header._replace(height=size[0], width=size[1])
                    found[i] = image._replace(header=upright)
        group.clear()

    for i, image in enumerate(images):
        if isinstance(image, str):
            continue
        kind = Kind.of(image.header.kind)
        channels = 3 if kind is None else kind.channels
        size = image.header.height * image.header.width * max(channels // 3, 1)
        if pixels + size > _PIXELS:
            decode()
            pixels = 0
        group.append(i)
        pixels += size
    decode()
    return found, values


def examined(
    images: Sequence[NDArray[np.uint8]], code: int, threads: int
) -> tuple[list[tuple[int, int] | str], Counts | None]:
    """The size (height, width) that each image of one kind decodes to, upright, or why it cannot
    be decoded; and counts of the values of all.

    Bytes of one and of three channels are decoded as 8-bit RGB, which most runs make of them, the
    others as they are; if that fails and RGB can be made of an image, it stays, and is not counted.
    """
    kind, device = Kind.of(code), torch.device("cpu")
    if kind is None:
        return decoded_sizes(images, device, threads), None
    total, lock = Counts(kind.channels, kind.depth), Lock()

    def see(values: NDArray[Any]) -> None:
        counts = Counts.of(values[..., : kind.channels])
        with lock:
            total.add(counts)

    # of three channels that are no colours RGB would be the first page or plane alone
    if kind.depth == "uint8" and (kind.channels == 1 or (kind.channels == 3 and kind.rgb)):
        found = decoded_sizes(images, device, threads, see=see)
        return found, total if total.images else None
    found = decoded_sizes(images, device, threads, Pixels.whole(kind), see)
    failed = [i for i, size in enumerate(found) if isinstance(size, str)]
    if failed and kind.channels <= 4 and kind.depth != "float32":
        again = decoded_sizes([images[i] for i in failed], device, threads)
        for i, size in zip(failed, again, strict=True):
            found[i] = size if not isinstance(size, str) else found[i]
    return found, total if total.images else None
