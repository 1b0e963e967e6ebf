"""Names of images, before any is opened: below a folder, or in tar shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastequi.data.encoded import EXTENSIONS, Span, is_image_name

HIDDEN = ".fastequi"  # the folder beside images that holds their index; the walk passes it over


@dataclass(frozen=True)
class Archive:
    """A tar file as it was when its members were listed: tar pads, so its size alone says little.

    Attributes:
        name: relative to the listing's root.
        bytes: its size.
        mtime_ns: when it was last written.
    """

    name: str
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, root: Path, path: str) -> Archive:
        told = os.stat(path)
        return cls(os.path.relpath(path, root), told.st_size, told.st_mtime_ns)


@dataclass(frozen=True)
class Listing:
    """Encoded images in a fixed order.

    Attributes:
        root: the folder that names are relative to.
        names: sorted; a member's begins with its shard's.
        index: where their index is kept unless another place is named.
        spans: of members, their places within their shards; None for files.
        shards: of members, the shard of each.
        archives: the shards, as they are now.
        left_out: {name: reason} of what listing alone shows to be damaged.
    """

    root: Path
    names: list[str] = field(repr=False)
    index: Path
    spans: list[Span] | None = field(default=None, repr=False)
    shards: list[str] = field(default_factory=list, repr=False)
    archives: tuple[Archive, ...] = field(default=(), repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        """The file that holds image i."""
        return os.path.join(self.root, self.names[i] if self.spans is None else self.shards[i])

    def span(self, i: int) -> Span | None:
        """Its place in that file; None for all of it."""
        return None if self.spans is None else self.spans[i]


def folder_listing(folder: Path) -> Listing:
    """All images below a folder, any case of the extension; links are followed, not in circles.

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
                others[os.path.splitext(name)[1].lower() or name] += 1
    if not found:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in others.most_common(5))
        hint = f"; tar shards are named by a pattern: {folder}/*.tar" if others[".tar"] else ""
        raise ValueError(
            f"image folder: no image in {folder}: looked for {' '.join(EXTENSIONS)} in it and "
            f"below, found {f'only {kinds}' if kinds else 'no file at all'}{hint}"
        )
    return Listing(folder, sorted(found), folder / HIDDEN / "index.jsonl")
