"""Training and test images: disjoint, by a rule that needs no stored list.

Folders, shards and list files that are named as splits usually are, in any case, are taken as such:
train/ beside val/, valid/, validation/, dev/, eval/ or test/, Training-Set/ beside Testing-Set/,
imagenet-train-000.tar beside imagenet-val-000.tar. Where there is more to test on, val/ is taken
before test/, and unused parts are logged. Of other sets every fifth image in sorted order is for
testing (of fewer than five the last one).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastequi.data.channels import RGB
from fastequi.data.sources.image_sets import Part, embedded_photos, open_parts, open_source
from fastequi.data.sources.images import Region, Source, united
from fastequi.data.sources.parts import file_of, part_of, split
from fastequi.data.sources.selection import Data
from fastequi.data.sources.trouble import Unreadable, patiently, raise_trouble
from fastequi.data.sources.wanted import Wanted

logger = logging.getLogger(__name__)

_RGB = Wanted()

# of every embedded photograph, where no folder is given: no pixel is in both
TRAIN_REGION: Region = (0.0, 0.0, 0.7, 1.0)
TEST_REGION: Region = (0.7, 0.0, 1.0, 1.0)

_ROLES = {
    "train": ("train", "training", "trn", "tr", "trainval"),
    "val": ("val", "valid", "validation", "dev", "development", "eval", "evaluation", "holdout"),
    "test": ("test", "testing", "tst", "te"),
}
_ROLE = {word: role for role, words in _ROLES.items() for word in words}
WEAK = ("tr", "te")  # words that are as often names of classes, as languages' are
_BESIDE = re.compile(r"(?<=.)(set|split|data|images|imgs)$")


def role(name: str) -> str:
    """The split that a folder, shard or list file is named for: "train", "val", "test" or ""."""
    stem, extension = os.path.splitext(name.lower())
    if extension in (".tar", ".txt"):
        words = [_ROLE.get(word, "") for word in re.split(r"[^a-z]+", stem)]
        return next(filter(None, words), "")
    word = re.sub(r"[-_. ]+|\d+$", "", name.lower())
    return _ROLE.get(word) or _ROLE.get(_BESIDE.sub("", word), "")


def held_out(n: int) -> NDArray[np.bool_]:
    """[n] whether a place in sorted order is for testing."""
    places = np.arange(n)
    return places % 5 == 4 if n >= 5 else places == n - 1


def held_out_of(source: Source) -> NDArray[np.bool_]:
    """[n] the same of images in sorted order, where pages of one file are for one thing: those of
    a stack are alike. Where all are of one file, each for itself, which is logged."""
    if not source.may_have_pages:
        return held_out(len(source))
    files = [file_of(name) for name in source.names]
    places = {file: place for place, file in enumerate(dict.fromkeys(files))}
    if len(places) == 1 < len(files):
        logger.warning("pages of one file, %s, are for training and for testing", files[0])
        return held_out(len(files))
    return held_out(len(places))[[places[file] for file in files]]


@dataclass(frozen=True)
class Images:
    """The images of several places as one source, and the folders of each image.

    Attributes:
        parts: the places.
        source: their images.
        of: [n] the part of each image.
        folders: the folders above each image, from the one that holds all places; a shard or list
            file that is named as a split counts as a folder.
        inside: those of them below the image's place, or in its shard.
    """

    parts: Sequence[Part]
    source: Source
    of: NDArray[np.int64]
    folders: list[tuple[str, ...]]
    inside: list[tuple[str, ...]]

    @classmethod
    def opened(cls, data: Data, wanted: Wanted = _RGB) -> Images:
        """What `data` names; see `fastequi.data.sources.image_sets.open_parts`."""
        parts = open_parts(data, wanted=wanted)
        source, of = united([(part.root, part.source) for part in parts])
        roots = [os.path.abspath(part.root) for part in parts]
        common = os.path.commonpath(roots)
        above = [[] if r == common else os.path.relpath(r, common).split("/") for r in roots]
        folders, inside = [], []
        for i, name in enumerate(source.names):
            part, path = parts[of[i]], above[of[i]]
            steps = name.split("/")[:-1]
            if part.is_shards:
                shard = steps.index(os.path.basename(source.paths[i]))
                own = steps[shard + 1 :]
                steps = steps[:shard] + [steps[shard]] * bool(role(steps[shard])) + own
            else:
                own = steps[len(path) :]
                if part.is_list and role(part.place.name) and len(parts) > 1:
                    steps = [*path, part.place.name, *own]
            folders.append(tuple(steps))
            inside.append(tuple(own))
        return cls(parts, source, of, folders, inside)

    def level(self) -> int:
        """How many folders all images have in common."""
        first, last = min(self.folders), max(self.folders)
        pairs = enumerate(zip(first, last, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


@dataclass(frozen=True)
class Split:
    """The images for training and for testing.

    Attributes:
        train, test: their indices.
        level: depth of the folders that are named as splits.
        train_name, test_name: those folders, for people.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    level: int
    train_name: str
    test_name: str


