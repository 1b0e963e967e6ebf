"""WebDataset shards: images are read from tar files without unpacking them.

The members are listed once (the index keeps their positions, `fastequi.data.sources.index`); then
every image is a span of a file, with random access. Labels and texts beside the images are passed
over. Of members with the same name the last one counts, as when unpacking.

Of a damaged archive the members before the damage are used; the shard is listed as left out.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastequi.data.sources import dicom
from fastequi.data.sources.encoded import (
    ARRAYS,
    EXTENSIONS,
    Span,
    counted,
    is_array_name,
    is_image_name,
    kind_of,
)
from fastequi.data.sources.listing import HIDDEN, INDEX, Archive, Listing
from fastequi.data.sources.made_texts import Numbered
from fastequi.data.sources.parts import WHOLE, part_of
from fastequi.data.sources.texts import GrowingNames
from fastequi.data.sources.trouble import is_trouble

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
PATTERN = re.compile(r"[*?\[]|\{\d+\.\.\d+\}")
_TAR = {".tar", ".tgz", ".tbz2", ".txz"}
_NAMES: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
OF_LABELS = ".cls", ".json"  # of classes, in WebDataset's shards
_LABEL_BYTES = 1 << 20  # a file beside an image that is larger names no class
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def is_shards(data: Path) -> bool:
    """Whether this names tar files rather than a folder: a file, a glob or a brace range."""
    if data.exists():
        return data.is_file() and (
            ".tar" in data.suffixes or data.suffix in (".tgz", ".tbz", ".txz")
        )
    return PATTERN.search(str(data)) is not None


def shard_listing(data: Path, chosen: slice | None = None) -> Listing:
    """The images in the shards that a pattern names.

    Args:
        data: a tar file, a glob ("shards/*.tar") or a brace range ("shards/{000..012}.tar"), of
            which every one has to be there.
        chosen: of the shards in their order; their images may then be none.

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: a shard is compressed or no tar file, or there is no image in any.
    """
    paths = _expand(data)[chosen or slice(None)]
    root, label = _root(data)
    names, of, spans = GrowingNames(), array("i"), array("q")
    left_out: dict[str, str] = {}
    others = Counter[str]()
    archives, with_arrays = tuple(Archive.of(root, path) for path in paths), False
    for number, (path, archive) in enumerate(zip(paths, archives, strict=True)):
        with open(path, "rb") as file:
            found, bad = members(file, others)
        if bad:
            left_out[archive.name] = bad
        with_arrays |= bool(found) and is_array(next(iter(found)))
        for member in sorted(found):
            name, place = f"{archive.name}/{member}", found[member]
            if isinstance(place, str):
                left_out[name] = place
                continue
            names.append(name)
            of.append(number)
            spans.extend(place)
    if not names and chosen is None:
        damage = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        kinds = f"only {counted(others)}" if others else "no member at all"
        raise ValueError(
            f"shards: no image in {data}: looked for {' '.join(EXTENSIONS + ARRAYS)}, found "
            f"{kinds}{f' ({damage})' if damage else ''}"
        )
    index = root / HIDDEN / f"{label}{INDEX}"
    places = np.frombuffer(spans, np.int64).reshape(-1, 2)
    shards = Numbered([archive.name for archive in archives], np.frombuffer(of, np.int32))
    whole = Listing(root, names.done(), index, places, shards, archives, left_out, others)
    return without_arrays(whole) if with_arrays else whole


def without_arrays(listing: Listing) -> Listing:
    """The images of shards of which some have none but arrays: those are labels, if any has one."""
    of_arrays = [is_array(name) for name in listing.names]
    if all(of_arrays) or not any(of_arrays):
        return listing
    others = Counter(listing.passed_over)
    places = np.flatnonzero(of_arrays)
    others.update(beside(listing.names[int(i)]) for i in places)
    kept = listing.take(np.flatnonzero(~np.array(of_arrays)))
    return replace(kept, passed_over=others)


def is_array(name: str) -> bool:
    """Whether a member that was taken is an image where there are no others: by its name, or DICOM
    that none says."""
    return not is_image_name(os.path.basename(name))


def beside(name: str) -> str:
    """The kind of an array that is passed over."""
    return f"{kind_of(os.path.basename(name))} beside images"


def shard_archives(data: Path) -> tuple[Path, tuple[Archive, ...], Path]:
    """Root, shards as they are now and the place of the index, without listing any of them."""
    root, label = _root(data)
    archives = tuple(Archive.of(root, path) for path in _expand(data))
    return root, archives, root / HIDDEN / f"{label}{INDEX}"


def _expand(data: Path) -> list[str]:
    """The files of a pattern, sorted; those of a range all exist."""
    found: list[str] = []
    for name in [str(data)] if data.exists() else ranges(str(data)):
        if os.path.isfile(name):
            found.append(name)
        elif glob.has_magic(name) and (hits := glob.glob(name)):
            found += hits
        else:
            raise FileNotFoundError(f"shards: {name} does not exist (of {data})")
    for path in found:
        with open(path, "rb") as file:
            start = file.read(8)
        expect_plain(path, start)
    return sorted(set(found))


def expect_plain(path: str, start: bytes) -> None:
    """Raises ValueError unless a name and the first bytes are those of a plain tar file."""
    kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
    if kind or not path.endswith(".tar"):
        what = f"compressed with {kind}" if kind else "no .tar file"
        raise ValueError(
            f"shards: {path} is {what}; expected plain .tar files, in which images are found "
            f"at random (JPEG and PNG do not shrink further)"
        )


def ranges(pattern: str) -> list[str]:
    """ "{08..10}" written out: "08", "09", "10"; several ranges in all combinations."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if int(last) < int(first):
        raise ValueError(f"shards: expected a range that rises, got {match.group()} in {pattern}")
    return [
        name
        for i in range(int(first), int(last) + 1)
        for name in ranges(f"{pattern[: match.start()]}{i:0{len(first)}d}{pattern[match.end() :]}")
    ]


