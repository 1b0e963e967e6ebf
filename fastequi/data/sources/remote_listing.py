"""The images in remote tar shards, listed once and kept as an index in the user's cache folder.

Listing walks every archive and reads the headers of its images in the same pass
(`fastequi.data.sources.ranged_file`), many shards at a time. A lock makes the processes of one
machine list once. The index is as that of local shards, names too, so that a run goes on from local
to remote shards and back.

With an index nothing is listed; of up to _CHECKED shards the size and version are compared at the
start. If more than a share of them changed (data.tolerate), the set is listed again, or refused if
a scan made the index. Else a shard that is gone or changed, then or later, keeps its place in the
order, and its images are replaced while reading (`fastequi.data.sources.remote_reader`): the others
keep their numbers, and a run goes on. Where a few shards are missing while listing, as on a new
machine, they are left out until they are back.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from PIL import Image

from fastequi.data.sources import index as indices
from fastequi.data.sources import remote
from fastequi.data.sources.changes import stale
from fastequi.data.sources.columns import Row
from fastequi.data.sources.encoded import (
    ARRAYS,
    EXTENSIONS,
    INVERTED_DICOM,
    Header,
    Span,
    counted,
    header,
    unmarked,
)
from fastequi.data.sources.extras import readable_now
from fastequi.data.sources.index import Index
from fastequi.data.sources.listing import INDEX, Archive, Listing
from fastequi.data.sources.made_texts import Numbered
from fastequi.data.sources.ranged_file import LEAST, RangedFile
from fastequi.data.sources.remote import Gone
from fastequi.data.sources.remote_reader import RemoteShards, same
from fastequi.data.sources.shards import PATTERN, beside, expect_plain, is_array, members, ranges
from fastequi.data.sources.trouble import Unreadable
from fastequi.kernels.toolchain import cache_folder

logger = logging.getLogger(__name__)

_THREADS = 16  # shards that are listed at a time
_CHECKED = 64  # shards, evenly spaced, that are compared with an index at the start
_NAMED = 5
_SAID_EVERY = 10.0  # seconds between lines on how far a long listing is
_BY_BEGINNING = (b"\xff\xd8", b"\x89PNG")  # JPEG and PNG: what lies ahead of the pixels is enough


class Found(NamedTuple):
    """The URL that names are relative to, where the index lies, and what it says."""

    root: str
    file: Path
    known: Index


def found(url: str, file: Path | None = None, tolerate: float = 0.0) -> Found:
    """The images of remote shards, by their index or else by listing them.

    Args:
        url: of one shard, a range of them, or a glob.
        file: the index; None: the one in the cache folder, which is made if there is none.
        tolerate: largest share of the shards that may be missing while listing.

    Raises:
        FileNotFoundError: `file` is not there, or too many shards.
        ValueError: no image in any shard, a shard is compressed, or a scan's index is out of date.
        OSError: a shard cannot be read.
        ImportError: fsspec or the package for this kind of URL is not installed.
    """
    root, _ = root_of(url)
    place = file or place_of(url)
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"index: {file} does not exist")
    with _alone(place):
        known = _read(place, made=file is None)
        if known is not None and not known.archives:
            raise ValueError(f"index: {place} is not one of tar shards")
        if known is not None and (how := _differences(known, root, url, tolerate)):
            if known.decoded:
                raise stale(place, known, how)
            logger.info("%s; the shards are listed again", how)
            known = None
        if known is not None and not known.decoded and (some := readable_now(known.left_out)):
            logger.info("of members %s; the shards are listed again", some)
            known = None
        if known is None:
            known = listed(url, tolerate)
            try:
                indices.write(place, known)
                known = indices.read(place)  # mapped
                logger.info("%d images listed in %s; kept: %s", len(known.rows), url, place)
            except OSError as error:
                logger.info("the list of members is not kept: %s", error)
    return Found(root, place, known)


def _read(place: Path, made: bool) -> Index | None:
    """The index, if it is there; a damaged one that was made on the way is made again."""
    if not place.is_file():
        return None
    try:
        return indices.read(place)
    except ValueError as error:
        if not made:
            raise
        logger.warning("%s; the shards are listed again", error)
        return None


def scanned(url: str, chosen: slice | None = None) -> Listing:
    """The images for a scan, regardless of an index.

    Args:
        url: as in :func:`found`.
        chosen: places of the shards, in their order, that are listed; None: all.

    Raises:
        As :func:`found`.
    """
    root, index = root_of(url)[0], listed(url, chosen=chosen, unread=True)
    columns, archives = index.columns, index.archives
    assert columns.of is not None
    return Listing(
        root,
        columns.names,
        place_of(url),
        columns.spans,
        Numbered([archive.name for archive in archives], columns.of),
        archives,
        index.left_out,
        index.passed_over,
        RemoteShards(root, archives),
    )


def place_of(url: str) -> Path:
    """Where the index of remote shards lies unless another place is named."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", url).strip("-")[-60:]
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_folder() / "shards" / f"{words}-{digest}{INDEX}"


