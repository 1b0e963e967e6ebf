"""The images at a run's start: a resumed run keeps their numbers, even if files have changed.

Sample ids are indices in the list of images. A file that is lost during the run is replaced, also
after a resume; files that are added later are not used.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastequi.atomic import replace_text
from fastequi.data.sources.image_sets import Source, tolerated

logger = logging.getLogger(__name__)

NAME = "images.jsonl"  # in a run's folder
_NAMED = 5


def keep(file: Path, source: Source) -> None:
    """Writes a run's images, one JSON list [name, height, width] a line, unless they are there."""
    if not file.is_file():
        rows = zip(source.names, source.sizes.tolist(), strict=True)
        replace_text(file, "".join(json.dumps([name, *size]) + "\n" for name, size in rows))


def as_begun(file: Path, source: Source, tolerate: float) -> Source:
    """The source as it was at the run's start; unchanged if no file was kept.

    Args:
        file: written by :func:`keep`.
        source: the images now.
        tolerate: share of images that may be missing; they cannot be decoded, and are replaced.

    Raises:
        ValueError: more of them are missing, or one has another size in pixels.
    """
    if not file.is_file():
        return source
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    names = tuple(row[0] for row in rows)
    sizes = np.array([row[1:] for row in rows], np.int32).reshape(-1, 2)
    if names == source.names and np.array_equal(sizes, source.sizes):
        return source
    places = {name: i for i, name in enumerate(source.names)}
    found = [places.get(name) for name in names]
    other = [
        name
        for name, i, size in zip(names, found, sizes, strict=True)
        if i is not None and not np.array_equal(source.sizes[i], size)
    ]
    gone = [name for name, i in zip(names, found, strict=True) if i is None]
    if other or len(gone) > tolerated(len(names), tolerate):
        what = f"{_named(other)} of another size" if other else f"{_named(gone)} gone"
        raise ValueError(f"cannot continue: of the {len(names)} images of the run {what}")
    if gone:
        logger.warning("of the images of the run %s gone and will be replaced", _named(gone))
    if new := len(source) - len(names) + len(gone):
        logger.info("%d images were added after the run began and are not used", new)
    folder = source.paths[0].removesuffix(source.names[0])
    paths = tuple(
        folder + name if i is None else source.paths[i]
        for name, i in zip(names, found, strict=True)
    )
    spans = source.spans
    if spans is not None:
        nothing = np.array([0, 1], np.int64)
        spans = np.stack([nothing if i is None else spans[i] for i in found])
    return replace(source, paths=paths, names=names, sizes=sizes, spans=spans)


def seen(where: Path, source: Source) -> int | None:
    """How many images of a source have the file name and the size of one that a run trained on.

    Args:
        where: the run's folder, that of one of its checkpoints, or its model.safetensors.
        source: images for testing.

    Returns:
        None if nothing was kept of the run's.
    """
    folders = (where.parent,) if where.is_file() else (where, where.parent.parent)
    file = next((f / NAME for f in folders if (f / NAME).is_file()), None)
    if file is None:
        return None
    rows = (json.loads(line) for line in file.read_text().splitlines())
    known = {(Path(name).name, *size) for name, *size in rows}
    sizes = source.sizes.tolist()
    return sum(
        (Path(name).name, *size) in known for name, size in zip(source.names, sizes, strict=True)
    )


def _named(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} ({', '.join(names[:_NAMED])}{more}) {'is' if len(names) == 1 else 'are'}"
