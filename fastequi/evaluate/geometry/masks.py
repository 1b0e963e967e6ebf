"""Sets of images with a class for each pixel, in four layouts, told apart by their folders.

folders      images/ and masks/ (`pair_folders.py`): PNG or TIFF of class ids 0, 1, ..., 255 ignored
Pascal VOC   JPEGImages/, SegmentationClass/, ImageSets/Segmentation/{train,val}.txt: 21 classes
ADE20K       images/ and annotations/, training/ and validation/ below: ids 1..150, 0: ignored
Cityscapes   leftImg8bit/ and gtFine/, *_labelTrainIds.png, or *_labelIds.png as the 19 classes of
             its evaluation (cityscapesScripts, labels.py)

Every mask is read once before anything is computed: its size and its ids have to be right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.sources.encoded import is_image_name
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data, Selection
from fastequi.evaluate.geometry.name_lists import names_in
from fastequi.evaluate.geometry.pair_folders import (
    Map,
    Pair,
    Pairs,
    divided,
    files_below,
    inspected,
    only_folder,
    paired,
    target_values,
)
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.results import documented

logger = logging.getLogger(__name__)

IGNORED = 255
_WRONG = -1
_MODES, _EXPECTED = ("1", "L", "P"), "class ids, at most 8 bits grey or palette"
_INSIDE = ("VOCdevkit/VOC2012", "VOC2012", "ADEChallengeData2016")  # as archives unpack

# ids of Cityscapes' classes 0 to 18 in *_labelIds.png; other ids to 33 are not evaluated
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_IDS = 34


@dataclass(frozen=True)
class MaskSet:
    """Images with masks.

    Attributes:
        data: how the set was named.
        layout: "folders", "Pascal VOC", "ADE20K" or "Cityscapes".
        classes: how many.
        read: how images are read.
        pairs: the files.
        train, test: their images.
        codes: [256] int16, the class of an id in a file; IGNORED, or -1 for what is no id.
        train_unlabelled, test_unlabelled: how many images have no pixel with a class.
        absent: ids, as they are in files, of the classes that no test mask has.
        unseen: ids of the classes that test masks have, and no training mask.
    """

    data: Selection
    layout: str
    classes: int
    read: Reading
    pairs: Pairs
    train: Source
    test: Source
    codes: NDArray[np.int16]
    train_unlabelled: int
    test_unlabelled: int
    absent: tuple[int, ...]
    unseen: tuple[int, ...]

    def expect_labels(self) -> None:
        """Raises ValueError if all training pixels are ignored, for what is fitted on them."""
        if self.train_unlabelled == len(self.train):
            raise ValueError(
                "--data: expected labelled pixels in masks for training, all are ignored"
            )

    def remarks(self, is_fitted: bool) -> list[str]:
        """What the masks lack; of those for training if something is fitted on them."""
        counts = [("test", self.test_unlabelled, len(self.test))]
        if is_fitted:
            counts.append(("training", self.train_unlabelled, len(self.train)))
        said = [
            f"{count} of {whole} {use} images have no labelled pixel"
            for use, count, whole in counts
            if count
        ]
        if self.absent:
            said.append(
                f"{len(self.absent)} of {self.classes} classes are in no test mask: ids "
                f"{_ranges(np.array(self.absent))}"
            )
        if is_fitted and self.unseen:
            said.append(
                f"{len(self.unseen)} of {self.classes} classes are in test masks and in no "
                f"training mask: ids {_ranges(np.array(self.unseen))}"
            )
        return said

    def mask(self, pair: Pair) -> Tensor:
        """[H, W] uint8: classes, and IGNORED."""
        ids = target_values(pair.target, _MODES, _EXPECTED)
        return torch.from_numpy(self.codes[ids].astype(np.uint8))


def open_masks(
    data: Data,
    *,
    classes: int = 0,
    train_images: int = 0,
    test_images: int = 0,
    read: Reading = Reading(),  # noqa: B008
) -> MaskSet:
    """The set in a folder, checked; see the module.

    Args:
        data: the folder, or the one that its archive unpacks to; patterns select images by their
            paths below it.
        classes: of images/ and masks/; 0: the largest id and one.
        train_images, test_images: how many are used, evenly spaced; 0: all.
        read: how images are read; by default as 8-bit RGB.

    Raises:
        ValueError: a mask that is missing, of another size than its image, not of class ids, or
            with ids that are no classes; fewer than two images, or than two classes in the masks;
            no labelled pixel for testing.
        FileNotFoundError: no such layout.
    """
    chosen = Selection.of(data)
    folder = only_folder(chosen)
    inside = (folder / name for name in _INSIDE)
    root = next((each for each in inside if each.is_dir()), folder)
    layout, pairs, codes = _found(root, read)
    if layout != "folders" and classes:
        raise ValueError(f"--classes: only for images/ and masks/, {root} is laid out as {layout}")
    if layout == "folders":
        codes = _codes(range(classes or IGNORED))
    pairs = pairs.chosen(chosen.patterns, train_images, test_images)

    def there_in(file: Path, ids: Map) -> NDArray[np.int64]:
        there = np.flatnonzero(np.bincount(ids.reshape(-1), minlength=256))
        wrong = there[codes[there] == _WRONG]
        if len(wrong):
            raise ValueError(
                f"--data: expected {file} to hold class ids {_listed(codes)}, got "
                f"{', '.join(map(str, wrong))}"
            )
        return there[codes[there] != IGNORED]

    train, test, ids = inspected(
        pairs, read, lambda f: target_values(f, _MODES, _EXPECTED), there_in
    )
    trained, tested = ids[: len(train)], ids[len(train) :]
    every = np.unique(np.concatenate(ids))
    if len(every) < 2:
        found = f": id {every[0]}" if len(every) else ", all pixels are ignored"
        raise ValueError(
            f"--data: expected masks of 2 classes or more in {root}, got {len(every)}{found}"
        )
    if not any(map(len, tested)):
        raise ValueError("--data: expected labelled pixels in masks for testing, all are ignored")
    if layout == "folders":
        if not classes and 2 * len(every) <= every.max():
            every_pair = zip((*pairs.train, *pairs.test), ids, strict=True)
            files = [pair.target for pair, own in every_pair if every[-1] in own]
            logger.warning(
                "--classes: %d by the largest id, %d, which is in %d of %d masks (%s); of the ids "
                "below it %d are in none. Is it one?",
                *(every[-1] + 1, every[-1], len(files), len(ids), files[0]),
                every[-1] + 1 - len(every),
            )
        codes = _codes(range(classes or int(every.max()) + 1))
    known = np.flatnonzero((codes != _WRONG) & (codes != IGNORED))
    return MaskSet(
        chosen,
        layout,
        len(known),
        read,
        pairs,
        train,
        test,
        codes,
        train_unlabelled=sum(not len(each) for each in trained),
        test_unlabelled=sum(not len(each) for each in tested),
        absent=tuple(np.setdiff1d(known, np.concatenate(tested)).tolist()),
        unseen=tuple(np.setdiff1d(np.concatenate(tested), np.concatenate(trained)).tolist()),
    )


def _found(root: Path, read: Reading) -> tuple[str, Pairs, NDArray[np.int16]]:
    """Layout, pairs, and codes of ids."""
    if (root / "JPEGImages").is_dir():
        return "Pascal VOC", _voc(root), _codes(range(21))
    if (root / "leftImg8bit").is_dir():
        return "Cityscapes", *_cityscapes(root)
    if (root / "annotations").is_dir():
        pairs = paired(root, "annotations", read.is_image)
        return "ADE20K", pairs, _codes(range(1, 151), ignored=(0, IGNORED))
    splits = [child for child in root.iterdir() if (child / "masks").is_dir()]
    if (root / "masks").is_dir() or splits:
        return "folders", paired(root, "masks", read.is_image), _codes(range(IGNORED))
    raise FileNotFoundError(
        f"--data: expected images/ and masks/, JPEGImages/ (Pascal VOC), images/ and annotations/ "
        f"(ADE20K) or leftImg8bit/ and gtFine/ (Cityscapes) in {root}"
    )


def _voc(root: Path) -> Pairs:
    splits: dict[str, list[Pair]] = {}
    for split in ("train", "val"):
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not file.is_file():
            raise FileNotFoundError(f"--data: expected the list {file}, found none")
        names = names_in(file)
        if not names:
            raise ValueError(f"--data: expected names of images in {file}, found none")
        splits[split] = [
            Pair(
                f"JPEGImages/{name}.jpg",
                root / "JPEGImages" / f"{name}.jpg",
                root / "SegmentationClass" / f"{name}.png",
            )
            for name in names
        ]
    return divided(root, splits)


def _cityscapes(root: Path) -> tuple[Pairs, NDArray[np.int16]]:
    end = "_leftImg8bit.png"
    names = files_below(root / "leftImg8bit", lambda n: is_image_name(n) and n.endswith(end))
    stems = [name.removesuffix(end) for name in names]
    as_trained = any((root / f"gtFine/{stem}_gtFine_labelTrainIds.png").is_file() for stem in stems)
    kind = "labelTrainIds" if as_trained else "labelIds"
    splits: dict[str, list[Pair]] = {}
    for name, stem in zip(names, stems, strict=True):
        image, mask = root / "leftImg8bit" / name, root / f"gtFine/{stem}_gtFine_{kind}.png"
        splits.setdefault(name.split("/")[0], []).append(Pair(f"leftImg8bit/{name}", image, mask))
    if as_trained:
        return divided(root, splits), _codes(range(19))
    others = (i for i in range(_CITYSCAPES_IDS) if i not in _CITYSCAPES)
    return divided(root, splits), _codes(_CITYSCAPES, ignored=(*others, IGNORED))


def _codes(ids: Sequence[int], ignored: Sequence[int] = (IGNORED,)) -> NDArray[np.int16]:
    """Codes where `ids` are the classes 0, 1, ... in that order."""
    codes = np.full(256, _WRONG, np.int16)
    codes[list(ids)] = np.arange(len(ids))
    codes[list(ignored)] = IGNORED
    return codes


def _listed(codes: NDArray[np.int16]) -> str:
    """The ids that stand for something, as ranges: "0..20, 255"."""
    return _ranges(np.flatnonzero(codes != _WRONG))


def _ranges(ids: NDArray[np.int64]) -> str:
    """Ids in rising order, as ranges."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)


def described(masks: MaskSet) -> Mapping[str, object]:
    """What result files say of a set."""
    return {
        **documented(masks.data),
        "layout": masks.layout,
        "classes": masks.classes,
        "train_images": len(masks.train),
        "test_images": len(masks.test),
        "train_images_unlabelled": masks.train_unlabelled,
        "test_images_unlabelled": masks.test_unlabelled,
        "ids_in_no_test_mask": masks.absent,
        "ids_in_no_training_mask_but_in_test_masks": masks.unseen,
    }
