"""Names of images, before any is opened: below a folder, in a list file, or in tar shards.

A list file (.txt) has one image per line: a path relative to the list and optionally, after a tab,
its class. Empty lines and lines that begin with "#" are ignored.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources.encoded import EXTENSIONS, Span, counted, is_image_name, kind_of, read
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.patterns import Patterns

HIDDEN = ".fastequi"  # the folder beside images that holds their index; the walk passes it over


class Reads(Protocol):
    """Reads members of shards by the shards' URLs."""

    def read(self, url: str, span: Span) -> NDArray[np.uint8]: ...


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
    """

    root: Path | str
    names: list[str] = field(repr=False)
    index: Path
    spans: list[Span] | None = field(default=None, repr=False)
    shards: list[str] = field(default_factory=list, repr=False)
    archives: tuple[Archive, ...] = field(default=(), repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)
    passed_over: Mapping[str, int] = field(default_factory=dict, repr=False)
    remote: Reads | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def only(self, patterns: Patterns) -> Listing:
        """What patterns choose; members by their path in the shard."""
        if not patterns:
            return self
        inside = self.names
        if self.spans is not None:
            both = zip(self.names, self.shards, strict=True)
            inside = [name[len(shard) + 1 :] for name, shard in both]
        kept = [i for i, wanted in enumerate(patterns.chosen(inside)) if wanted]
        names, shards = ([v[i] for i in kept] for v in (self.names, self.shards or self.names))
        spans = None if self.spans is None else [self.spans[i] for i in kept]
        return replace(self, names=names, spans=spans, shards=[] if self.spans is None else shards)

    def path(self, i: int) -> str:
        """The file that holds image i."""
        return os.path.join(self.root, self.names[i] if self.spans is None else self.shards[i])

    def span(self, i: int) -> Span | None:
        """Its place in that file; None for all of it."""
        return None if self.spans is None else self.spans[i]

    def read(self, i: int) -> NDArray[np.uint8]:
        """The bytes of image i; raises OSError as `encoded.read` does."""
        span = self.span(i)
        if self.remote is not None and span is not None:
            return self.remote.read(self.path(i), span)
        return read(self.path(i), span)


def folder_listing(folder: Path) -> Listing:
    """All images below a folder, any case of the extension; links are followed, but not in cycles.

    Raises:
        ValueError: none is there.
        OSError: a folder cannot be listed.
    """
    found, others, seen = [], Counter[str](), set()

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
        for name in files:
            if is_image_name(name):
                found.append(name if below == os.curdir else os.path.join(below, name))
            else:
                others[kind_of(name)] += 1
    if not found:
        hint = f"; tar shards are named by a pattern: {folder}/*.tar" if others[".tar"] else ""
        raise ValueError(
            f"image folder: no image in {folder}: looked for {' '.join(EXTENSIONS)} in it and "
            f"below, found {f'only {counted(others)}' if others else 'no file at all'}{hint}"
        )
    return Listing(folder, sorted(found), folder / HIDDEN / "index.jsonl", passed_over=others)


def is_list(data: Path) -> bool:
    """Whether this names a list file."""
    return data.suffix.lower() == ".txt" and not data.is_dir()


def list_listing(file: Path) -> Listing:
    """The images that a list file names, each once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it names no image, or is no text.
    """
    names, others = set(), Counter[str]()
    for name in listed(file):
        if is_image_name(os.path.basename(name)):
            names.add(name)
        else:
            others[kind_of(os.path.basename(name))] += 1
    if not names:
        found = f"only {counted(others)}" if others else "no line at all"
        raise ValueError(
            f"list: no image in {file}: expected a path a line, relative to {file.parent}, that "
            f"ends with {' '.join(EXTENSIONS)}; found {found}"
        )
    index = file.parent / HIDDEN / f"{file.name}.jsonl"
    return Listing(file.parent, sorted(names), index, passed_over=others)


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
