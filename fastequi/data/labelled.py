"""Images with classes: folders of class subfolders, MNIST-like sets, scikit-learn's digits.

A folder is `train/CLASS/...` beside `val/CLASS/...` (or `validation/`, `test/`), or `CLASS/...`, of
which every fifth image of a class is for testing; see `fastequi.data.splits`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data import idx
from fastequi.data.reader import read
from fastequi.data.sources import Source, image_folder
from fastequi.data.splits import held_out, named_split


@dataclass(frozen=True)
class Labelled:
    """Images [N, 3, H, W], uint8, and their classes [N]."""

    images: Tensor
    labels: Tensor


class LabelledSet(Protocol):
    """One split of a set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""

    def __len__(self) -> int: ...

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images [B, 3, size, size] uint8, pixels for the raw baseline [B, D], labels [B])."""


@dataclass(frozen=True)
class Arrays:
    """Small images in memory; the raw baseline sees them as they are.

    Attributes:
        pixels: [N, H, W] uint8, grey.
        labels: [N].
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            pixels = torch.from_numpy(self.pixels[part].copy()).to(device)
            labels = torch.from_numpy(self.labels[part].copy()).to(device)
            yield resized(pixels, size), pixels.flatten(1).float() / 255, labels


@dataclass(frozen=True)
class Files:
    """Images in folders of their classes; the raw baseline sees them at 32 px or less."""

    source: Source
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for images, places in read(self.source, size, device=device, share=self.share):
            pixels = F.adaptive_avg_pool2d(images.float() / 255, min(size, _RAW_SIZE))
            labels = torch.from_numpy(self.labels[places]).to(device)
            yield images, pixels.flatten(1), labels


_BATCH, _RAW_SIZE = 250, 32
DIGITS = "digits"


def labelled_sets(
    data: str | os.PathLike[str], train_images: int = 0, test_images: int = 0, share: float = 1.0
) -> tuple[LabelledSet, LabelledSet]:
    """The training and the test split of a set.

    Args:
        data: a folder of class subfolders or of IDX files, or "digits".
        train_images, test_images: how many of each, spread evenly over the set; 0: all.
        share: of a file's shorter side that its centred square takes.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no class subfolders, or fewer than two classes.
        ImportError: "digits" without scikit-learn.
    """
    counts = train_images, test_images
    if str(data) == DIGITS:
        return _digits(counts)
    if idx.is_idx_folder(data):
        return _mnist(Path(data), "train", train_images), _mnist(Path(data), "test", test_images)
    named = named_split(data)
    if named is not None:
        sources = image_folder(named[0]), image_folder(named[1])
        names = [_classes(source, where) for source, where in zip(sources, named, strict=True)]
        unknown = sorted(set(names[1]) - set(names[0]))
        if unknown:
            raise ValueError(f"--data: {named[1]} has classes {unknown}, {named[0]} has not")
        order = tuple(sorted(set(names[0])))
        picks = [np.arange(len(source)) for source in sources]
    else:
        source = image_folder(data)
        sources, given = (source, source), _classes(source, Path(data))
        names, order = [given, given], tuple(sorted(set(given)))
        tested = np.zeros(len(source), bool)
        for name in order:
            places = np.flatnonzero(np.array(given) == name)
            if len(places) < 2:
                raise ValueError(f"--data: class {name!r} of {data} has one image, expected 2")
            tested[places] = held_out(len(places))
        picks = [np.flatnonzero(~tested), np.flatnonzero(tested)]
    if len(order) < 2:
        raise ValueError(f"--data: expected at least 2 classes in {data}, found {list(order)}")
    splits = []
    for source, given, pick, count in zip(sources, names, picks, counts, strict=True):
        chosen = pick[spread(len(pick), count)]
        labels = np.array([order.index(given[i]) for i in chosen], np.int64)
        splits.append(Files(source.pick(chosen), labels, order, share))
    return splits[0], splits[1]


def _classes(source: Source, folder: Path) -> list[str]:
    """The first subfolder of every image."""
    parts = [Path(name).parts for name in source.names]
    flat = [name for name, part in zip(source.names, parts, strict=True) if len(part) < 2]
    if flat:
        raise ValueError(
            f"--data: expected a subfolder for each class in {folder}, but {flat[0]} lies in none"
        )
    return [part[0] for part in parts]


def _mnist(folder: Path, split: str, count: int) -> Arrays:
    pixels, labels = idx.load(folder, split)
    chosen = slice(count or None)  # in no order of classes
    names = tuple(str(i) for i in range(int(labels.max()) + 1))
    return Arrays(pixels[chosen], labels[chosen].astype(np.int64), names)


def _digits(counts: tuple[int, int]) -> tuple[Arrays, Arrays]:
    try:
        from sklearn.datasets import load_digits
    except Exception as error:  # a broken install raises more than ImportError
        raise ImportError(
            f"--data digits needs scikit-learn: pip install scikit-learn (importing it: {error})"
        ) from error
    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    tested = held_out(len(pixels))
    splits = []
    for is_test, count in enumerate(counts):
        places = np.flatnonzero(tested == bool(is_test))
        chosen = places[spread(len(places), count)]
        labels = found.target[chosen].astype(np.int64)
        splits.append(Arrays(pixels[chosen], labels, tuple("0123456789")))
    return splits[0], splits[1]


def spread(n: int, count: int) -> NDArray[np.int64]:
    """`count` of n places (0 or more than n: all), evenly spread, so that no class is missed."""
    if not count or count >= n:
        return np.arange(n)
    return np.linspace(0, n - 1, count).round().astype(np.int64)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Grey uint8 images [N, H, W] to [N, 3, size, size], linearly with antialiasing."""
    images = pixels[:, None].float()
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def mnist(folder: Path, split: str, count: int, size: int) -> Labelled:
    """The first `count` images of an MNIST-like set's split (0: all), at size x size."""
    found = _mnist(folder, split, count)
    pixels = torch.from_numpy(found.pixels.copy())
    return Labelled(resized(pixels, size), torch.from_numpy(found.labels.copy()))
