"""How the images are now, against their index: training uses exactly those of the index, or stops.

Before a run the folder is walked and every file's size read (or every shard's size and time); no
file is opened. An image that is missing or has another size stops the run with its name; new files
are counted, named and not used, and images left out stay so until the next scan. A change of
content without a change of size is not detected here, but possibly when the image is decoded. Copy
shards with their times (cp -p, rsync -a): tar files with different content often have the same
size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from fastequi.data.sources.index import AGAIN, Index
from fastequi.data.sources.listing import Archive
from fastequi.data.sources.parts import file_of, split
from fastequi.data.sources.trouble import patiently, raise_trouble

logger = logging.getLogger(__name__)

_NAMED = 5
_CHUNK = 1 << 14


class Some:
    """Counts names and keeps the first few."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.count, self.first = 0, list[str]()
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(name)

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > _NAMED else "")


def differences(
    index: Index, root: Path | str, archives: Sequence[Archive], names: Sequence[str]
) -> str:
    """How the files differ from the index, as text; "" if they do not.

    Files that are new since a scan are only logged.

    Args:
        index: what is expected.
        root: the folder.
        archives: the shards as they are now.
        names: of the images that are there now, if they are files, sorted.
    """
    if index.archives:
        now = {archive.name: archive for archive in archives}
        known = {archive.name for archive in index.archives}
        gone = Some(sorted(known - set(now)))
        changed = Some(a.name for a in index.archives if a.name in now and now[a.name] != a)
        new, what, total = Some(sorted(set(now) - known)), "shards", len(known)
    else:
        gone, changed = _lost(index, root)
        new, what, total = _new(index, names), "images", len(index.rows)
    states = [("gone", gone), ("changed", changed)]
    if new.count and not index.decoded:  # made on the way; nobody chose what it holds
        states.append(("new", new))
    elif new.count:
        logger.warning(
            "not in the index of %s and not used: %d new %s (%s); fastequi data scan adds them",
            *(index.when[:19], new.count, what, new),
        )
    return "; ".join(
        f"{state}: {some.count} {what} of {total} ({some})" for state, some in states if some.count
    )


def stale(file: Path, index: Index, how: str) -> ValueError:
    """The error of an index that is out of date."""
    return ValueError(f"index: {file} of {index.when[:19]} is out of date ({how}); {AGAIN}")


def _lost(index: Index, root: Path | str) -> tuple[Some, Some]:
    """The files that are gone, and those of another size."""
    gone, changed, columns = Some(), Some(), index.columns
    for start in range(0, len(columns), _CHUNK):
        stop = min(start + _CHUNK, len(columns))
        counts = columns.bytes[start:stop].tolist()
        for name, count in zip(columns.names.between(start, stop), counts, strict=True):
            try:
                file, _ = split(os.path.join(root, name))
                if patiently(os.stat, file).st_size != count:
                    changed.add(name)
            except OSError as error:
                raise_trouble(error)
                gone.add(name)
    return gone, changed


def _new(index: Index, names: Sequence[str]) -> Some:
    """What is neither in the index nor left out by it; both sides are sorted."""
    known = index.columns.names
    if known == names:
        return Some()
    left_out, new = {file_of(name) for name in index.left_out}, Some()
    left: Iterator[str] = map(file_of, known)
    if index.part or index.pages == "images":  # names of parts may lie in another order
        in_order = all(a <= b for a, b in pairwise(map(file_of, known)))
        left = left if in_order else iter(sorted(set(left)))
    at = next(left, None)
    for name in names:
        while at is not None and at < name:
            at = next(left, None)
        if name != at and name not in left_out:
            new.add(name)
    return new