def _root(data: Path) -> tuple[Path, str]:
    """The folder above the first part that is a pattern, and the rest as one file name."""
    if data.exists():
        return data.parent, data.name
    parts = data.parts
    first = next(i for i, part in enumerate(parts) if PATTERN.search(part))
    return Path(*parts[:first]), "%".join(parts[first:])


def members(
    file: BinaryIO, others: Counter[str], seen: Callable[[str, Span], object] = lambda *_: None
) -> tuple[dict[str, Span | str], str | None]:
    """{name: place, or why it has none} of the images, and what is wrong with the archive if so.

    Args:
        file: the archive.
        others: members that are no images are added to it, by their kind.
        seen: called with the name and place of each image, while its bytes are near.
    """
    found: dict[str, Span | str] = {}
    arrays: dict[str, Span | str] = {}
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", **_NAMES) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                name = os.path.normpath(member.name)
                if member.size < 0:  # tarfile would read the same header for ever
                    raise tarfile.ReadError(f"{name} has {member.size} bytes")
                if member.isdir():
                    continue
                base = os.path.basename(name)
                into = found
                if is_array_name(base) or _holds_dicom(file, base, member):
                    into = arrays
                if into is found and not is_image_name(base):
                    kind = kind_of(base)
                    others[f"{kind} (read for labels)" if kind in OF_LABELS else kind] += 1
                elif member.issparse() or not member.isreg():
                    into[name] = "a link or a sparse file in the archive"
                elif member.size == 0:
                    into[name] = "empty file"
                elif member.offset_data + member.size > size:
                    into[name] = f"the archive ends inside it, after {size} bytes"
                else:
                    into[name] = place = (member.offset_data, member.size)
                    seen(name, place)
            how = _end(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError, MemoryError) as error:
        # of memory a damaged header asks for more than there is
        if is_trouble(error) and not isinstance(error, MemoryError):
            raise
        how = str(error) or type(error).__name__
    if found:
        others.update(map(beside, arrays))
    else:
        found = arrays
    if not how:
        return found, None
    used = sum(not isinstance(place, str) for place in found.values())
    return found, f"damaged archive ({how}); of images before that {used or 'none'} are used"


def _holds_dicom(file: BinaryIO, base: str, member: tarfile.TarInfo) -> bool:
    """Whether a member whose name says nothing is DICOM by its bytes."""
    if not dicom.may_be_named(base) or not member.isreg() or member.issparse():
        return False
    if part_of(base) != WHOLE:  # it would be taken for a page of another
        return False
    file.seek(member.offset_data)  # where tarfile goes on it seeks again
    return dicom.is_dicom(file.read(min(dicom.START, member.size)))


def _end(file: BinaryIO, offset: int) -> str:
    """What is wrong where the members end: tarfile takes any damage for the end of the archive."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return "no mark at its end, it was cut or never finished"
    return "no header where one is expected" if block.strip(b"\0") else ""


def member_labels(shard: BinaryIO) -> dict[str, str]:
    """The classes in a WebDataset shard, by the images' keys (:func:`key`).

    A class is the text of KEY.cls, a number or a name; else "cls", "class" or "label" in KEY.json.
    """
    found: dict[str, str] = {}
    with tarfile.open(fileobj=shard, mode="r:", **_NAMES) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            kind = member.name[len(key(member.name)) :].lower() if member.isreg() else ""
            if kind not in OF_LABELS or member.size > _LABEL_BYTES:
                continue
            file = tar.extractfile(member)
            text = file.read().decode(errors="replace").strip() if file else ""
            name = key(os.path.normpath(member.name))
            if kind == ".cls":
                found[name] = text
            elif label := _labelled(text):
                found.setdefault(name, label)
    return found


def key(member: str) -> str:
    """What the files of one sample have in common: the path up to the file name's first dot."""
    folder, _, name = member.rpartition("/")
    stem = name.partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _labelled(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    given = (found.get(name) for name in ("cls", "class", "label")) if type(found) is dict else ()
    return next((str(g) for g in given if isinstance(g, str | int) and str(g)), "")
