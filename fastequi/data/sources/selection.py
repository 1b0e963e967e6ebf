"""Which images are asked for: places, and patterns of names. No place is opened here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastequi.data.sources.encoded import is_image_name
from fastequi.data.sources.listing import is_list, listed
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.shards import is_shards
from fastequi.data.sources.tolerance import Tolerance
from fastequi.data.sources.urls import READ, expect_shards, is_url, scheme

Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Selection:
    """A selection of images: places, and patterns of names.

    Attributes:
        places: folders, list files (see `fastequi.data.sources.listing`), tar shards (a file, a
            glob, or a range such as {000..012}); or the URL of tar shards, alone.
        patterns: which of the images there, by their names.
        option: named in errors.
        tolerate: largest share of images that may be unreadable; None: as the run has it.
        tolerate_as: how errors call that share; "": nothing changes it.
    """

    places: tuple[str, ...]
    patterns: Patterns = Patterns()  # noqa: RUF009
    option: str = "--data"
    tolerate: float | None = None
    tolerate_as: str = Tolerance.option

    @classmethod
    def of(cls, data: Data) -> Selection:
        """From one place, several, or a selection.

        Raises:
            ValueError: a place is empty, or a URL of no tar shards.
        """
        if isinstance(data, Selection):
            chosen = data
        elif isinstance(data, str | os.PathLike):
            chosen = cls((os.fspath(data),))
        else:
            chosen = cls(tuple(os.fspath(place) for place in data))
        for place in chosen.places or ("",):
            if not place.strip():
                raise ValueError(f"{chosen.option}: expected a path, got {place!r}")
            (expect_shards if scheme(place) in READ else expect_local)(chosen.option, place)
        return chosen

    def to_json(self) -> dict[str, str | list[str]]:
        """For result files: "data", a path or several; "include", "exclude" if given."""
        many = list(self.places)
        patterns = {"include": self.patterns.include, "exclude": self.patterns.exclude}
        given = {name: list(words) for name, words in patterns.items() if words}
        return {"data": many[0] if len(many) == 1 else many, **given}

    def __str__(self) -> str:
        return " ".join([*self.places, *([str(self.patterns)] if self.patterns else [])])


Data = Selection | Place | Sequence[Place]


def places_in(chosen: Selection) -> list[Path | str]:
    """Every place; a list file may name folders and shards too, which are places of their own.

    A URL stays text: a path has one slash where it has two.
    """
    urls = [place for place in chosen.places if is_url(place)]
    if urls and len(chosen.places) > 1:
        raise ValueError(
            f"{chosen.option}: expected the URL {urls[0]} alone, got {len(chosen.places)} places; "
            f"several shards are one URL with a range or a glob"
        )
    found: list[Path | str] = [*urls]
    for given in () if urls else chosen.places:
        place = Path(given).expanduser()
        if not is_list(place):
            found.append(place)
            continue
        lines = [place.parent / name for name in listed(place)]
        images = [is_image_name(line.name) for line in lines]
        others = [
            line
            for line, image in zip(lines, images, strict=True)
            if not image and (line.is_dir() or is_shards(line))
        ]
        found += [place] * (any(images) or not others) + others
    return found
