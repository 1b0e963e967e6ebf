"""Images with classes: folders of class subfolders, shards, MNIST-like sets, scikit-learn's digits.

`fastequi.data.sources.splits` decides which images are for testing (of a set without a split, every
fifth image of a class), `fastequi.data.sources.classes` the class of an image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.channels import DTYPE
from fastequi.data.config import DataConfig
from fastequi.data.reader import read
from fastequi.data.settling import wanted
from fastequi.data.sources import idx
from fastequi.data.sources.classes import classes_of, split_by_name
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data, Selection
from fastequi.data.sources.splits import Images, held_out, held_out_of
from fastequi.data.sources.wanted import Wanted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images [N, 3, H, W], uint8, and their classes [N]."""

    images: Tensor
    labels: Tensor


class LabelledSet(Protocol):
    """One split of a set."""

    @property
    def what(self) -> str:
        """A description of these images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by label."""

    def __len__(self) -> int: ...

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images [B, C, size, size] uint8 or uint16, pixels for the raw baseline [B, D], labels
        [B])."""


@dataclass(frozen=True)
class Arrays:
    """Small images in memory; the raw-pixel baseline uses them unchanged.

    Attributes:
        pixels: [N, H, W] uint8, grey.
        labels: [N].
        channels: 3, all alike, or 1.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    what: str
    channels: int = 3

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            pixels = torch.from_numpy(self.pixels[part].copy()).to(device)
            labels = torch.from_numpy(self.labels[part].copy()).to(device)
            images = resized(pixels, size).expand(-1, self.channels, -1, -1).contiguous()
            yield images, pixels.flatten(1).float() / 255, labels


