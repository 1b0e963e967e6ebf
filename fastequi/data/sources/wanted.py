"""Which images of a set a run can take, by what their values are, and what it tells of the others.

A run that makes 8-bit RGB takes whole numbers of up to four channels. One that keeps channels takes
images with one number of channels, the one that most have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastequi.data.channels import ALL, RGB, chosen
from fastequi.data.sources.kinds import Kind, counts

logger = logging.getLogger(__name__)

_MOST_OF_RGB = 4  # channels that RGB is made of: grey, grey with alpha, RGB, and with alpha


@dataclass(frozen=True)
class Wanted:
    """What a run asks of the images.

    Attributes:
        channels: as `data.channels`.
        one_depth: whether all have to be of one depth, as a range in the files' numbers needs it.
    """

    channels: str = RGB
    one_depth: bool = False

    def unfit(self, codes: NDArray[np.uint16] | None) -> dict[int, str]:
        """{kind's number: why images of it are left out}.

        Raises:
            ValueError: channels are asked for of images whose kinds are not known.
        """
        found = counts(codes)
        if self.channels == RGB:
            return {
                kind.code: f"{kind}, of which no RGB is made; data.channels={ALL} keeps them"
                for kind in found
                if kind.channels > _MOST_OF_RGB or kind.depth == "float32"
            }
        if codes is None or (len(codes) and not codes.all()):
            raise ValueError(
                f"data.channels: expected rgb, as an index of before does not say what channels "
                f"images have, got {self.channels}; fastequi data scan makes it again"
            )
        least = max(chosen(self.channels) or (0,)) + 1
        fit = {kind: count for kind, count in found.items() if kind.channels >= least}
        if not fit:
            return {kind.code: f"{kind}, expected at least {least}" for kind in found}
        count = _most(fit, "channels")
        fit = {kind: many for kind, many in fit.items() if kind.channels == count}
        depth = _most(fit, "depth")
        reasons = {}
        for kind in found:
            if kind.channels != count:
                reasons[kind.code] = f"{kind}, expected {count} as most have"
            elif self.one_depth and kind.depth != depth:
                reasons[kind.code] = f"{kind}, expected {depth} as most are for a value_range"
        return reasons

    def tell(self, what: str, codes: NDArray[np.uint16] | None) -> None:
        """Logs what a run makes of images that are not as it uses them."""
        if self.channels != RGB:
            return
        for kind, count in counts(codes).items():
            if kind.depth == "uint16" or kind.channels not in (1, 3):
                logger.warning(
                    "%s: %d images of %s are made 8-bit RGB; --data.channels %s keeps them as they "
                    "are",
                    *(what, count, kind, ALL),
                )


def _most(kinds: Mapping[Kind, int], name: str) -> int | str:
    """The value of a field that most images have; of equally many the larger."""
    many: dict[int | str, int] = {}
    for kind, count in kinds.items():
        value = getattr(kind, name)
        many[value] = many.get(value, 0) + count
    return max(many, key=lambda value: (many[value], value))
