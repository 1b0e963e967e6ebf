"""Images and what is known of each of their pixels, as pairs of files: `images/` beside `masks/`.

ROOT/images/a/b.jpg goes with ROOT/masks/a/b.png (or depth/, annotations/). Splits are folders named
as such (train/ beside val/ or test/, see `fastequi.data.sources.splits`), either directly below
ROOT, each with its own images/, or directly below images/ and masks/. Without splits every fifth
pair in sorted order is for testing. Half a split is refused: nobody who made train/ means that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.sources.encoded import is_image_name
from fastequi.data.sources.images import Source
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import held_out, role
from fastequi.evaluate.geometry.image_files import in_threads, stored_values
from fastequi.evaluate.geometry.name_lists import in_any_case
from fastequi.evaluate.geometry.reading import Reading

logger = logging.getLogger(__name__)

_TARGETS = (".png", ".tif", ".tiff")
Map = NDArray[Any]  # [H, W], what a target file holds
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """An image's file and the file of what is known of its pixels.

    Attributes:
        name: the image's path below the folder of the set.
    """

    name: str
    image: Path
    target: Path


@dataclass(frozen=True)
class Pairs:
    """Pairs for fitting and pairs for testing, each in sorted order."""

    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def all(self) -> tuple[Pair, ...]:
        """Those for fitting, then those for testing."""
        return *self.train, *self.test

    def chosen(self, patterns: Patterns, train: int = 0, test: int = 0) -> Pairs:
        """Those whose images match patterns; of these at most so many, evenly spaced; 0: all."""
        kept = []
        for pairs, most in ((self.train, train), (self.test, test)):
            wanted = patterns.chosen([pair.name for pair in pairs])
            left = [pair for pair, want in zip(pairs, wanted, strict=True) if want]
            count = min(most or len(left), len(left))
            kept.append(tuple(left[i * len(left) // count] for i in range(count)))
        return Pairs(*kept)


def paired(root: Path, targets: str, is_image: Callable[[str], bool] = is_image_name) -> Pairs:
    """The pairs of a folder with `images/` and `targets/`; see the module.

    Args:
        root: the folder.
        targets: the name of the folder of PNG or TIFF files beside images/.
        is_image: whether a file's name is an image's.

    Raises:
        FileNotFoundError: no such folders.
        ValueError: an image without its file, the other way round, or two images for one file.
    """
    tops = {"": root}
    splits: dict[str, list[Pair]] = {}
    if not (root / "images").is_dir():
        folders = sorted(child for child in root.iterdir() if (child / "images").is_dir())
        tops = {child.name: child for child in folders if role(child.name)}
        if others := [child.name for child in folders if child.name not in tops]:
            logger.info("not used: %s", ", ".join(others))
        splits = _empty(root)
    if not tops:
        raise FileNotFoundError(f"--data: expected {root / 'images'} beside {targets}/, found none")
    for split, top in tops.items():
        if not split:
            splits = _empty(top / "images")
        images = files_below(top / "images", is_image)
        wanted: dict[str, str] = {}
        for name in images:
            other = wanted.setdefault(os.path.splitext(name)[0], name)
            if other != name:
                raise ValueError(
                    f"--data: expected one image for a file of {top / targets}, got {other} and "
                    f"{name} in {top / 'images'}"
                )
        there: dict[str, str] = {}
        for name in files_below(top / targets, lambda name: name.lower().endswith(_TARGETS)):
            other = there.setdefault(os.path.splitext(name)[0], name)
            if other != name:
                raise ValueError(
                    f"--data: expected one file for an image, got {other} and {name} in "
                    f"{top / targets}"
                )
        without = sorted(there.keys() - wanted.keys())
        if without:
            raise ValueError(
                f"--data: expected an image in {top / 'images'} for "
                f"{top / targets / there[without[0]]}, found none"
            )
        for stem, name in wanted.items():
            image = top / "images" / name
            target = top / targets / there.get(stem, f"{stem}.png")
            pair = Pair(os.path.relpath(image, root), image, target)
            first = split or (name.split("/")[0] if "/" in name else "")
            splits.setdefault(first if role(first) else "", []).append(pair)
    return divided(root, splits)


def _empty(folder: Path) -> dict[str, list[Pair]]:
    """The folders directly below one that are named as splits, without pairs as yet."""
    names = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return {name: [] for name in names if role(name) and not name.startswith(".")}


def divided(root: Path, splits: Mapping[str, Sequence[Pair]]) -> Pairs:
    """Pairs of folders that are named as splits, "" for pairs in none.

    Where there is more to test on, val/ is taken before test/. What is not used is logged. A folder
    that is named as a split among others that are not is a class or a place ("train" beside "bus").

    Args:
        root: of the set, for errors.
        splits: as they are named.

    Raises:
        ValueError: a split without images, or without another to fit on or to test on; a file of a
            pair is not there.
    """
    roles = {split: role(split) for split in splits}
    filled = {roles[split] for split, pairs in splits.items() if pairs}
    for_test = next((r for r in ("val", "test") if r in filled), "val")
    if {"train", for_test} <= filled or (any(roles.values()) and not splits.get("")):
        _expect_whole_split(root, roles, filled)
        train, test = (
            [pair for split, pairs in splits.items() if roles[split] == use for pair in pairs]
            for use in ("train", for_test)
        )
        used = ("train", for_test)
        unused = [split for split, pairs in splits.items() if pairs and roles[split] not in used]
        if unused:
            logger.info("not used: %s", ", ".join(name or "images in no split" for name in unused))
    else:
        every = sorted((p for pairs in splits.values() for p in pairs), key=lambda p: p.name)
        tested = held_out(len(every))
        train, test = ([every[i] for i in np.flatnonzero(t)] for t in (~tested, tested))
        logger.info("no folders train/ beside val/: every fifth of %d images tests", len(every))
    pairs = Pairs(
        *(
            tuple(
                replace(pair, image=in_any_case(pair.image), target=in_any_case(pair.target))
                for pair in sorted(part, key=lambda p: p.name)
            )
            for part in (train, test)
        )
    )
    for pair in pairs.all:
        for file in (pair.image, pair.target):
            if not file.is_file():
                raise ValueError(f"--data: expected {file} for {pair.name}, found none")
    return pairs


def _expect_whole_split(root: Path, roles: Mapping[str, str], filled: Set[str]) -> None:
    """Raises ValueError unless there are images to fit on and images to test on.

    Args:
        root: of the set.
        roles: of the splits by their names.
        filled: the roles that have images.
    """
    for uses, wanted in ((("train",), "train/"), (("val", "test"), "val/ or test/")):
        if filled & set(uses):
            continue
        named = [split for split, its in roles.items() if its in uses]
        others = [split for split, its in roles.items() if its and its not in uses]
        if named:
            raise ValueError(f"--data: expected images in {_folders(named)} of {root}, found none")
        raise ValueError(
            f"--data: expected {wanted} beside {_folders(others)} in {root}, found none"
        )


def _folders(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> list[str]:
    """Paths below a folder, sorted, of files whose names are wanted; hidden ones are passed over.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--data: expected a folder {folder}, found none")
    found = []
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(top, folder)
        wanted = [name for name in names if is_wanted(name) and not name.startswith(".")]
        found += [name if below == "." else f"{below}/{name}" for name in wanted]
    return sorted(found)


