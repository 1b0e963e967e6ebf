"""Names of images, before any is opened: below a folder, in a list file, or in tar shards.

A list file (.txt) has one image per line: a path relative to the list and optionally, after a tab,
its class. Empty lines and lines that begin with "#" are ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import dicom, pages
from fastequi.data.sources.encoded import (
    ARRAYS,
    EXTENSIONS,
    NPZ_ARRAY,
    Span,
    counted,
    format_of,
    is_array_name,
    is_image_name,
    kind_of,
    marks_of,
    read,
)
from fastequi.data.sources.kinds import PLANES
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.member_file import opened_span
from fastequi.data.sources.parts import WHOLE, FilePart, file_of, name_of, part_of, split
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.texts import Names, chunks, taken
from fastequi.data.sources.trouble import patiently, raise_trouble

HIDDEN = ".fastequi"  # the folder beside images that holds their index; the walk passes it over
INDEX = ".fei"  # ends the name of an index
CHUNK = 1 << 14  # names that patterns are matched with at once


class Reads(Protocol):
    """Reads members of shards by the shards' URLs."""

    def read(self, url: str, span: Span, part: FilePart = WHOLE) -> NDArray[np.uint8]: ...

    def member(self, url: str, span: Span) -> BinaryIO: ...


@dataclass(frozen=True)
class Archive:
    """A tar file's state when its members were listed; tar pads, so its size alone says little.

    Attributes:
        name: relative to the listing's root.
        bytes: its size.
        mtime_ns: when it was last written; 0 of a remote one.
        etag: what names the version of a remote one (`fastequi.data.sources.remote.State`).
    """

    name: str
    bytes: int
    mtime_ns: int
    etag: str = ""

    @classmethod
    def of(cls, root: Path, path: str) -> Archive:
        status = os.stat(path)
        return cls(os.path.relpath(path, root), status.st_size, status.st_mtime_ns)

    @property
    def version(self) -> int:
        """Changes when it is written again: the time, or a number of the etag."""
        digest = hashlib.sha256(self.etag.encode()).digest()
        return int.from_bytes(digest[:7], "big") if self.etag else self.mtime_ns


