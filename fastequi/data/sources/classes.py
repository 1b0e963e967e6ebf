"""The class of every image, from its folder or from a file beside it.

* In a folder: the first folder below it, or below its train/ or val/
    (`fastequi.data.sources.splits`).
* In a list file: the text after the tab, else the image's folder.
* In a shard: KEY.cls or KEY.json, else the member's folder.

Folders with equal sub-folders are more likely splits than classes: they are refused, unless they
are named as splits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import BinaryIO, cast

from fastequi.data.sources.images import Source
from fastequi.data.sources.listing import listed
from fastequi.data.sources.parts import split
from fastequi.data.sources.shards import key, member_labels
from fastequi.data.sources.splits import WEAK, Images, Split, named_split, role

logger = logging.getLogger(__name__)

_NAMED = 5


def split_by_name(images: Images) -> Split | None:
    """As `splits.named_split`; but folders of images called "tr" and "te" are classes."""
    level = images.level()
    nested = {steps[level] for steps in images.folders if len(steps) > level + 1}
    tops = {steps[level] for steps in images.folders if len(steps) > level}
    named = {top for top in tops if role(top)}
    if named - nested and all(top.lower() in WEAK for top in named):
        return None
    return named_split(images)


def classes_of(images: Images, split: Split | None) -> list[str]:
    """The class of every image; "" of those that a split does not use.

    Raises:
        ValueError: an image has no class, or class folders look like splits.
    """
    least = _base(images) if split is None else split.level + 1
    used: Sequence[int] = range(len(images.source))
    if split is None:
        _refuse_unnamed_splits(images, least)
    else:
        used = sorted([*split.train.tolist(), *split.test.tolist()])
    found, given = [""] * len(images.source), _given(images)
    for i in used:
        part = images.parts[images.of[i]]
        if part.is_list:
            own = os.path.basename(os.path.dirname(os.path.abspath(images.source.paths[i])))
        elif part.is_shards:
            own = images.inside[i][-1] if images.inside[i] else ""
        else:
            own = "".join(images.inside[i][_at(images, i, least) :][:1])
        found[i] = given[i] or own
        if not found[i]:
            file = " and no .cls or .json names one" if part.is_shards else ""
            raise ValueError(
                f"--data: expected a subfolder for each class in {part.place}, but "
                f"{images.source.names[i]} lies in none{file}"
            )
    _say_empty(images, used, set(found), least)
    return found


def _at(images: Images, i: int, least: int) -> int:
    """Which of the folders inside the place of image i names its class."""
    return max(least - (len(images.folders[i]) - len(images.inside[i])), 0)


def _base(images: Images) -> int:
    """Where classes begin without a split: below a train/ that stands alone, else at the top."""
    common = images.folders[0][: images.level()]
    return max((i + 1 for i, name in enumerate(common) if role(name)), default=0)


def _given(images: Images) -> list[str]:
    """The class of every image by list files and files in shards; "" where they have none."""
    lists = {p.place: listed(p.place) for p in images.parts if p.is_list}
    shards: dict[str, dict[str, str]] = {}
    found = []
    for path, name, k in zip(images.source.paths, images.source.names, images.of, strict=True):
        part = images.parts[k]
        label = ""
        if part.is_list:
            label = lists[part.place].get(os.path.relpath(split(path)[0], part.root), "")
        elif part.is_shards:
            if path not in shards:
                shards[path] = _labels(images.source, path)
            member = name.partition(f"{os.path.basename(path)}/")[2]
            label = shards[path].get(key(member), "")
        found.append(label)
    return found


def _labels(source: Source, shard: str) -> dict[str, str]:
    if source.remote is not None:
        return member_labels(cast(BinaryIO, source.remote.file(shard)))
    with open(shard, "rb") as file:
        return member_labels(file)


def _refuse_unnamed_splits(images: Images, least: int) -> None:
    """Raises ValueError where folders hold the same folders, as splits do and classes hardly."""
    below: dict[str, set[str]] = {}
    for i, inside in enumerate(images.inside):
        own = inside[_at(images, i, least) :]
        if own and not (images.parts[images.of[i]].is_list or images.parts[images.of[i]].is_shards):
            below.setdefault(own[0], set()).update(own[1:2] or [""])
    nested = {top: inner for top, inner in below.items() if "" not in inner and len(inner) > 1}
    same: dict[frozenset[str], list[str]] = {}
    for top, inner in nested.items():
        same.setdefault(frozenset(inner), []).append(top)
    alike = next((tops for tops in same.values() if len(tops) > 1), [])
    if not alike and 1 < len(nested) == len(below) <= _NAMED:
        alike = list(nested) if len(set.intersection(*nested.values())) > 1 else []
    how = (
        "name them train and val, or give one by --data and the other by --test-data; if they are "
        "classes, list the images in a file.txt, in every line a path, a tab and the class"
    )
    if alike:
        raise ValueError(
            f"--data: {_some(alike)} hold the same folders ({_some(nested[alike[0]])}), as splits "
            f"do, but are not named as one for training and one for testing. If they are splits, "
            f"{how}"
        )
    if lone := next((top for top in nested if role(top)), ""):
        others = f"only {_some(set(below) - {lone})}" if len(below) > 1 else "nothing else"
        raise ValueError(
            f"--data: {lone} is named as a split and holds folders ({_some(nested[lone])}), but "
            f"beside it is no other, {others}. If they are splits, {how}"
        )


def _say_empty(images: Images, used: Sequence[int], known: set[str], least: int) -> None:
    """Warns of class folders without a readable image, which would vanish silently."""
    parents = set()
    for i in used:
        part = images.parts[images.of[i]]
        if not (part.is_list or part.is_shards):
            parents.add(os.path.join(part.root, *images.inside[i][: _at(images, i, least)]))
    empty = {
        entry.name
        for parent in parents
        for entry in os.scandir(parent)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in known
    }
    if empty:
        logger.warning("class folders without an image that can be read: %s", _some(empty))


def _some(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_NAMED]) + (", ..." if len(shown) > _NAMED else "")
