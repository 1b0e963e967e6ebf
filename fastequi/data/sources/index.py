"""The index of a set: a scan's result, so that training opens no headers.

It is a mapped file (`fastequi.data.sources.table`), or JSON lines as scans wrote them before: where
both lie side by side the newer is used. A name that ends with .jsonl asks for JSON lines. Both are
written aside and renamed, so an interrupted scan leaves the previous index. The images left out are
written once more to a file beside it, for people (`*.quarantine.jsonl`). Of a large set, to which
runs only refer, the index before is kept under another name when other images are found.

The rule: training uses exactly the images of the index, or stops; see
`fastequi.data.sources.changes`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fastequi.data.sources import lines, table
from fastequi.data.sources.columns import Columns, Row, Rows, in_parts
from fastequi.data.sources.listing import INDEX, Archive
from fastequi.data.sources.measured import Measured
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.texts import Names, chunks

logger = logging.getLogger(__name__)

MANY = 1_000_000  # images; a run of as many or more refers to their index
AGAIN = "make it again with fastequi data scan, or remove it"
_LINES = ".jsonl"
_NUMBERING = 2  # of pages and frames: overviews are none, series of OME-TIFF follow each other
_FIRST = b'{"fastequi index"'  # of JSON lines


@dataclass(frozen=True)
class Index:
    """The index's content.

    Attributes:
        rows: the images, sorted by name; a list, or a view of columns.
        left_out: {name: reason}.
        decoded: whether a scan decoded everything; else only shards' members were listed.
        when: it was made.
        archives: the shards it was made from.
        passed_over: {kind: files} of files that are not images by their names.
        formats: names of the images' formats as headers have them; empty in older indices.
        fingerprint: digest of names and sizes, if it is known without reading them.
        kinds: of the images' values (`fastequi.data.sources.kinds`), each once; empty in older
            indices.
        measured: what a scan measured of their values, by kind.
        pages: what a scan took those of a file for, as its --pages; "" in older indices.
        part: what a scan took of each file, as the end of a name (`fastequi.data.sources.parts`).
    """

    rows: Sequence[Row] = field(repr=False)
    left_out: Mapping[str, str] = field(repr=False)
    decoded: bool
    when: str = ""
    archives: tuple[Archive, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)
    formats: tuple[str, ...] = ()
    fingerprint: str = field(default="", repr=False, compare=False)
    kinds: tuple[int, ...] = ()
    measured: Mapping[int, Measured] = field(default_factory=dict, repr=False)
    pages: str = ""
    part: str = ""

    @property
    def columns(self) -> Columns:
        """The rows as columns; made of them unless they are."""
        if isinstance(self.rows, Rows):
            return self.rows.columns
        return Columns.of_rows(self.rows, self.archives)

    def only(self, patterns: Patterns) -> Index:
        """The images, and those left out, that patterns select; members by their path in the shard.

        A damaged shard stays listed.
        """
        if not patterns:
            return self
        shards = {archive.name for archive in self.archives}
        bad = sorted(set(self.left_out) - shards)
        columns = self.columns
        chosen: list[np.ndarray[Any, Any]] = [np.zeros(0, bool)]
        start = 0
        for names in chunks(columns.names):
            if columns.of is not None:
                of = columns.of[start : start + len(names)].tolist()
                pairs = zip(names, of, strict=True)
                names = [name[len(self.archives[k].name) + 1 :] for name, k in pairs]
            chosen.append(np.array(patterns.chosen(names), bool))
            start += len(names)
        rows = Rows(columns.take(np.flatnonzero(np.concatenate(chosen))))
        inside = [self._inside(name) for name in bad]
        kept = {n for n, wanted in zip(bad, patterns.chosen(inside), strict=True) if wanted}
        left_out = {n: why for n, why in self.left_out.items() if n in kept or n in shards}
        return replace(self, rows=rows, left_out=left_out, fingerprint="")

    def _inside(self, name: str) -> str:
        """A name within its shard."""
        of = (a.name for a in self.archives if name.startswith(f"{a.name}/"))
        return name[len(next(of, "/")) + 1 :] if self.archives else name


def quarantine_of(file: Path) -> Path:
    """Where the list of what was left out lies, beside an index."""
    return file.with_name(f"{stem(file)}.quarantine.jsonl")


def stem(file: Path) -> str:
    """An index's name without its extension."""
    return file.name.removesuffix(_LINES).removesuffix(INDEX)


def present(file: Path) -> Path:
    """An index's place, or that of JSON lines beside it, which scans wrote before, if they are
    newer or alone."""
    older = file.with_name(f"{stem(file)}{_LINES}")
    if not older.is_file() or older == file:
        return file
    if not file.is_file():
        return older
    newer = max((file, older), key=lambda one: one.stat().st_mtime_ns)
    logger.info("of the indices %s and %s the newer is used, %s", file, older.name, newer.name)
    return newer


def expect_writable(file: Path) -> None:
    """Raises an error where an index cannot be written: before a scan, not after it.

    Raises:
        PermissionError: its folder is not to be written to.
        ValueError: something else has that name, which would be lost.
    """
    if file.exists() and not (file.is_file() and _is_index(file)):
        what = "a folder" if file.is_dir() else "no index"
        raise ValueError(f"index: {file} is there and is {what}; name another place (--index)")
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
    if file.name.endswith(_LINES):
        return _write_lines(file, index)
    columns = index.columns
    if not index.kinds and columns.kinds is not None and columns.kinds.any():
        index = replace(index, kinds=tuple(np.unique(columns.kinds).tolist()))
    names = columns.names
    some = (len(name.encode(errors="surrogateescape")) for name in names)
    size = names.size if isinstance(names, Names) else sum(some)
    return write_parts(file, index, in_parts(columns), (len(columns), size))