class State(NamedTuple):
    """An image as it is now: encoded bytes, and when its file was last written; -1: unknown."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """Encoded images in a fixed order.

    Attributes:
        root: the folder, or the URL, that names are relative to.
        names: sorted; a member's begins with its shard's.
        index: where their index is kept unless another place is named.
        spans: of members, their places within their shards; None for files.
        shards: of members, the shard of each.
        archives: the shards, as they are now.
        left_out: {name: reason} of damage found while listing.
        passed_over: {kind: files} of files that are not images by their names.
        remote: what reads the shards behind URLs; None of files on this machine.
        pages_are_channels: whether all pages of a TIFF are channels of one image.
    """

    root: Path | str
    names: Sequence[str] = field(repr=False)
    index: Path
    spans: Sequence[Span] | NDArray[np.int64] | None = field(default=None, repr=False)
    shards: Sequence[str] = field(default=(), repr=False)
    archives: tuple[Archive, ...] = field(default=(), repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)
    remote: Reads | None = field(default=None, repr=False)
    pages_are_channels: bool = False
    _marks: dict[tuple[str, Span | None], list[str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.names)

    def only(self, patterns: Patterns) -> Listing:
        """What patterns choose; members by their path in the shard."""
        if not patterns:
            return self
        wanted = [np.zeros(0, bool)]
        for start, names in zip(range(0, len(self), CHUNK), chunks(self.names, CHUNK), strict=True):
            inside: Sequence[str] = names
            if self.spans is not None:
                both = zip(names, self.shards[start : start + CHUNK], strict=True)
                inside = [name[len(shard) + 1 :] for name, shard in both]
            wanted.append(np.array(patterns.chosen(inside), bool))
        return self.take(np.flatnonzero(np.concatenate(wanted)))

    def take(self, places: NDArray[np.int64]) -> Listing:
        """The images at these places."""
        if self.spans is None:
            return replace(self, names=taken(self.names, places))
        spans = np.asarray(self.spans, np.int64).reshape(-1, 2)[places]
        names, shards = taken(self.names, places), taken(self.shards, places)
        return replace(self, names=names, spans=spans, shards=shards)

    def of_part(self, part: FilePart) -> Listing:
        """With a part of each file that has one."""
        names = Names.of(name_of(name, part) for name in self.names)
        in_order = self.spans is not None or all(a <= b for a, b in pairwise(names))
        return replace(self, names=names if in_order else Names.of(sorted(names)))

    def path(self, i: int) -> str:
        """The file that holds image i."""
        return os.path.join(self.root, self.names[i] if self.spans is None else self.shards[i])

    def span(self, i: int) -> Span | None:
        """Its place in that file; None for all of it."""
        if self.spans is None:
            return None
        first, count = self.spans[i]
        return int(first), int(count)

    def state(self, i: int) -> State:
        """Of image i; of a member with its shard's time when it was listed."""
        span = self.span(i)
        if span is not None:
            return State(span[1], self._times[self.shards[i]])
        try:
            status = patiently(os.stat, split(self.path(i))[0])
        except OSError as error:
            raise_trouble(error)
            return State(-1, -1)  # reading it will say why
        return State(status.st_size, status.st_mtime_ns)

    @cached_property
    def _times(self) -> dict[str, int]:
        return {archive.name: archive.version for archive in self.archives}

    def read(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image i; raises OSError as `encoded.read` does."""
        span = self.span(i)
        part = WHOLE if span is None else part_of(self.names[i])
        if self.remote is not None and span is not None:
            return self.remote.read(self.path(i), span, part)
        return read(self.path(i), span, part)

    def marks(self, i: int) -> list[str]:
        """Of image i, if it is a part of a file, the marks of the file's format by its first page,
        and those of how it is read; see `encoded.Header`. Raises OSError as :meth:`read` does."""
        span = self.span(i)
        file, part = split(self.path(i)) if span is None else (self.path(i), WHOLE)
        if span is not None:
            part = part_of(self.names[i])
        if part == WHOLE:
            return []
        if is_array_name(os.path.basename(file_of(self.names[i]))) and part.page is None:
            form = [NPZ_ARRAY] * (format_of(file_of(self.names[i])) == "NPZ")
            return form + [PLANES] * part.planes
        if part.page is None:
            return self._marks_of(file, span, part)
        if (key := (file, span)) not in self._marks:  # of many pages alike
            self._marks[key] = self._marks_of(file, span, part)
        return self._marks[key]

    def _marks_of(self, file: str, span: Span | None, part: FilePart) -> list[str]:
        if self.remote is not None and span is not None:
            return marks_of(self.remote.member(file, span), part)
        with opened_span(file, span) as opened:
            return marks_of(opened, part)

    def pages(self, i: int) -> int:
        """How many file i has, or its frames; see :func:`fastequi.data.sources.pages.count`."""
        span = self.span(i)
        if self.remote is not None and span is not None:
            return pages.count_in(self.remote.member(self.path(i), span))
        return pages.count(self.path(i), span)


def folder_listing(folder: Path) -> Listing:
    """All images below a folder, any case of the extension; links are followed, but not in cycles.

    Where there is none by its name, files without an extension are opened: DICOM is taken.

    Raises:
        ValueError: none is there.
        OSError: a folder cannot be listed.
    """
    # folders within, and images joined by "/"; and the same of arrays, and of what may be DICOM
    held: dict[str, tuple[list[str], str]] = {}
    arrays: dict[str, tuple[list[str], str]] = {}
    bare: dict[str, str] = {}
    others, seen = Counter[str](), set[str]()

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        # sorted, so that of two ways to one folder the same is taken everywhere
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(parent, folder)
        images, beside, unnamed = [], [], []
        for name in files:
            if is_image_name(name):
                images.append(name)
            elif is_array_name(name):
                beside.append(name)
            elif dicom.may_be_named(name):
                unnamed.append(name)
            else:
                others[kind_of(name)] += 1
        within = "" if below == os.curdir else f"{below}/"
        held[within], arrays[within] = (
            (list(folders), "/".join(found)) for found in (images, beside)
        )
        if unnamed:
            bare[within] = "/".join(unnamed)
    names = Names.of(_sorted(held, ""))
    if names:
        others.update(f"{kind_of(name)} beside images" for name in _sorted(arrays, ""))
        others.update(kind_of(name) for some in bare.values() for name in some.split("/"))
    else:
        for within, some in bare.items():
            are = {n: dicom.holds_dicom(f"{folder}/{within}{n}") for n in some.split("/")}
            others.update(kind_of(name) for name, is_one in are.items() if not is_one)
            folders, known = arrays[within]
            found = [name for name, is_one in are.items() if is_one]
            arrays[within] = folders, "/".join(filter(None, [known, *found]))
        names = Names.of(_sorted(arrays, ""))
    if not names:
        hint = f"; tar shards are named by a pattern: {folder}/*.tar" if others[".tar"] else ""
        raise ValueError(
            f"image folder: no image in {folder}: looked for {' '.join(EXTENSIONS + ARRAYS)} in it "
            f"and below, found {f'only {counted(others)}' if others else 'no file at all'}{hint}"
        )
    return Listing(folder, names, folder / HIDDEN / f"index{INDEX}", passed_over=others)


def _sorted(held: Mapping[str, tuple[list[str], str]], below: str) -> Iterator[str]:
    """The names below a folder, as they would be sorted, but one folder at a time."""
    folders, images = held.get(below, ([], ""))  # a link that was passed over holds nothing
    for name in sorted([*(f"{name}/" for name in folders), *filter(None, images.split("/"))]):
        if name.endswith("/"):
            yield from _sorted(held, below + name)
        else:
            yield below + name


def is_list(data: Path) -> bool:
    """Whether this names a list file."""
    return data.suffix.lower() == ".txt" and not data.is_dir()


def list_listing(file: Path) -> Listing:
    """The images that a list file names, each once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names no image, or is no text.
    """
    names, arrays, bare, others = set[str](), list[str](), list[str](), Counter[str]()
    for name in listed(file):
        base = os.path.basename(name)
        if is_image_name(base):
            names.add(name)
        elif is_array_name(base):
            arrays.append(name)
        elif dicom.may_be_named(base):
            bare.append(name)
        else:
            others[kind_of(base)] += 1
    if names:
        others.update(f"{kind_of(os.path.basename(name))} beside images" for name in arrays)
    else:
        names.update(arrays, (n for n in bare if dicom.holds_dicom(os.path.join(file.parent, n))))
        bare = [name for name in bare if name not in names]
    others.update(kind_of(os.path.basename(name)) for name in bare)
    if not names:
        found = f"only {counted(others)}" if others else "no line at all"
        raise ValueError(
            f"list: no image in {file}: expected a path a line, relative to {file.parent}, that "
            f"ends with {' '.join(EXTENSIONS + ARRAYS)}; found {found}"
        )
    index = file.parent / HIDDEN / f"{file.name}{INDEX}"
    return Listing(file.parent, Names.of(sorted(names)), index, passed_over=others)


def listed(file: Path) -> dict[str, str]:
    """The entries of a list file: {path relative to its folder: the class after a tab, or ""}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, names a URL, or an image twice with different classes.
    """
    if not file.is_file():
        raise FileNotFoundError(f"list: {file} does not exist")
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise OSError(f"list: {file} cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise ValueError(f"list: {file} is no text file")
    found: dict[str, str] = {}
    top = os.path.abspath(file.parent)
    for number, line in enumerate(text.split("\n"), 1):
        place, _, label = (part.strip() for part in line.partition("\t"))
        if not place or place.startswith("#"):
            continue
        place = os.path.expanduser(expect_local(f"list: {file}, line {number}", place))
        name = os.path.relpath(os.path.join(top, place), top)
        if found.setdefault(name, label) != label:
            raise ValueError(
                f"list: {file}, line {number}: {name} has class {label!r} here, and "
                f"{found[name]!r} in a line before"
            )
    return found
