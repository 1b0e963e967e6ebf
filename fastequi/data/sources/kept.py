"""The images at a run's start: a resumed run keeps their numbers, even if files have changed.

Sample ids are indices in the list of images. A file that is lost during the run is replaced, also
after a resume; files that are added later are not used.

Of fewer than a million images the run's folder holds the list. Of more it holds their number, their
digest and which index they are all of (`fastequi data scan` keeps that index aside when it finds
others); or, where they are not all of one index, a mapped file of their names and sizes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastequi.atomic import replace_text
from fastequi.data.sources import index as indices
from fastequi.data.sources import table
from fastequi.data.sources.changes import Some
from fastequi.data.sources.columns import Columns
from fastequi.data.sources.images import Source
from fastequi.data.sources.made_texts import Patched, places_of
from fastequi.data.sources.parts import image_of, parsed
from fastequi.data.sources.texts import Names, Texts, chunks, taken
from fastequi.data.sources.tolerance import Tolerance

logger = logging.getLogger(__name__)

_LOOKED_AT = 1000  # names, of those that may be pages
NAME = "images.jsonl"  # in a run's folder
REFERENCE = "images.json"  # there instead, of many images
_OWN = "images.fei"  # their names and sizes, where no index has exactly them


@dataclass(frozen=True)
class Begun:
    """A run's images as they were at its start: [n] names and [n, 2] sizes in pixels."""

    names: Sequence[str]
    sizes: NDArray[np.int32]


def keep(file: Path, source: Source) -> None:
    """Writes a run's images, one JSON list [name, height, width] a line, unless they are there.

    Of `index.MANY` or more it writes a reference beside it instead.
    """
    reference = file.with_name(REFERENCE)
    if file.is_file() or reference.is_file():
        return
    if len(source) < indices.MANY:
        rows = zip(source.names, source.sizes.tolist(), strict=True)
        replace_text(file, "".join(json.dumps([name, *size]) + "\n" for name, size in rows))
        return
    whole = source.whole_index
    if whole is None:
        _write_own(file.with_name(_OWN), source)
    index = _OWN if whole is None else os.path.abspath(whole.file)
    about = {"images": len(source), "fingerprint": source.fingerprint(), "index": index}
    replace_text(reference, json.dumps(about) + "\n")


def as_begun(file: Path, source: Source, tolerate: float) -> Source:
    """The source as it was at the run's start; unchanged if no file was kept.

    Args:
        file: written by :func:`keep`, or where it would have been.
        source: the images now.
        tolerate: share of images that may be missing; they cannot be decoded, and are replaced.

    Raises:
        ValueError: more of them are missing, or one has another size in pixels; or the index that
            says so is gone.
    """
    begun = _begun(file, source)
    if begun is None:
        return source
    names, sizes = begun.names, begun.sizes
    if names == source.names and np.array_equal(sizes, source.sizes):
        return source
    places = places_of(names, source.names)
    lost = np.flatnonzero(places < 0)
    there = np.flatnonzero(places >= 0)
    other = there[(sizes[there] != source.sizes[places[there]]).any(1)]
    if len(other) or len(lost) > Tolerance(tolerate).allowed(len(names)):
        some, what = (other, "of another size") if len(other) else (lost, "gone")
        said = f"{_named(taken(names, some))} {what}"
        pages = _of_other_pages(taken(names, lost), source.names)
        if not len(there) and not pages:
            raise ValueError(
                f"--data: expected the place of the run's {len(names)} images ({Some(names)}), "
                f"got another one with {len(source)} ({Some(source.names)}), none of which has the "
                f"name of one of them; they are listed in {file.parent}"
            )
        raise ValueError(f"cannot continue: of the {len(names)} images of the run {said}{pages}")
    gone = taken(names, lost)
    if len(gone):
        logger.warning("images of the run that are gone, and will be replaced: %s", Some(gone))
    if new := len(source) - len(there):
        logger.info("%d images were added after the run began and are not used", new)
    folder = source.paths[0].removesuffix(source.names[0])
    at = {i: folder + name for i, name in zip(lost.tolist(), gone, strict=True)}
    known = source.paths if isinstance(source.paths, Texts) else Names.of(source.paths)
    paths = Patched(known.take(np.maximum(places, 0)), at)
    spans = source.spans
    if spans is not None:
        spans = spans[np.maximum(places, 0)]
        spans[lost] = 0, 1
    kinds = None if source.kinds is None else source.kinds[np.maximum(places, 0)]
    return replace(source, paths=paths, names=names, sizes=sizes, spans=spans, kinds=kinds)