def named_split(images: Images) -> Split | None:
    """The split named by folders, shards and list files; None if there is none.

    Other parts are logged as not used.
    """
    level = images.level()
    tops = [steps[level] if len(steps) > level else "" for steps in images.folders]
    counts = Counter(tops)
    roles = {top: role(top) for top in counts}
    for_test = "val" if "val" in roles.values() else "test"
    if not {"train", for_test} <= set(roles.values()):
        return None
    places, names = {}, {}
    for use in ("train", for_test):
        chosen = sorted(top for top in counts if roles[top] == use)
        names[use] = _some(chosen)
        places[use] = np.flatnonzero([roles[top] == use for top in tops])
    others = [
        f"{top or 'beside them'} ({count})"
        for top, count in sorted(counts.items())
        if roles[top] not in ("train", for_test)
    ]
    logger.info(
        "training images: %s (%d); test images: %s (%d)%s",
        *(names["train"], len(places["train"]), names[for_test], len(places[for_test])),
        f"; not used: {', '.join(others)}" if others else "",
    )
    return Split(places["train"], places[for_test], level, names["train"], names[for_test])


def photographs(
    data: Data | None = None, test_data: Data | None = None, wanted: Wanted = _RGB
) -> tuple[Source, Source]:
    """Photographs for training and for testing.

    Args:
        data: the images, split by the rule of this module; None: the embedded photographs, whose
            left 70 % are for training and right 30 % for testing.
        test_data: photographs for testing; all of `data` is then for training.
        wanted: what is asked of their channels; the embedded ones are RGB.

    Raises:
        ValueError: fewer than two images to split, or other channels than RGB without any.
    """
    if data is None and wanted.channels != RGB:
        raise ValueError(
            f"--data: expected images with channels {wanted.channels}, as the encoder takes; the "
            f"embedded photographs are RGB"
        )
    if data is None:
        if test_data is not None:
            raise ValueError("--test-data: expected --data beside it")
        return embedded_photos(TRAIN_REGION), embedded_photos(TEST_REGION)
    if test_data is not None:
        train, test = (open_source(each, wanted=wanted) for each in (data, test_data))
        return train, test
    images = Images.opened(data, wanted)
    source, split = images.source, named_split(images)
    if split is not None:
        return source.pick(split.train), source.pick(split.test)
    if len(source) < 2:
        raise ValueError(f"--data: expected at least 2 images to split, {data} has {len(source)}")
    tested = held_out_of(source)
    logger.info(
        "no folder is named as a split: every fifth of %d images is for testing", len(source)
    )
    return source.pick(np.flatnonzero(~tested)), source.pick(np.flatnonzero(tested))


def for_test(data: Data | None, test_data: Data | None, wanted: Wanted = _RGB) -> Source:
    """The photographs for testing, where nothing is fitted: `test_data` needs no `data` beside it.

    Args:
        data, test_data, wanted: see :func:`photographs`.
    """
    if test_data is None:
        return photographs(data, wanted=wanted)[1]
    return open_source(test_data, wanted=wanted)


def shared(train: Source, test: Source) -> int:
    """How many test images are among the training images: the same file, or the same bytes.

    Bytes are read only of images that are alike in pixels and in bytes.
    """
    common = set(map(tuple, train.sizes.tolist())) & set(map(tuple, test.sizes.tolist()))
    of_train, of_test = (_by_measures(source, common) for source in (train, test))
    found = 0
    for measures in of_train.keys() & of_test.keys():
        ours, theirs = of_train[measures], of_test[measures]
        places = {_place(train, i) for i in ours}
        left = [i for i in theirs if _place(test, i) not in places]
        found += len(theirs) - len(left)
        if left:
            known = {_digest(train, i) for i in ours} - {None}
            found += sum(_digest(test, i) in known for i in left)
    return found


def _by_measures(
    source: Source, sizes: Collection[tuple[int, ...]]
) -> dict[tuple[int, ...], list[int]]:
    """The images of some sizes in pixels, by height, width and number of bytes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(map(tuple, source.sizes.tolist())):
        if size in sizes:
            found.setdefault((*size, _bytes(source, i)), []).append(i)
    return found


def _place(source: Source, i: int) -> tuple[str, int, int | None]:
    """The file of an image, its first byte there, and its page; arrays of a file are one image."""
    if source.spans is None:
        file, part = split(source.paths[i])
        return os.path.abspath(file), 0, part.page
    page = part_of(source.names[i]).page
    return os.path.abspath(source.paths[i]), int(source.spans[i, 0]), page


def _bytes(source: Source, i: int) -> int:
    """How many bytes an image has; -1 if its file is gone."""
    count = -1 if source.spans is None else int(source.spans[i, 1])
    if count < 0:
        with contextlib.suppress(OSError):
            count = os.path.getsize(split(source.paths[i])[0])
    return count


def _digest(source: Source, i: int) -> bytes | None:
    """Of an image's bytes; None where they cannot be read."""
    try:
        return hashlib.sha256(patiently(source.encoded, i).data).digest()
    except OSError as error:
        if not isinstance(error, Unreadable):  # an image of a lost shard is not used
            raise_trouble(error)
        return None


def _some(names: Sequence[str]) -> str:
    """At most three of them."""
    shown = [name if name.endswith((".tar", ".txt")) else f"{name}/" for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
