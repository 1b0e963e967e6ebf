"""MNIST-like sets (IDX files) as image files: Fashion-MNIST as Debian ships it, MNIST itself.

Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist. Images are
written once as PNG files into a folder, named by their place in the set, so they go through the
same decoder as everything else.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPLITS = {"train": "train", "test": "t10k"}


def is_idx_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether it holds a training set of IDX files."""
    return _file(Path(folder), "train", "images", 3) is not None


def load(folder: str | os.PathLike[str], split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, H, W] and labels [N] of "train" or "test".

    Raises:
        FileNotFoundError: a file is missing; names it.
        ValueError: a file does not match its header.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {tuple(SPLITS)}, got {split!r}")
    images = _read(_expect(Path(folder), split, "images", 3))
    labels = _read(_expect(Path(folder), split, "labels", 1))
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images of {split} but {len(labels)} labels")
    return images, labels


def as_files(folder: str | os.PathLike[str], split: str, cache: Path) -> Path:
    """The folder of PNG files of a split, written under `cache` unless it is there."""
    source = _expect(Path(folder), split, "images", 3)
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    target = cache / f"idx-{split}-{key}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f".{target.name}.{os.getpid()}"
    for i, pixels in enumerate(_read(source)):
        part = temporary / f"{i // 1000:03d}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part / f"{i:06d}.png", compress_level=1)
    try:
        temporary.rename(target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise
    return target


def _file(folder: Path, split: str, what: str, axes: int) -> Path | None:
    name = f"{SPLITS[split]}-{what}-idx{axes}-ubyte"
    found = (folder / name, folder / f"{name}.gz")
    return next((path for path in found if path.is_file()), None)


def _expect(folder: Path, split: str, what: str, axes: int) -> Path:
    found = _file(folder, split, what, axes)
    if found is None:
        raise FileNotFoundError(
            f"{folder}: no {SPLITS[split]}-{what}-idx{axes}-ubyte, with or without .gz"
        )
    return found


def _read(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes: two zeros, type 8, number of axes, sizes (big-endian), values."""
    raw = path.read_bytes()
    data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of bytes")
    axes = data[3]
    sizes = np.frombuffer(data, ">u4", axes, 4).astype(int)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != sizes.prod():
        raise ValueError(f"{path}: {values.size} bytes, expected {'x'.join(map(str, sizes))}")
    return values.reshape(sizes)