def _of_other_pages(lost: Sequence[str], names: Sequence[str]) -> str:
    """How images are there again that are lost since pages are taken for something else now, or
    other arrays of files."""
    begun = dict(map(parsed, islice(lost, _LOOKED_AT)))
    for name in names:
        file, now = parsed(name)
        then = begun.get(file, now)
        how = []
        if (then.page is None) != (now.page is None):
            how = ["--pages", "first" if then.page is None else "images"]
        if then.planes != now.planes:
            how += ["--axes", "chw" if then.planes else "hwc"]
        if then.array != now.array:
            how += ["--array", repr(then.array)]
        if then.nodata != now.nodata:
            how += ["--nodata", then.nodata or "none"]
        if how:
            return f"; fastequi data scan PLACE {' '.join(how)} takes images as the run did"
    return ""


def count(folder: Path) -> int | None:
    """How many images a run began with; None if nothing was kept."""
    if (folder / NAME).is_file():
        with (folder / NAME).open("rb") as lines:
            return sum(1 for _ in lines)
    if (folder / REFERENCE).is_file():
        return int(json.loads((folder / REFERENCE).read_text())["images"])
    return None


def seen(where: Path, source: Source) -> int | None:
    """How many images of a source have the file name and the size of one that a run trained on.

    Args:
        where: the run's folder, that of one of its checkpoints, or its model.safetensors.
        source: images for testing.

    Returns:
        None if nothing was kept of the run's, or its index is gone.
    """
    folders = (where.parent,) if where.is_file() else (where, where.parent.parent)
    folder = next((f for f in folders if count(f) is not None), None)
    if folder is None:
        return None
    try:
        begun = _begun(folder / NAME, None)
    except ValueError as error:
        logger.warning("%s", error)
        return None
    if begun is None:
        return None
    wanted = list(_short(Begun(source.names, source.sizes)))
    left = set(wanted)
    found = {image for image in _short(begun) if image in left}
    return sum(image in found for image in wanted)


def _begun(file: Path, source: Source | None) -> Begun | None:
    """What :func:`keep` wrote; None if it wrote nothing, or if the source has the same digest."""
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        sizes = np.array([row[1:] for row in rows], np.int32).reshape(-1, 2)
        return Begun(Names.of(row[0] for row in rows), sizes)
    reference = file.with_name(REFERENCE)
    if not reference.is_file():
        return None
    about = json.loads(reference.read_text())
    if source is not None and source.fingerprint() == about["fingerprint"]:
        return None
    index, digest = file.parent / about["index"], about["fingerprint"]
    how = []
    for one in (index, indices.kept_aside(index, digest)):
        try:
            opened = table.open_table(one)
        except (OSError, ValueError) as error:
            how.append(f"{one.name}: {error}")
            continue
        if (now := opened.about["fingerprint"]) == digest:
            return Begun(opened.columns.names, opened.columns.sizes)
        how.append(f"{one.name} has digest {now}, expected {digest}")
    there = "" if source is None else f"; now there are {len(source)}"
    raise ValueError(
        f"cannot continue: the run began with {about['images']} images{there}, and what changed "
        f"cannot be said, as the index they were all of is gone from {index.parent} "
        f"({'; '.join(how)}): put it back, or begin a new run"
    )


def _write_own(file: Path, source: Source) -> None:
    sizes = iter(range(0, len(source), 1 << 14))

    def parts() -> Iterator[Columns]:
        for names in chunks(source.names):
            some = source.sizes[(start := next(sizes)) : start + len(names)]
            yield Columns(Names.of(names), np.zeros(len(names), np.int64), some)

    size = sum(len(name.encode(errors="surrogateescape")) for name in source.names)
    with table.writing(file, {}, parts(), (len(source), size)):
        pass


def _short(images: Begun) -> Iterator[tuple[str, int, int]]:
    """File name without folders, height and width of each."""
    start = 0
    for names in chunks(images.names):
        sizes = images.sizes[start : start + len(names)].tolist()
        for name, (height, width) in zip(names, sizes, strict=True):
            yield os.path.basename(image_of(name)), height, width
        start += len(names)


def _named(names: Sequence[str]) -> str:
    some = Some(names)
    return f"{some.count} ({some}) {'is' if some.count == 1 else 'are'}"
