"""Files whose new content is there whole or not at all, after a crash too."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A name to write to, beside `path`; takes its place, synced, when the block ends well.

    Args:
        shared: other processes may write the same file at the same time; the last one stays. Else
            what a killed process left is overwritten by the next one.
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
    """A small file's new content, or its old one: never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None
) -> None:
    """A safetensors file that others may read as any other file; its own writer allows nobody."""
    path.write_bytes(b"")
    mode = path.stat().st_mode
    save_file(dict(tensors), path, about)
    path.chmod(mode)