def listed(
    url: str, tolerate: float = 0.0, chosen: slice | None = None, unread: bool = False
) -> Index:
    """The images in remote shards, with their headers read; those in ruins are left out.

    Args:
        url, tolerate: as in :func:`found`.
        chosen: as in :func:`scanned`.
        unread: members whose headers cannot be read stay, for a scan that says why, or reads their
            pages.

    Raises:
        As :func:`found`.
    """
    root, _ = root_of(url)
    urls = expanded(url)[chosen or slice(None)]
    _expect_answer(urls[0])
    Image.init()  # registers the formats before threads ask for them
    left_out: dict[str, str] = {}
    rows: list[Row] = []
    archives, others, formats, members_found = [], Counter[str](), set[str](), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        said = time.monotonic()
        for done, shard in enumerate(pool.map(partial(_listed, root), urls), 1):
            archives.append(shard.archive)
            members_found += len(shard.images)
            others += shard.others
            left_out |= shard.left_out
            for name, (first, count), one in shard.images:
                if isinstance(one, str) and unread:
                    rows.append(Row(name, count, 0, 0, "", first, 0))
                elif isinstance(one, str):
                    left_out[name] = one
                else:
                    rows.append(Row(name, count, one.height, one.width, "", first, one.kind))
                    formats.add(one.format)
            if time.monotonic() - said > _SAID_EVERY:
                said = time.monotonic()
                logger.info("listed %d of %d shards, %d images", done, len(urls), len(rows))
    are = [is_array(row.name) for row in rows]
    if any(are) and not all(are):  # labels of others' images, as in `shards.without_arrays`
        others.update(beside(row.name) for row, label in zip(rows, are, strict=True) if label)
        rows = [row for row, label in zip(rows, are, strict=True) if not label]
        formats = {f for f in formats if unmarked(f) not in ("NPY", "NPZ", "DICOM", INVERTED_DICOM)}
    missing = [archive.name for archive in archives if not archive.bytes and not archive.etag]
    if len(missing) > int(tolerate * len(urls)):
        raise FileNotFoundError(
            f"shards: {root}/{missing[0]} does not exist ({len(missing)} of {len(urls)} shards are "
            f"missing)"
        )
    if missing:
        logger.warning("missing and left out: shards %s", _some(missing))
    if not members_found:
        damage = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        kinds = f"only {counted(others)}" if others else "no member at all"
        raise ValueError(
            f"shards: no image in {url}: looked for {' '.join(EXTENSIONS + ARRAYS)}, found "
            f"{kinds}{f' ({damage})' if damage else ''}"
        )
    kinds_of = tuple(sorted(formats))
    return Index(rows, left_out, False, "", tuple(archives), others, kinds_of)


def _expect_answer(url: str) -> None:
    """Raises Unreachable soon where nothing answers at all: the URL may be mistyped."""
    try:
        remote.state(url, remote.GREETING)
    except remote.Unreachable as error:
        raise remote.Unreachable(
            f"shards: {error}: nothing answers there; is the URL right?"
        ) from None
    except Unreadable:
        pass  # there is a server; what it says is for those who ask further


class _Shard(NamedTuple):
    archive: Archive
    images: list[tuple[str, Span, Header | str]]
    left_out: dict[str, str]
    others: Counter[str]


