"""JSON lines: the form of an index that scans wrote before, and of its quarantine.

A header; a list [name, reason] for every image left out; one for every image: name, bytes, height,
width, SHA-256 prefix and, if they are known, its first byte in its shard and what its values are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fastequi.atomic import replacing
from fastequi.data.sources.columns import Row
from fastequi.data.sources.listing import Archive

_VERSION = 1


def write_index(
    file: Path,
    about: Mapping[str, Any],
    archives: Sequence[Archive],
    left_out: Mapping[str, str],
    rows: Sequence[Row],
) -> None:
    """Writes an index aside and renames it; `about` is of JSON values."""
    width = 7 if about["kinds"] else 6 if archives else 5
    header = {
        "fastequi index": _VERSION,
        **about,
        "left_out": len(left_out),
        "images": len(rows),
        "columns": list(Row.__annotations__)[:width],
        "archives": [asdict(archive) for archive in archives],
    }
    write(file, chain([header], sorted(left_out.items()), (row[:width] for row in rows)))


def read_index(
    file: Path,
) -> tuple[dict[str, Any], tuple[Archive, ...], dict[str, str], list[Row]]:
    """What was written: the header, the shards, what is left out and the rows.

    Raises:
        ValueError, KeyError, TypeError: it is damaged or of another version.
    """
    with file.open(encoding="ascii") as lines:
        about = json.loads(next(lines, ""))
        if about["fastequi index"] != _VERSION:
            raise ValueError(f"version {about['fastequi index']}, expected {_VERSION}")
        bad = dict(map(json.loads, islice(lines, about["left_out"])))
        rows = [Row(*json.loads(line)) for line in lines]
    for what, found in (("left_out", bad), ("images", rows)):
        if len(found) != about[what]:
            raise ValueError(f"{len(found)} {what}, expected {about[what]}")
    return about, tuple(Archive(**entry) for entry in about["archives"]), bad, rows


def write(file: Path, lines: Iterable[Any]) -> None:
    """Writes JSON values, one a line, aside and renames the file."""
    # names that are no UTF-8 are escaped
    with replacing(file, shared=True) as temporary, temporary.open("w", encoding="ascii") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
