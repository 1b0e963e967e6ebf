"""The headers of images, opened in parallel: their sizes where no index says them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from fastequi.data.sources.columns import Columns, Row, Rows
from fastequi.data.sources.encoded import Header, header, marked, why
from fastequi.data.sources.index import Index
from fastequi.data.sources.listing import Listing
from fastequi.data.sources.trouble import patiently, raise_trouble

_CHUNK = 256  # per task of the thread pool
_TOGETHER = 1 << 16  # that are kept as objects


def headers_of(listing: Listing) -> Index:
    """An index of a listing, not decoded: of every image what its header says."""
    Image.init()  # registers the formats before threads ask for them
    left_out, formats, made = dict(listing.left_out), set[str](), list[Columns]()
    first = 0  # the shard of the last one

    def opened(part: range) -> list[Header | str]:
        return [_header(listing, i) for i in part]

    with ThreadPoolExecutor() as pool:
        count = len(listing)
        for start in range(0, count, _TOGETHER):
            stop = min(start + _TOGETHER, count)
            parts = (range(i, min(i + _CHUNK, stop)) for i in range(start, stop, _CHUNK))
            found, rows = [one for part in pool.map(opened, parts) for one in part], []
            for i, one in enumerate(found, start):
                name, span = listing.names[i], listing.span(i)
                if isinstance(one, str):
                    left_out[name] = one
                else:
                    first_byte = None if span is None else span[0]
                    rows.append(Row(name, *one[:3], "", first_byte, one.kind))
                    formats.add(one.format)
            made.append(Columns.of_rows(rows, listing.archives, first))
            first = int(of[-1]) if (of := made[-1].of) is not None and len(of) else first
    archives, others = listing.archives, listing.passed_over
    kinds = tuple(sorted(formats))
    every = Rows(Columns.joined(made or [Columns.of_rows([], archives)]))
    return Index(every, left_out, False, archives=archives, passed_over=others, formats=kinds)


def _header(listing: Listing, i: int) -> Header | str:
    if listing.span(i) is None:
        return header(listing.path(i))
    try:
        found = header(patiently(listing.read, i))
        if isinstance(found, str):
            return found
        marks = patiently(listing.marks, i)
        return marked(found._replace(bytes=listing.state(i).bytes), marks)
    except (MemoryError, OSError) as error:
        raise_trouble(error, listing.path(i))
        return why(error, listing.path(i))
