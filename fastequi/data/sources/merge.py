"""The index of parts that were scanned one after the other or on many machines."""

from __future__ import annotations

import glob
import os
import platform
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastequi.data.sources.columns import Columns, Row, Rows, of_many
from fastequi.data.sources.index import Index, read, stem, write_parts
from fastequi.data.sources.journal import End, end_of, rows_of, values_of
from fastequi.data.sources.measured import Counts, added
from fastequi.data.sources.parts import part_named
from fastequi.data.sources.trouble import raise_trouble

_SCAN = "fastequi data scan --part K/N makes them"


def parts_beside(index: Path) -> list[Path]:
    """The journals of parts that lie beside an index.

    Raises:
        FileNotFoundError: there is none.
    """
    form = re.compile(rf"{re.escape(stem(index))}\.part-(\d+)-of-(\d+)\.jsonl")
    beside = index.parent.iterdir() if index.parent.is_dir() else ()
    found = sorted(
        (int(match[2]), int(match[1]), path)
        for path in beside
        if (match := form.fullmatch(path.name))
    )
    if not found:
        raise FileNotFoundError(f"merge: no part lies beside {index}; {_SCAN}")
    return [path for *_, path in found]


def merge(index: Path, journals: Sequence[Path]) -> tuple[Index, dict[str, int]]:
    """Writes the index of journals that make up a set, and removes them.

    Args:
        index: replaced, with its quarantine; kept where it has images and the journals have none.
        journals: in any order.

    Returns:
        The index, mapped, and {a format as headers have it: images}.

    Raises:
        ValueError: a part is not finished, missing, of another set, or overlaps with another; each
            is named.
        OSError: the folder cannot be written.
    """
    ends = _in_order(journals)
    archives = tuple(archive for end, _ in ends for archive in end.archives)
    left_out: dict[str, str] = {}
    passed_over, formats, kinds = Counter[str](), Counter[str](), set[int]()
    for end, _ in ends:
        left_out |= end.left_out
        formats.update(end.formats)
        kinds.update(end.kinds)
        if end.unit == "shards":
            passed_over.update(end.passed_over)
    if ends[0][0].unit == "images":  # each part walked the whole folder
        passed_over.update(ends[0][0].passed_over)

    def rows() -> Iterator[Row]:
        for _, file in ends:
            for row in rows_of(file):
                if isinstance(row, Row):
                    yield row
                else:
                    left_out[row[0]] = row[1]

    _clear(index)
    count = sum(end.images for end, _ in ends), sum(end.name_bytes for end, _ in ends)
    names = tuple(sorted(formats))
    whole = Index([], left_out, True, "", archives, dict(passed_over), names)
    values: dict[int, Counts] = {}
    for _, file in ends:
        for some in values_of(file):
            added(values, some)
    measured = {code: counts.measured() for code, counts in values.items()}
    pages, part = ends[0][0].pages, ends[0][0].part  # with other ones it is another set
    whole = replace(whole, kinds=tuple(sorted(kinds)), measured=measured, pages=pages, part=part)
    if count[0] or not _has_images(index):
        write_parts(index, whole, of_many(rows(), archives), count)
        whole = read(index)
    else:  # which is worth more than one without
        for _ in rows():  # what is left out
            pass
        whole = replace(whole, rows=Rows(Columns.of_rows([], archives)))
    for _, file in ends:
        file.unlink()
    return whole, dict(formats.most_common())


def _has_images(index: Path) -> bool:
    try:
        return len(read(index).rows) > 0
    except (OSError, ValueError) as error:
        raise_trouble(error)
        return False


def _clear(index: Path) -> None:
    """Removes what a process of this machine left behind that was killed while it merged."""
    for left in index.parent.glob(f".{glob.escape(index.name)}.{platform.node()}.*.tmp"):
        try:
            os.kill(int(left.suffixes[-2][1:]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (PermissionError, ValueError):  # another's process; another's file
            pass


def _in_order(journals: Sequence[Path]) -> list[tuple[End, Path]]:
    """The ends of journals that are finished, of one set, and make it up."""
    found = [(end_of(file), file) for file in journals]
    if begun := [file.name for end, file in found if end is None]:
        raise ValueError(f"merge: not finished: {', '.join(begun)}; scan that part again")
    ends = sorted(
        ((end, file) for end, file in found if end is not None),
        key=lambda one: (one[0].first, one[0].stop),
    )
    first = ends[0][0]
    for end, _ in ends:
        if (end.pages, end.part) != (first.pages, first.part):
            raise ValueError(
                f"merge: {end.words} was scanned with {_options(end)}, and {first.words} with "
                f"{_options(first)}; scan one of them again"
            )
    known = (first.unit, first.total, first.digest)
    if others := [end.words for end, _ in ends if (end.unit, end.total, end.digest) != known]:
        raise ValueError(
            f"merge: {', '.join(others)} not of the set of {first.words} ({first.total} "
            f"{first.unit}): images or patterns changed in between; scan them again"
        )
    missing, at = [], 0
    for (end, _), (before, _) in zip(ends, [ends[0], *ends], strict=False):
        if end.first < at:
            raise ValueError(f"merge: {before.words} and {end.words} overlap; remove one of them")
        if end.first > at:
            missing.append((at, end.first))
        at = end.stop
    if at < first.total:
        missing.append((at, first.total))
    if missing:
        raise ValueError(f"merge: missing {_missing([end for end, _ in ends], missing)}; {_SCAN}")
    return ends


def _options(end: End) -> str:
    return f"--pages {end.pages} {part_named(end.part).options}"


def _missing(ends: Sequence[End], gaps: Sequence[tuple[int, int]]) -> str:
    """The parts that are not there; where they were not cut alike, the units."""
    counts = {end.share[1] for end in ends}
    if len(counts) > 1:
        return ", ".join(f"{ends[0].unit} {a} to {b - 1}" for a, b in gaps)
    (count,) = counts
    left = sorted(set(range(1, count + 1)) - {end.share[0] for end in ends})
    return ", ".join(f"part {number}/{count}" for number in left)
