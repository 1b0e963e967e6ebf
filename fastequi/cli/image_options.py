"""Options that select images, the same for every command that takes images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from fastequi.data.sources import idx
from fastequi.data.sources.patterns import Patterns
from fastequi.data.sources.selection import Selection
from fastequi.kernels.toolchain import cache_folder

Several = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]
"""`--data A B` as well as `--data A --data B`."""


@dataclass(frozen=True, kw_only=True)
class Patterned:
    """Options of a command that takes images."""

    include: Several = ()
    """Use only images that match a pattern: the name of a file or folder ('*.jpg', cat), or a path
    from the top ('cat/*', '**/day')."""
    exclude: Several = ()
    """Leave out images that match a pattern, as for --include."""

    def selection(self, places: tuple[tuple[str, ...], ...], option: str = "--data") -> Selection:
        """The images in places that match the patterns.

        Raises:
            ValueError: a place is empty or a URL, or a pattern is invalid.
        """
        patterns = Patterns(flat(self.include), flat(self.exclude))
        return Selection.of(Selection(flat(places), patterns, option))


@dataclass(frozen=True, kw_only=True)
class Tolerant(Patterned):
    """Options of a command that computes features of images, of which some may be unreadable."""

    tolerate: float | None = None
    """Largest share of the images that may be unreadable, and are left out; by default that of the
    CHECKPOINT's run (its data.tolerate), and a tenth where it is no run's."""

    def selection(self, places: tuple[tuple[str, ...], ...], option: str = "--data") -> Selection:
        """As of :class:`Patterned`.

        Raises:
            ValueError: as there, or no share is given.
        """
        if self.tolerate is not None and not 0 <= self.tolerate < 1:
            raise ValueError(f"--tolerate: expected a share 0 <= tolerate < 1, got {self.tolerate}")
        chosen = super().selection(places, option)
        return replace(chosen, tolerate=self.tolerate, tolerate_as="--tolerate")


def flat(given: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All values of a repeated option."""
    return tuple(word for words in given for word in words)


def as_images(selection: Selection) -> Selection:
    """The same, with MNIST-like sets (IDX files) replaced by image files, which are made once."""
    places = [
        str(idx.as_files(place, "train", cache_folder())) if idx.is_idx_folder(place) else place
        for place in selection.places
    ]
    return replace(selection, places=tuple(places))


def images_of(
    options: Patterned, places: tuple[tuple[str, ...], ...], option: str = "--data"
) -> Selection | None:
    """The images that an option names; None without the option."""
    return as_images(options.selection(places, option)) if flat(places) else None


def expect_places(given: tuple[tuple[str, ...], ...], what: str, option: str = "--data") -> None:
    """Raises ValueError if a required option was not given."""
    if not flat(given):
        raise ValueError(f"{option}: expected {what}")
