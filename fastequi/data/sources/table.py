"""The file of an index of any size: columns and a blob of names, which every process maps.

Nothing is read when it is opened but the first 64 bytes and a header in JSON at the end, so it
opens in milliseconds, and its pages are shared by all processes of a machine. Beyond its name an
image takes 32 bytes, a member of a shard 44, and two more where images are of several kinds.

    prefix    magic, version, where the header is, the file's size, checksums
    ends      [n] int64, where each name ends in the names
    sizes     [n, 2] int32, height and width
    bytes     [n] int64, of files         spans   [n, 2] int64, of members: first byte, bytes
    sha256    [n] uint64, if decoded      of      [n] int32, of members: the shard
    kinds     [n] uint16, unless all are of one, which the header says then
    names     UTF-8; other bytes as they are
    left_out  a JSON object {name: reason}
    header    a JSON object

Numbers are little-endian; each part begins at a multiple of 64.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastequi.atomic import replacing
from fastequi.data.sources.columns import Columns
from fastequi.data.sources.texts import Names, Texts, chunks

MAGIC = b"\x89FEI\r\n\x1a\n"  # as PNG's: a copy that changes ends of lines is noticed
_VERSION = 1
_PREFIX = struct.Struct("<8sIIQQQ")  # magic, version, header's checksum, its place and length, size
_ALIGN = 64
_BLOCK = 1 << 24  # bytes that are hashed at once
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # type and shape of an image's entry
    "ends": ("<i8", ()),
    "sizes": ("<i4", (2,)),
    "bytes": ("<i8", ()),
    "spans": ("<i8", (2,)),
    "sha256": ("<u8", ()),
    "of": ("<i4", ()),
    "kinds": ("<u2", ()),
}


class LeftOut(Mapping[str, str]):
    """{name: reason} of the images left out, read when it is asked for more than their number."""

    def __init__(self, count: int, text: NDArray[np.uint8]) -> None:
        self._count, self._text = count, text

    @cached_property
    def _entries(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._text.tobytes())
        return found

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __repr__(self) -> str:
        return f"LeftOut({self._count})"


@dataclass(frozen=True, eq=False)
class Table:
    """An opened file.

    Attributes:
        about: what was written as such, and "fingerprint": the digest of names and sizes
            (:func:`fingerprint`).
        columns: the images.
        left_out: {name: reason}.
    """

    about: Mapping[str, Any]
    columns: Columns
    left_out: Mapping[str, str]


class Fingerprint:
    """The digest of names and sizes in their order, names first."""

    def __init__(self) -> None:
        self._digest, self._begun = hashlib.sha256(), False

    def add_names(self, names: Sequence[str]) -> None:
        """Some more of them."""
        if len(names):
            self._digest.update(b"\0" * self._begun + Names.of(names).separated())
            self._begun = True

    def add_sizes(self, sizes: NDArray[np.int32]) -> None:
        """[n, 2], after all names."""
        self._digest.update(np.ascontiguousarray(sizes, "<i4").data)

    def hexadecimal(self) -> str:
        """16 digits."""
        return self._digest.hexdigest()[:16]


@contextmanager
def writing(
    file: Path,
    about: Mapping[str, Any],
    parts: Iterable[Columns],
    count: tuple[int, int],
    columns: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Writes the file in the order of the images, aside, and renames it after the block.

    Args:
        file: replaced.
        about: JSON values that are read with the header.
        parts: the images, some at a time.
        count: of all images, and of the bytes of their names in UTF-8.
        columns: those that are written beside names and sizes.
        left_out: {name: reason}; it may fill while the parts are made.

    Yields:
        The digest of names and sizes.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the parts have another number of images or of bytes.
    """
    images, name_bytes = count
    kept = ("ends", "sizes", *columns)
    each = {name: _entry_bytes(name) for name in kept}
    lengths = {name: images * size for name, size in each.items()}
    places, at = {}, _ALIGN
    for name, length in (lengths | {"names": name_bytes}).items():
        places[name] = at
        at = -(-(at + length) // _ALIGN) * _ALIGN
    digest, done, named = Fingerprint(), 0, 0
    with replacing(file, shared=True) as temporary, temporary.open("w+b") as out:

        def put(where: int, content: bytes) -> None:
            out.seek(where)
            out.write(content)

        for part in parts:
            names = Names.of(part.names)
            digest.add_names(names)
            if done + len(part) > images or named + names.size > name_bytes:
                raise ValueError(f"index: {file} was to have {images} images, got more")
            arrays = {"sizes": part.sizes, "bytes": part.bytes, "spans": part.spans}
            arrays |= {
                "ends": names.ends - names.first + named,
                "sha256": part.sha256,
                "of": part.of,
                "kinds": part.kinds,
            }
            for name in kept:
                array = np.ascontiguousarray(arrays[name], _COLUMNS[name][0])
                put(places[name] + done * each[name], array.tobytes())
            blob = names.blob[names.first : names.first + names.size]
            put(places["names"] + named, blob.tobytes())
            done, named = done + len(part), named + names.size
        if (done, named) != (images, name_bytes):
            raise ValueError(
                f"index: {file} was to have {images} images with {name_bytes} bytes of names, got "
                f"{done} with {named}"
            )
        bad = dict(sorted((left_out or {}).items()))
        text = json.dumps(bad).encode("ascii")
        put(at, text)
        places["left_out"], at = at, -(-(at + len(text)) // _ALIGN) * _ALIGN
        out.seek(places["sizes"])
        left = lengths["sizes"]
        while left:
            block = out.read(min(left, _BLOCK))
            digest.add_sizes(np.frombuffer(block, "<i4"))
            left -= len(block)
        counts = {"images": images, "name_bytes": name_bytes, "left_out": [len(bad), len(text)]}
        whole = {**about, **counts, "places": places, "fingerprint": digest.hexadecimal()}
        header = json.dumps(whole).encode("ascii")
        put(at, header)
        put(0, _prefix(header, at))
        out.flush()
        yield digest.hexadecimal()


def is_table(file: Path) -> bool:
    """Whether a file begins as one."""
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def open_table(file: Path) -> Table:
    """Maps a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, of another version, truncated, or its header is damaged;
            says what came and what was expected.
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        about = _header(opened.read(_ALIGN), size, opened.fileno())
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    images, places = about["images"], about["places"]
    arrays: dict[str, Any] = {}
    for name in set(places) & set(_COLUMNS):
        kind, shape = _COLUMNS[name]
        count = images * int(np.prod(shape, dtype=int))
        arrays[name] = np.frombuffer(memory, kind, count, places[name]).reshape(-1, *shape)
    blob = np.frombuffer(memory, np.uint8, about["name_bytes"], places["names"])
    named = int(arrays["ends"][-1]) if images else 0
    if named != about["name_bytes"]:
        raise ValueError(f"its names end after {named} bytes, expected {about['name_bytes']}")
    names: Texts = Names(arrays.pop("ends"), blob)
    spans = arrays.get("spans")
    if spans is not None:
        arrays["bytes"] = spans[:, 1]
    counts = arrays.pop("bytes", np.broadcast_to(np.int64(0), images))
    if len(kinds := about.get("kinds", ())) == 1:  # of all
        arrays["kinds"] = np.broadcast_to(np.uint16(kinds[0]), images)
    count, length = about["left_out"]
    text = np.frombuffer(memory, np.uint8, length, places["left_out"])
    return Table(about, Columns(names, counts, **arrays), LeftOut(count, text))


def fingerprint(names: Sequence[str], sizes: NDArray[np.int32]) -> str:
    """16 hexadecimal digits that identify a set: a hash of all names and sizes in order.

    Args:
        names: [n].
        sizes: [n, 2].
    """
    digest = Fingerprint()
    for some in chunks(names):
        digest.add_names(some)
    digest.add_sizes(sizes)
    return digest.hexadecimal()


def _entry_bytes(name: str) -> int:
    kind, shape = _COLUMNS[name]
    return np.dtype(kind).itemsize * int(np.prod(shape, dtype=int))


def _prefix(header: bytes, at: int) -> bytes:
    """The first 64 bytes; the last four of them are their own checksum."""
    fields = MAGIC, _VERSION, zlib.crc32(header), at, len(header), at + len(header)
    start = _PREFIX.pack(*fields).ljust(_ALIGN - 4, b"\0")
    return start + struct.pack("<I", zlib.crc32(start))


def _header(prefix: bytes, size: int, descriptor: int) -> dict[str, Any]:
    if not prefix.startswith(MAGIC):
        raise ValueError(f"it begins with {prefix[:8]!r}, expected {MAGIC!r}")
    if len(prefix) < _ALIGN:
        raise ValueError(f"it is truncated: {size} bytes, expected at least {_ALIGN}")
    _, version, checksum, at, length, whole = _PREFIX.unpack_from(prefix)
    if version != _VERSION:
        raise ValueError(f"version {version}, expected {_VERSION}")
    if struct.pack("<I", zlib.crc32(prefix[:-4])) != prefix[-4:]:
        raise ValueError("its first 64 bytes are damaged: their checksum is another")
    if size != whole:
        how = "truncated" if size < whole else "damaged"
        raise ValueError(f"it is {how}: {size} bytes, expected {whole}")
    header = os.pread(descriptor, length, at)
    if zlib.crc32(header) != checksum:
        raise ValueError(
            f"its header is damaged: checksum {zlib.crc32(header):08x}, expected {checksum:08x}"
        )
    found: dict[str, Any] = json.loads(header)
    return found
