"""The options that choose images, the same for every command that takes images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastequi.data.sources import idx
from fastequi.data.sources.image_sets import Selection
from fastequi.data.sources.patterns import Patterns
from fastequi.kernels.toolchain import cache_folder

Several = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""`--data A B` as well as `--data A --data B`."""


@dataclass(frozen=True, kw_only=True)
class Patterned:
    """Options of a command that takes images."""

    include: Several = ()
    """Only images that match: a file's or a folder's name ('*.jpg', cat), or a path from the top
    ('cat/*', '**/day')."""
    exclude: Several = ()
    """Leave out images that match, likewise."""

    def selection(self, places: tuple[tuple[str, ...], ...], option: str = "--data") -> Selection:
        """The images in places that match the patterns.

        Raises:
            ValueError: a place is empty or a URL, or a pattern is not valid.
        """
        patterns = Patterns(flat(self.include), flat(self.exclude))
        return Selection.of(Selection(flat(places), patterns, option))


def flat(given: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All values of an option that may be repeated, in one tuple."""
    return tuple(word for words in given for word in words)


def as_images(selection: Selection) -> Selection:
    """The same, with folders of IDX files (MNIST) replaced by image files, which are made once."""
    places = [
        str(idx.as_files(place, "train", cache_folder())) if idx.is_idx_folder(place) else place
        for place in selection.places
    ]
    return Selection(tuple(places), selection.patterns, selection.option)


def expect_places(given: tuple[tuple[str, ...], ...], what: str, option: str = "--data") -> None:
    """Raises ValueError if a required option is missing."""
    if not flat(given):
        raise ValueError(f"{option}: expected {what}")