def _listed(root: str, url: str) -> _Shard:
    """One shard, read while its state stays the same; one that is missing has no byte."""
    name = url.removeprefix(f"{root}/")
    try:
        state = remote.state(url)
    except Gone:
        return _Shard(Archive(name, 0, 0), [], {name: "not found"}, Counter())
    file = RangedFile(partial(remote.read, url), state.bytes)
    expect_plain(url, file.span(0, 8))
    headers: dict[str, Header | str] = {}
    others = Counter[str]()

    def seen(member: str, span: Span) -> None:
        headers[member] = _header(file, span)

    inside, bad = members(cast(BinaryIO, file), others, seen)
    if remote.state(url) != state:
        raise OSError(f"{url}: it changed while its members were listed")
    left_out = {name: bad} if bad else {}
    images = []
    for member in sorted(inside):
        place = inside[member]
        if isinstance(place, str):
            left_out[f"{name}/{member}"] = place
        else:
            images.append((f"{name}/{member}", place, headers[member]))
    return _Shard(Archive(name, state.bytes, 0, state.etag), images, left_out, others)


def _header(file: RangedFile, span: Span) -> Header | str:
    """An image's header, of its beginning where that is here and enough."""
    first, count = span
    start = file.known(first, min(count, LEAST))
    if start.startswith(_BY_BEGINNING):
        found = header(np.frombuffer(start, np.uint8))
        if not isinstance(found, str):
            return found._replace(bytes=count)
    return header(np.frombuffer(file.span(first, count), np.uint8))


def expanded(url: str) -> list[str]:
    """The shards that a URL names, sorted; those of a range are not asked for.

    Raises:
        FileNotFoundError: a glob names none; ValueError, OSError: as :func:`found`.
    """
    names: list[str] = []
    for name in ranges(url):
        if not PATTERN.search(name):
            names.append(name)
        elif hits := remote.matches(name):
            names += hits
        else:
            raise FileNotFoundError(f"shards: {name} names nothing (of {url})")
    return sorted(set(names))


def root_of(url: str) -> tuple[str, str]:
    """The URL above the first part that is a pattern, or the last one, and the rest."""
    head, _, rest = url.partition("://")
    parts = rest.split("/")
    first = next((i for i, part in enumerate(parts) if PATTERN.search(part)), len(parts) - 1)
    if first < 1:
        raise ValueError(f"shards: expected a server or bucket without a pattern, got {url}")
    return f"{head}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def _differences(known: Index, root: str, url: str, tolerate: float) -> str:
    """How shards differ from an index, as text; losses that are tolerated are only logged."""
    wanted = {one.removeprefix(f"{root}/") for one in expanded(url)}
    have = {archive.name for archive in known.archives}
    _expect_answer(f"{root}/{known.archives[0].name}")
    if new := sorted(wanted - have):
        return f"new: {_some(new)}"
    if surplus := sorted(have - wanted):
        if not re.search(r"[*\[]", url):  # a glob finds what is there; a range says it
            return f"not named by {url}: {_some(surplus)}"
        logger.warning("gone since they were listed: shards %s", _some(surplus))
    step = -(-len(known.archives) // _CHECKED)
    missed = [archive for archive in known.archives if archive.name in known.left_out]
    chosen = [one for one in {*known.archives[::step], *missed} if one.name in wanted]
    chosen.sort(key=lambda one: one.name)
    with ThreadPoolExecutor(_THREADS) as pool:
        states = list(pool.map(lambda archive: _now(root, archive), chosen))
    pairs = list(zip(chosen, states, strict=True))
    gone = [archive.name for archive, now in pairs if now is None]
    if back := [archive.name for archive, now in pairs if now and not archive.bytes]:
        return f"back: {_some(back)}"
    changed = [archive.name for archive, now in pairs if now and not same(archive, now)]
    if len(changed) > int(tolerate * len(chosen)):
        return f"changed: {_some(changed)}"
    if gone and len(gone) == len(chosen):
        raise FileNotFoundError(
            f"shards: none of the {len(gone)} that were compared can be read: {root}/{gone[0]}"
        )
    for how, names in (("cannot be read", gone), ("changed since they were listed", changed)):
        if names:
            logger.warning("%s and will be replaced: shards %s", how, _some(names))
    return ""


def _now(root: str, archive: Archive) -> remote.State | None:
    try:
        return remote.state(f"{root}/{archive.name}")
    except Unreadable:
        return None


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """The others of this machine wait for a list that is being made; without locks all make it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