def inspected(
    pairs: Pairs, read: Reading, load: Callable[[Path], Map], look: Callable[[Path, Map], T]
) -> tuple[Source, Source, list[T]]:
    """Reads every pair before anything is computed, whole: a damaged file is found here.

    Args:
        pairs: which.
        read: how images are read.
        load: a target file's values [H, W].
        look: what is kept of each; may raise ValueError that names the file.

    Returns:
        The images for fitting, those for testing, and what was kept of all, in order.

    Raises:
        ValueError: fewer than one image to fit on and one to test on, a file that cannot be read,
            or a target of another size than its image.
    """
    if not pairs.train or not pairs.test:
        raise ValueError(
            "--data: expected at least 2 images, one to fit on and one to test on, got "
            f"{len(pairs.train)} and {len(pairs.test)}"
        )

    def each(pair: Pair) -> tuple[tuple[int, int], T]:
        size = read.size_of(pair.image)
        values = load(pair.target)
        if values.shape != size:
            raise ValueError(
                f"--data: expected {pair.target} of {size[0]}x{size[1]} px as "
                f"{pair.image.name}, got {values.shape[0]}x{values.shape[1]}"
            )
        return size, look(pair.target, values)

    sizes, kept = zip(*in_threads(each, pairs.all), strict=True)
    read.expect_one_kind(pair.image for pair in pairs.all)
    whole = Source(
        tuple(str(pair.image) for pair in pairs.all),
        tuple(pair.name for pair in pairs.all),
        np.array(sizes, np.int32),
    )
    count = len(pairs.train)
    return whole.pick(range(count)), whole.pick(range(count, len(whole))), list(kept)


def target_values(file: Path, modes: Sequence[str], expected: str) -> Map:
    """[H, W] of a PNG or TIFF as they stand in the file; see `image_files.stored_values`.

    Args:
        file: which.
        modes: of Pillow's that are taken.
        expected: what these are, for the error.

    Raises:
        ValueError: it is neither, damaged, or of another mode; names the file.
    """
    kind = "PNG" if file.name.lower().endswith(".png") else "TIFF"
    try:
        with Image.open(file, formats=(kind,)) as opened:
            if opened.mode not in modes:
                raise ValueError(
                    f"--data: expected {file} to be a {kind} of {expected}, got mode {opened.mode}"
                )
            return stored_values(file, opened)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"--data: {file} cannot be read as a {kind} ({error})") from error


def only_folder(chosen: Selection) -> Path:
    """The one folder that is named.

    Raises:
        ValueError: several.
        FileNotFoundError: no such folder.
    """
    if len(chosen.places) != 1:
        raise ValueError(f"{chosen.option}: expected one folder, got {' '.join(chosen.places)}")
    folder = Path(chosen.places[0]).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{chosen.option}: expected a folder, {folder} is none")
    return folder
