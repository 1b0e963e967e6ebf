"""Replaces one file at once, for any writer; whole checkpoints are `fastequi.runtime.checkpoint`'s.

After a crash the file has its old or its new content, never a part.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, which replaces it, synced, when the block succeeds.

    Args:
        shared: other processes may write the same file at the same time; the last one wins. Else
            the next writer overwrites what a killed process left behind.
    """
    writer = f".{platform.node()}.{os.getpid()}" if shared else ""
    temporary = path.with_name(f".{path.name}{writer}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces a small text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file with the usual permissions; its own writer makes it private.

    The same tensors and texts make the same bytes.

    Raises:
        OSError: it cannot be written, for lack of room among others.
    """
    path.write_bytes(b"")
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, about)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    order_metadata(path)
    path.chmod(mode)


def order_metadata(path: Path) -> None:
    """Sorts the metadata in a safetensors file's header, which its writer leaves in random order.

    The header keeps its length, so that the tensors stay where they are.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # the tensors behind it matter more than the order
            file.seek(8)
            file.write(text.ljust(length))
