"""The index of a set: a scan's result, so that training opens no headers.

JSON lines, written aside and renamed, so an interrupted scan leaves the previous index. The first
line is a header; then follow a list [name, reason] for every image left out, and one for every
image: name, bytes, height, width, SHA-256 prefix and, in a shard, its first byte there. The images
left out are written once more to a file beside it, for people (`*.quarantine.jsonl`).

The rule: training uses exactly the images of the index, or stops. Before a run the folder is walked
and every file's size read (or every shard's size and time); no file is opened. An image that is
missing or has another size stops the run with its name; new files are counted, named and not used,
and images left out stay so until the next scan. A change of content without a change of size is not
detected here, but possibly when the image is decoded. Copy shards with their times (cp -p, rsync
-a): tar files with different content often have the same size.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from fastequi.atomic import replacing
from fastequi.data.sources.encoded import Span
from fastequi.data.sources.listing import Archive, Listing
from fastequi.data.sources.patterns import Patterns

logger = logging.getLogger(__name__)

_VERSION = 1
_NAMED = 5
_AGAIN = "make it again with fastequi data scan, or remove it"


class Row(NamedTuple):
    """One image: relative name, encoded bytes, upright size in pixels, the first 16 hexadecimal
    digits of its SHA-256 ("" if it was never decoded), and its first byte within its shard."""

    name: str
    bytes: int
    height: int
    width: int
    sha256: str = ""
    offset: int | None = None


@dataclass(frozen=True)
class Index:
    """The index's content.

    Attributes:
        rows: the images, sorted by name.
        left_out: {name: reason}.
        decoded: whether a scan decoded everything; else only shards' members were listed.
        when: it was made.
        archives: the shards it was made from.
        passed_over: {kind: files} of files that are not images by their names.
        formats: Pillow's names of the images' formats; empty in older indices.
    """

    rows: list[Row] = field(repr=False)
    left_out: dict[str, str] = field(repr=False)
    decoded: bool
    when: str = ""
    archives: tuple[Archive, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)
    formats: tuple[str, ...] = ()

    def only(self, patterns: Patterns) -> Index:
        """The images, and those left out, that patterns select; members by their path in the shard.

        A damaged shard stays listed.
        """
        if not patterns:
            return self
        shards = {archive.name for archive in self.archives}
        names, bad = [row.name for row in self.rows], sorted(set(self.left_out) - shards)
        chosen = patterns.chosen([*self._inside(names), *self._inside(bad)])
        rows = [row for row, wanted in zip(self.rows, chosen, strict=False) if wanted]
        kept = {name for name, wanted in zip(bad, chosen[len(names) :], strict=True) if wanted}
        left_out = {n: why for n, why in self.left_out.items() if n in kept or n in shards}
        return replace(self, rows=rows, left_out=left_out)

    def _inside(self, names: list[str]) -> list[str]:
        if not self.archives:
            return names
        of = _shards(names, self.archives)
        return [name[len(shard) + 1 :] for name, shard in zip(names, of, strict=True)]

    def listing(self, root: Path | str, file: Path) -> Listing:
        """The images as they were listed, names and places."""
        names = [row.name for row in self.rows]
        if not self.archives:
            return Listing(root, names, file, left_out=self.left_out)
        spans: list[Span] = [(row.offset or 0, row.bytes) for row in self.rows]
        shards = _shards(names, self.archives)
        return Listing(root, names, file, spans, shards, self.archives, self.left_out)


def quarantine_of(file: Path) -> Path:
    """Where the list of what was left out lies, beside an index."""
    return file.with_name(f"{file.name.removesuffix('.jsonl')}.quarantine.jsonl")


def expect_writable(file: Path) -> None:
    """Raises PermissionError where an index cannot be written: before a scan, not after it."""
    folder = next(folder for folder in file.absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"index: {folder} cannot be written; name another place (--index)")


def write(file: Path, index: Index) -> Index:
    """Writes index and quarantine, each atomically.

    Returns:
        The index with its time.

    Raises:
        OSError: the folder cannot be written.
    """
    index = replace(index, when=datetime.now(timezone.utc).isoformat(timespec="seconds"))
    about = {
        "fastequi index": _VERSION,
        "when": index.when,
        "decoded": index.decoded,
        "left_out": len(index.left_out),
        "images": len(index.rows),
        "columns": Row._fields if index.archives else Row._fields[:-1],
        "archives": [_known(archive) for archive in index.archives],
        "passed_over": dict(index.passed_over),
        "formats": index.formats,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    bad = sorted(index.left_out.items())
    rows = index.rows if index.archives else (row[:-1] for row in index.rows)
    _write(quarantine_of(file), bad)
    _write(file, chain([about], bad, rows))
    return index


def read(file: Path) -> Index:
    """An index.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or of another version.
    """
    try:
        with file.open(encoding="ascii") as lines:
            about = json.loads(next(lines, ""))
            if about["fastequi index"] != _VERSION:
                raise ValueError(f"version {about['fastequi index']}, expected {_VERSION}")
            bad = dict(map(json.loads, islice(lines, about["left_out"])))
            rows = [Row(*json.loads(line)) for line in lines]
        for what, found in (("left_out", bad), ("images", rows)):
            if len(found) != about[what]:
                raise ValueError(f"{len(found)} {what}, expected {about[what]}")
        archives = tuple(Archive(**entry) for entry in about["archives"])
        # older indices have neither
        more = about.get("passed_over", {}), tuple(about.get("formats", ()))
        return Index(rows, bad, about["decoded"], about["when"], archives, *more)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"index: {file} cannot be used ({error}); {_AGAIN}") from error


def differences(
    index: Index, root: Path | str, archives: Sequence[Archive], names: set[str]
) -> str:
    """How the files differ from the index, as text; "" if they do not.

    Files that are new since a scan are only logged.

    Args:
        root: the folder.
        archives: the shards as they are now.
        names: of the images that are there now, if they are files.
    """
    if index.archives:
        now = {archive.name: archive for archive in archives}
        known = {archive.name for archive in index.archives}
        gone = sorted(known - set(now))
        changed = [a.name for a in index.archives if a.name in now and now[a.name] != a]
        new, what, total = sorted(set(now) - known), "shards", len(known)
    else:
        gone, changed, what, total = [], [], "images", len(index.rows)
        for row in index.rows:
            try:
                if os.stat(os.path.join(root, row.name)).st_size != row.bytes:
                    changed.append(row.name)
            except OSError:
                gone.append(row.name)
        new = sorted(names - {row.name for row in index.rows} - set(index.left_out))
    states = [("gone", gone), ("changed", changed)]
    if new and not index.decoded:  # made on the way; nobody chose what it holds
        states.append(("new", new))
    elif new:
        logger.warning(
            "not in the index of %s and not used: %d new %s (%s); fastequi data scan adds them",
            *(index.when[:19], len(new), what, _some(new)),
        )
    return "; ".join(
        f"{state}: {len(some)} {what} of {total} ({_some(some)})" for state, some in states if some
    )


def stale(file: Path, index: Index, how: str) -> ValueError:
    """The error of an index that is out of date."""
    return ValueError(f"index: {file} of {index.when[:19]} is out of date ({how}); {_AGAIN}")


def _known(archive: Archive) -> dict[str, str | int]:
    """Only remote shards have an etag; earlier versions, which read none of those, know no such."""
    return {name: value for name, value in asdict(archive).items() if name != "etag" or value}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _shards(names: Sequence[str], archives: Sequence[Archive]) -> list[str]:
    """The shard of each member: names are sorted shard by shard, as the archives are."""
    found, at = [], iter(archives)
    shard = next(at).name
    for name in names:
        while not name.startswith(f"{shard}/"):
            shard = next(at).name
        found.append(shard)
    return found


def _write(file: Path, lines: Iterable[Any]) -> None:
    # names that are no UTF-8 are escaped
    with replacing(file, shared=True) as temporary, temporary.open("w", encoding="ascii") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