def write_parts(
    file: Path, index: Index, parts: Iterable[Columns], count: tuple[int, int]
) -> Index:
    """Writes an index of images that come some at a time, and its quarantine.

    Args:
        file: the index.
        index: all but its rows; what is left out may fill while the parts are made.
        parts: the images in their order.
        count: of images, and of the bytes of their names.

    Returns:
        The index with its time, and its rows where they were given.

    Raises:
        OSError: the folder cannot be written.
        ValueError: there are more or fewer images.
    """
    if file.name.endswith(_LINES):
        rows = [row for part in parts for row in Rows(part)]
        return _write_lines(file, replace(index, rows=rows))
    index = replace(index, when=_now())
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = [key.name for key in fields(Archive)]
    shards = {key: [getattr(one, key) for one in index.archives] for key in keys}
    about = {**_about(index), "archives": shards}
    places = ["spans", "of"] if index.archives else ["bytes"]
    columns = [*places, *["sha256"] * index.decoded, *["kinds"] * (len(index.kinds) > 1)]
    with table.writing(file, about, parts, count, columns, index.left_out) as fingerprint:
        _keep_aside(file, fingerprint)
    lines.write(quarantine_of(file), sorted(index.left_out.items()))
    return index


def read(file: Path) -> Index:
    """An index; a mapped one is not read.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged or of another version.
    """
    try:
        if not _is_lines(file):
            return _mapped(file)
        about, archives, bad, rows = lines.read_index(file)
        # older indices have none of them
        more = about.get("passed_over", {}), tuple(about.get("formats", ()))
        values = _values(about)
        found = Index(rows, bad, about["decoded"], about["when"], archives, *more, "", *values)
        return replace(found, pages=_pages_in(about, file), part=about.get("part", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"index: {file} cannot be used ({error}); {AGAIN}") from error


def kept_aside(file: Path, fingerprint: str) -> Path:
    """Where an index of other images was kept when a scan replaced it."""
    return file.with_name(f"{stem(file)}.{fingerprint}{INDEX}")


def _is_index(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(len(_FIRST))
    return start == _FIRST or table.is_table(file)


def _is_lines(file: Path) -> bool:
    with file.open("rb") as opened:
        first = opened.read(1)
    return first == b"{" or (file.name.endswith(_LINES) and not table.is_table(file))


def _mapped(file: Path) -> Index:
    opened = table.open_table(file)
    about, entries = opened.about, opened.about["archives"]
    each = zip(*entries.values(), strict=True)
    archives = tuple(Archive(**dict(zip(entries, values, strict=True))) for values in each)
    more = about["passed_over"], tuple(about["formats"]), about["fingerprint"]
    rows, values = Rows(opened.columns), _values(about)
    known = opened.left_out, about["decoded"], about["when"], archives, *more, *values
    return Index(rows, *known, _pages_in(about, file), about.get("part", ""))


def _values(about: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[int, Measured]]:
    """Kinds and measurements; older indices have neither."""
    each = about.get("measured", {}).items()
    measured = {int(code): Measured.of_json(one) for code, one in each}
    return tuple(about.get("kinds", ())), measured


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write_lines(file: Path, index: Index) -> Index:
    codes = {row.kind for row in index.rows}
    index = replace(index, when=_now(), kinds=tuple(sorted(codes)) if any(codes) else ())
    file.parent.mkdir(parents=True, exist_ok=True)
    lines.write(quarantine_of(file), sorted(index.left_out.items()))
    lines.write_index(file, _about(index), index.archives, index.left_out, index.rows)
    return index


def _about(index: Index) -> dict[str, Any]:
    return {
        "when": index.when,
        "decoded": index.decoded,
        "passed_over": dict(sorted(index.passed_over.items())),
        "formats": index.formats,
        "kinds": index.kinds,
        "measured": {str(code): one.to_json() for code, one in sorted(index.measured.items())},
        "pages": index.pages,
        "part": index.part,
        "numbering": _NUMBERING,
    }


def _pages_in(about: Mapping[str, Any], file: Path) -> str:
    """What a scan took pages for; warns where it numbered them otherwise."""
    pages: str = about.get("pages", "")
    if pages == "images" and about.get("numbering", 1) < _NUMBERING:
        logger.warning(
            "%s was written when overviews of GeoTIFF were images, and planes of one series alone "
            "of OME-TIFF: where there are such files, scan again",
            file,
        )
    return pages


def _keep_aside(file: Path, fingerprint: str) -> None:
    """Keeps a large index that is about to be replaced by one of other images: runs refer to it."""
    try:
        before = table.open_table(file).about
    except (OSError, ValueError, KeyError):
        return
    if before["images"] < MANY or before["fingerprint"] == fingerprint:
        return
    aside = kept_aside(file, before["fingerprint"])
    with suppress(OSError):  # a file system without links: those runs will say what is missing
        os.link(file, aside)
        logger.warning("%s is the index of before; remove it once no run goes on with it", aside)
