"""Images in a fixed order, wherever they lie, and several such sets as one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastequi.data.sources.encoded import NPZ_ARRAY, is_marked, read, unmarked
from fastequi.data.sources.kinds import FILLED_TIFF, NO_RGB, PLANES
from fastequi.data.sources.measured import Measured, pooled
from fastequi.data.sources.parts import image_of, part_of
from fastequi.data.sources.remote_reader import RemoteShards
from fastequi.data.sources.table import fingerprint
from fastequi.data.sources.texts import taken
from fastequi.data.sources.tolerance import Tolerance

logger = logging.getLogger(__name__)

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
WHOLE_FILE = (0, -1)  # the span of an image that is a file, beside members of shards


class Indexed(NamedTuple):
    """All images of an index: its file, the digest of their names and sizes, and those."""

    file: Path
    fingerprint: str
    names: Sequence[str]
    sizes: NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    Attributes:
        paths: of the files they are in, sorted; any sequence, of an index a view that makes the
            strings when they are asked for (`fastequi.data.sources.texts`).
        names: the images' paths relative to their folder; a member's begins with its shard's.
        sizes: [n, 2] height, width in pixels, upright.
        region: part (x0, y0, x1, y1) of every image that may be seen, as fractions of its width
            and height. (Antialiasing reaches about a pixel beyond.)
        spans: [n, 2] first byte and number of bytes within the file, of members of tar shards, and
            WHOLE_FILE of files beside those; None where every image is a file.
        formats: names of the images' formats as headers have them, as far as they are known.
        indexed: the index that the images were taken from.
        remote: what reads the shards behind URLs; None of files on this machine.
        kinds: [n] uint16, what the images' values are (`fastequi.data.sources.kinds`); None: not
            known, as of indices that were written before.
        measured: what scans measured of the values, by kind.
        part: what of each file is the image, as the end of a name (`fastequi.data.sources.parts`);
            "" where it is all of it, or not the same of all.
        tolerance: how many may turn out to be unreadable, where the reader is not told.
    """

    paths: Sequence[str] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    sizes: NDArray[np.int32] = field(repr=False, compare=False)
    region: Region = WHOLE
    spans: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    formats: tuple[str, ...] = field(default=(), repr=False, compare=False)
    indexed: Indexed | None = field(default=None, repr=False, compare=False)
    remote: RemoteShards | None = field(default=None, repr=False, compare=False)
    kinds: NDArray[np.uint16] | None = field(default=None, repr=False, compare=False)
    measured: Mapping[int, Measured] = field(default_factory=dict, repr=False, compare=False)
    part: str = field(default="", compare=False)
    tolerance: Tolerance = field(default=Tolerance(), repr=False, compare=False)

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.region
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f"region: expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
                f"0 <= y0 < y1 <= 1, got {self.region}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def with_region(self, region: Region) -> Source:
        """The same files, seen only within `region`."""
        return replace(self, region=region)

    def pick(self, places: ArrayLike) -> Source:
        """The files at these places, in their order."""
        chosen = np.asarray(places, np.int64)
        paths, names = (taken(v, chosen) for v in (self.paths, self.names))
        spans = None if self.spans is None else self.spans[chosen]
        kinds = None if self.kinds is None else self.kinds[chosen]
        sizes = self.sizes[chosen]
        return replace(self, paths=paths, names=names, sizes=sizes, spans=spans, kinds=kinds)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the set: a hash of all names and sizes in order."""
        whole = self.whole_index
        return fingerprint(self.names, self.sizes) if whole is None else whole.fingerprint

    @property
    def whole_index(self) -> Indexed | None:
        """The index that has exactly these images in this order; None if there is none."""
        one = self.indexed
        same = one is not None and one.names is self.names and one.sizes is self.sizes
        return one if same else None

    @property
    def may_have_pages(self) -> bool:
        """Whether images may be pages of one file, which are read as NumPy's."""
        never = FILLED_TIFF, NPZ_ARRAY, PLANES
        npy = (form for form in self.formats if unmarked(form) == "NPY")
        return not self.formats or any(not is_marked(form, *never) for form in npy)

    def encoded(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image i; raises OSError as `encoded.read` does."""
        first, count = WHOLE_FILE if self.spans is None else self.spans[i].tolist()
        if count < 0:
            return read(self.paths[i])
        span, part = (first, count), part_of(self.names[i])
        if self.remote is not None:
            return self.remote.read(self.paths[i], span, part)
        return read(self.paths[i], span, part)


def united(parts: Sequence[tuple[Path, Source]]) -> tuple[Source, NDArray[np.int64]]:
    """Several sets as one, in the order of the names, whatever the order of the parts.

    Names become relative to the folder that holds all of them, so that they differ. An image that
    is in several parts (a folder named twice, or inside another) is taken once, which is logged.

    Args:
        parts: the folder that a source's names are relative to, and the source.

    Returns:
        The images, and [n] the part that each is from.
    """
    if len(parts) == 1:
        return parts[0][1], np.zeros(len(parts[0][1]), np.int64)
    roots = [os.path.abspath(root) for root, _ in parts]
    common = os.path.commonpath(roots)
    names, paths, spans, of = [], [], [], []
    seen: set[str] = set()
    for k, (root, (_, source)) in enumerate(zip(roots, parts, strict=True)):
        below, real = os.path.relpath(root, common), os.path.realpath(root)
        each = None if source.spans is None else source.spans.tolist()
        for i, name in enumerate(source.names):
            place = os.path.normpath(os.path.join(real, image_of(name)))
            if place in seen:
                continue
            seen.add(place)
            names.append(os.path.normpath(os.path.join(below, name)))
            paths.append(source.paths[i])
            spans.append(WHOLE_FILE if each is None else tuple(each[i]))
            of.append((k, i))
    if twice := sum(len(source) for _, source in parts) - len(names):
        logger.warning("%d images are named more than once and taken once", twice)
    lacking = [str(root) for root, source in parts if not source.measured]
    if 0 < len(lacking) < len(parts):
        logger.info(
            "values are measured of all places together or not at all; not scanned: %s",
            ", ".join(lacking),
        )
    order = sorted(range(len(names)), key=names.__getitem__)
    none = np.uint16(0)  # of a kind that is not known
    codes = [
        np.broadcast_to(none, len(source)) if source.kinds is None else source.kinds
        for _, source in parts
    ]
    whole = Source(
        tuple(paths[i] for i in order),
        tuple(names[i] for i in order),
        np.array([parts[k][1].sizes[i] for k, i in map(of.__getitem__, order)]).reshape(-1, 2),
        parts[0][1].region,
        None
        if all(source.spans is None for _, source in parts)
        else np.array([spans[i] for i in order], np.int64).reshape(-1, 2),
        tuple(sorted({name for _, source in parts for name in source.formats})),
        kinds=np.array([codes[k][i] for k, i in map(of.__getitem__, order)], np.uint16),
        measured=_measured([source for _, source in parts], np.bincount([k for k, _ in of])),
        tolerance=parts[0][1].tolerance,
        part=parts[0][1].part if len({source.part for _, source in parts}) == 1 else "",
    )
    return whole, np.array([of[i][0] for i in order], np.int64)


def _measured(parts: Sequence[Source], taken: NDArray[np.int64]) -> dict[int, Measured]:
    """By kind, where every set that has images of it was measured; each counts by its pixels.

    Args:
        parts: the sets.
        taken: how many images of each are in none before it; the others were not measured apart.
    """
    total = int(taken.sum())
    whole = next((source for source in parts if len(source) == total), None)
    if whole is not None:  # the others lie inside
        return dict(whole.measured)
    kept = [source for source, count in zip(parts, taken, strict=False) if count]
    if sum(map(len, kept)) != total:
        return {}
    parts = kept
    by_kind: dict[int, list[tuple[Measured | None, int]]] = {}
    for source in parts:
        if source.kinds is None:
            continue
        pixels = source.sizes.astype(np.int64).prod(1)
        codes = source.kinds & np.uint16(NO_RGB - 1)
        for code in np.unique(codes).tolist():
            count = int(pixels[codes == code].sum())
            by_kind.setdefault(code, []).append((source.measured.get(code), count))
    found = {}
    for code, each in by_kind.items():
        known = [(one, count) for one, count in each if one is not None and one.quantiles]
        if len(known) == len(each):
            found[code] = pooled(known)
    return found
