"""Decodes every image of a set once, as training does, and records its size or its error.

Threads read and hash files while DALI decodes the previous ones. Memory is bounded: at
most 64 MiB of encoded bytes are taken at a time (or one larger image), and at most 64 megapixels
(or one larger image) are decoded together. An image whose header claims more than
Pillow's limit of 179 megapixels is refused. The sizes in the index are those of the decoded pixels.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.decode import require_dali
from fastequi.data.given import decoded_sizes
from fastequi.data.sources.encoded import Header, counted, header, why
from fastequi.data.sources.index import Index, Row
from fastequi.data.sources.listing import Listing
from fastequi.data.sources.remote import Unreadable

_FILES = 256  # per DALI pipeline, whose construction takes 6 ms
_BYTES = 1 << 26
_PIXELS = 1 << 26
_DIGITS = 16
_NAMED = 10


class _Read(NamedTuple):
    data: NDArray[np.uint8]
    sha256: str
    header: Header


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        index: to be written beside the images.
        formats: {Pillow's name: images}.
        duplicates: {name: the earlier one with the same bytes}.
    """

    index: Index
    formats: dict[str, int]
    duplicates: dict[str, str]

    def summary(self) -> str:
        """The result as a few printed lines."""
        rows, left_out = self.index.rows, self.index.left_out
        total = _size(sum(row.bytes for row in rows))
        lines = [f"{len(rows)} images, {total}; {len(left_out)} left out"]
        if rows:
            smallest = min(rows, key=lambda row: row.height * row.width)
            largest = max(rows, key=lambda row: row.height * row.width)
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.formats.items())
            lines += [f"formats     {kinds}"]
            for what, row in (("smallest", smallest), ("largest", largest)):
                lines.append(f"{what:12s}{row.width} × {row.height}  {row.name}")
        lines.append(f"duplicates  {_some([f'{a} = {b}' for a, b in self.duplicates.items()])}")
        lines.append(f"passed over {counted(self.index.passed_over) or 0}")
        lines.append(f"left out    {_some([f'{a} ({why})' for a, why in left_out.items()])}")
        # a name that is no UTF-8 can be printed nowhere as it is
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def scan(
    listing: Listing,
    num_threads: int = 0,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Scan:
    """Reads, hashes and decodes every image of a listing on the CPU.

    Args:
        listing: of a folder or of shards.
        num_threads: of reading and of DALI; 0: all usable cores.
        show: called after every part with the images done and their number.

    Raises:
        ImportError: DALI is not installed.
        ValueError: num_threads is negative.
    """
    require_dali()
    if num_threads < 0:
        raise ValueError(f"threads: expected 0 (every core) or more, got {num_threads}")
    threads = num_threads or len(os.sched_getaffinity(0))
    rows: list[Row] = []
    left_out = dict(listing.left_out)
    formats, first, duplicates = Counter[str](), dict[str, str](), dict[str, str]()
    done = 0
    Image.init()  # registers the formats before threads ask for them
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only headers are read
        for part, futures in _ahead(listing, pool):
            found = _decode([future.result() for future in futures], threads)
            for i, one in zip(part, found, strict=True):
                name, span = listing.names[i], listing.span(i)
                if isinstance(one, str):
                    left_out[name] = one
                    continue
                offset = None if span is None else span[0]
                count, height, width, kind = one.header
                rows.append(Row(name, count, height, width, one.sha256, offset))
                formats[kind] += 1
                if (earlier := first.setdefault(one.sha256, name)) != name:
                    duplicates[name] = earlier
            done += len(part)
            show(done, len(listing))
    archives, others = listing.archives, listing.passed_over
    kinds = tuple(sorted(formats))
    index = Index(rows, left_out, True, archives=archives, passed_over=others, formats=kinds)
    return Scan(index, dict(formats.most_common()), duplicates)


def _ahead(
    listing: Listing, pool: ThreadPoolExecutor
) -> Iterator[tuple[range, list[Future[_Read | str]]]]:
    """Parts of the listing with their reads; the next part is already being read."""
    waiting: tuple[range, list[Future[_Read | str]]] | None = None
    for part in _parts(listing):
        coming = part, [pool.submit(_read, listing, i) for i in part]
        if waiting is not None:
            yield waiting
        waiting = coming
    if waiting is not None:
        yield waiting


def _parts(listing: Listing) -> Iterator[range]:
    """Ranges of consecutive images within the limits of files and bytes, of at least one image."""
    start, total = 0, 0
    for i in range(len(listing)):
        size = _bytes(listing, i)
        if i > start and (i - start == _FILES or total + size > _BYTES):
            yield range(start, i)
            start, total = i, 0
        total += size
    if len(listing):
        yield range(start, len(listing))


def _bytes(listing: Listing, i: int) -> int:
    span = listing.span(i)
    if span is not None:
        return span[1]
    try:
        return os.stat(listing.path(i)).st_size
    except OSError:  # reading it will say why
        return 0


def _read(listing: Listing, i: int) -> _Read | str:
    try:
        data = listing.read(i)
    except Unreadable:
        raise  # a network's fault, of which the index shall not know
    except OSError as error:
        return why(error, listing.path(i))
    found = header(data)
    if isinstance(found, str):
        return found
    return _Read(data, hashlib.sha256(data.data).hexdigest()[:_DIGITS], found)


def _decode(images: Sequence[_Read | str], threads: int) -> list[_Read | str]:
    """Each with the size that it decodes to, or why it cannot be decoded; a few at a time."""
    found = list(images)
    group: list[int] = []
    pixels = 0

    def decode() -> None:
        chosen = [(i, image) for i in group if not isinstance(image := images[i], str)]
        sizes = decoded_sizes([image.data for _, image in chosen], torch.device("cpu"), threads)
        for (i, image), size in zip(chosen, sizes, strict=True):
            if isinstance(size, str):
                found[i] = size
            else:
                upright = image.header._replace(height=size[0], width=size[1])
                found[i] = image._replace(header=upright)
        group.clear()

    for i, image in enumerate(images):
        if isinstance(image, str):
            continue
        size = image.header.height * image.header.width
        if pixels + size > _PIXELS:
            decode()
            pixels = 0
        group.append(i)
        pixels += size
    decode()
    return found


def _size(count: int) -> str:
    """Bytes in the unit that fits: "491 kB", "12.3 GB"."""
    unit, size = "kB", count / 1e3
    for larger in ("MB", "GB", "TB"):
        if size < 999.5:
            break
        unit, size = larger, size / 1e3
    return f"{size:.3g} {unit}"


def _some(lines: list[str]) -> str:
    shown = "".join(f"\n  {line}" for line in lines[:_NAMED])
    return f"{len(lines)}{shown}" + ("\n  ..." if len(lines) > _NAMED else "")