@dataclass(frozen=True)
class Files:
    """Images in files; the raw-pixel baseline uses them at 32 px or less.

    Attributes:
        share: of a file's shorter side that its centred square takes.
        values: whose channels and value_range are taken.
    """

    source: Source
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    what: str
    share: float = 1.0
    values: DataConfig = field(default_factory=DataConfig, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        how = {"device": device, "share": self.share, "values": self.values}
        for images, places in read(self.source, size, **how):  # type: ignore[arg-type]
            unit = images.float() / torch.iinfo(images.dtype).max
            pixels = F.adaptive_avg_pool2d(unit, min(size, RAW_SIZE))
            labels = torch.from_numpy(self.labels[places]).to(device)
            yield images, pixels.flatten(1), labels


_BATCH, RAW_SIZE = 250, 32
_MAX_NAMED = 10  # classes in a message
DIGITS = "digits"


def labelled_sets(
    data: Data,
    train_images: int = 0,
    test_images: int = 0,
    share: float = 1.0,
    test_data: Data | None = None,
    values: DataConfig = DataConfig(),  # noqa: B008
) -> tuple[LabelledSet, LabelledSet]:
    """The training and the test split of a set.

    Args:
        data: folders of class subfolders, shards or list files; or a folder of IDX files, or
            "digits".
        train_images, test_images: how many of each, spread evenly over the set; 0: all.
        share: of a file's shorter side that its centred square takes.
        test_data: images for testing; all of `data`, or its train/, is then for training.
        values: whose channels and value_range are taken of files; by default 8-bit RGB.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        ValueError: no class subfolders, fewer than two classes, or what looks like splits and is
            not named as such.
        ImportError: "digits" without scikit-learn.
    """
    counts = train_images, test_images
    chosen = Selection.of(data)
    if chosen.places == (DIGITS,) and test_data is None:
        return _grey(_digits(counts), values, chosen.option)
    if len(chosen.places) == 1 and idx.is_idx_folder(chosen.places[0]) and test_data is None:
        folder = Path(chosen.places[0])
        both = _mnist(folder, "train", train_images), _mnist(folder, "test", test_images)
        return _grey(both, values, chosen.option)
    parts = _split(chosen, test_data, replace(wanted(values), by_encoder=True))
    order = tuple(sorted(set(parts[0].classes)))
    if len(order) < 2:
        found = list(order)
        raise ValueError(f"{chosen.option}: expected at least 2 classes in {chosen}, found {found}")
    tested = set(parts[1].classes)
    if unknown := sorted(tested - set(order)):
        where = parts[1].what, parts[0].what
        raise ValueError(f"{chosen.option}: {where[0]} has classes {unknown}, {where[1]} has not")
    if lacking := sorted(set(order) - tested):
        logger.warning("no test image of class %s", ", ".join(lacking))
    splits = []
    for part, count in zip(parts, counts, strict=True):
        some = spread(len(part.classes), count)
        labels = np.array([order.index(part.classes[i]) for i in some], np.int64)
        splits.append(Files(part.source.pick(some), labels, order, part.what, share, values))
    return splits[0], splits[1]


def _grey(sets: tuple[Arrays, Arrays], values: DataConfig, option: str) -> tuple[Arrays, Arrays]:
    """Grey images of 8 bits, which `option` named, as an encoder of these values takes them."""
    if values.is_rgb:
        return sets
    if values.in_chans != 1 or values.value_range != DTYPE:
        taken = f"data.channels={values.channels}, data.value_range={values.value_range}"
        raise ValueError(f"{option}: grey images of 8 bits, but the encoder takes {taken}")
    return replace(sets[0], channels=1), replace(sets[1], channels=1)


@dataclass(frozen=True)
class _Part:
    """Images of one split, their classes by name, and which they are in words."""

    source: Source
    classes: list[str]
    what: str


def _split(data: Selection, test_data: Data | None, asked: Wanted) -> tuple[_Part, _Part]:
    images = Images.opened(data, asked)
    source, split = images.source, split_by_name(images)
    classes = classes_of(images, split)

    def of(places: NDArray[np.int64], what: str) -> _Part:
        return _Part(source.pick(places), [classes[i] for i in places], what)

    if test_data is not None:
        tests = Images.opened(test_data, asked)
        test = _Part(tests.source, classes_of(tests, None), str(Selection.of(test_data)))
        train = _Part(source, classes, str(data))
        return train if split is None else of(split.train, split.train_name), test
    if split is not None:
        return of(split.train, split.train_name), of(split.test, split.test_name)
    tested = np.zeros(len(source), bool)
    for name in sorted(set(classes)):
        places = np.flatnonzero(np.array(classes) == name)
        if len(places) < 2:
            raise ValueError(f"{data.option}: class {name!r} of {data} has one image, expected 2")
        tested[places] = held_out_of(source.pick(places))
    fifth = "every fifth image of a class"
    return of(np.flatnonzero(~tested), f"all but {fifth}"), of(np.flatnonzero(tested), fifth)


def per_class(names: Sequence[str], train: Tensor, test: Tensor) -> dict[str, list[int]]:
    """{class: [training, test images]} of labels [N]."""
    counts = [torch.bincount(part.cpu(), minlength=len(names)).tolist() for part in (train, test)]
    return {name: [counts[0][i], counts[1][i]] for i, name in enumerate(names)}


def described(train: LabelledSet, test: LabelledSet) -> str:
    """The numbers of classes and images of a set, and its splits, as text."""
    names = ", ".join(train.classes[:_MAX_NAMED]) + (
        ", ..." if len(train.classes) > _MAX_NAMED else ""
    )
    parts = (
        f"{len(part):,} {use} images ({part.what})"
        for use, part in (("training", train), ("test", test))
    )
    return f"{len(train.classes)} classes ({names}), {' and '.join(parts)}"


def _mnist(folder: Path, split: str, count: int) -> Arrays:
    pixels, labels = idx.load(folder, split)
    chosen = slice(count or None)  # in no order of classes
    names = tuple(str(i) for i in range(int(labels.max()) + 1))
    return Arrays(pixels[chosen], labels[chosen].astype(np.int64), names, idx.SPLITS[split])


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
        what = "every fifth digit" if is_test else "all but every fifth digit"
        splits.append(Arrays(pixels[chosen], labels, tuple("0123456789"), what))
    return splits[0], splits[1]


def spread(n: int, count: int) -> NDArray[np.int64]:
    """`count` of n places (0 or more than n: all), evenly spread, so that no class is missed."""
    if not count or count >= n:
        return np.arange(n)
    return np.linspace(0, n - 1, count).round().astype(np.int64)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Grey uint8 images [N, H, W] to [N, 1, size, size], linearly with antialiasing."""
    images = pixels[:, None].float()
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8)
