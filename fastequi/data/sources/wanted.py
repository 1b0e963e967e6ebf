"""Which images of a set a run can take, by what their values are, and what it tells of the others.

A run that makes 8-bit RGB takes what DALI or a library makes it of. One that keeps channels takes
images with one number of channels, the one that most have.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastequi.data.channels import ALL, MOST, RGB, chosen
from fastequi.data.sources.kinds import (
    DEEPER,
    DEPTHS,
    MORE_BITS,
    NO_RGB,
    Kind,
    counts,
    doubt_about_axes,
    tally,
)
from fastequi.data.sources.measured import Measured
from fastequi.data.sources.tolerance import Tolerance

logger = logging.getLogger(__name__)

_TOLERATED = 0.1  # share of images that a run leaves out unless data.tolerate says otherwise
_GREY_AND_MORE = 2  # channels, of which the first is taken as grey
_FEW_GREYS = 26  # a tenth of 8 bits' values
_LOOKED_AT = 1000  # images


@dataclass(frozen=True)
class Wanted:
    """What a run asks of the images.

    Attributes:
        channels: as `data.channels`.
        one_depth: whether all have to be of one depth, as a range in the files' numbers needs it.
        count, depth: of a run that has begun: the channels of its files, and the deepest type; no
            type of evaluation, which takes any where none has to be the same.
        by_encoder: whether an encoder takes them, which no option changes.
        part: what of each file, as the end of a name (`fastequi.data.sources.parts`), where no scan
            says it: as a run did.
        tolerance: how many of them may be unreadable.
    """

    channels: str = RGB
    one_depth: bool = False
    count: int = 0
    depth: str = ""
    by_encoder: bool = False
    part: str = ""
    tolerance: Tolerance = Tolerance()  # noqa: RUF009

    def _instead(self, kind: Kind, codes: NDArray[np.uint16] | None) -> str:
        """What keeps images as they are, behind what RGB does not; "" where nothing does."""
        if self.by_encoder or not Wanted(ALL).takes(kind, codes):
            return ""
        keeps = f"; --data.channels {ALL} keeps them as they are"
        ends = ", and --data.value-range says which floats become 0 and 1 (by default 0:1)"
        return keeps + ends * (kind.depth == "float32")

    @property
    def begun(self) -> bool:
        """Whether a run says what its images are; others were added later."""
        return bool(self.count)

    def takes(self, kind: Kind, codes: NDArray[np.uint16] | None) -> bool:
        """Whether a run takes images of this kind and leaves few others out."""
        many = tally(codes)
        if not many:
            return True
        unfit = self.unfit(codes)
        left = sum(many[code] for code in unfit)
        own = any(code % NO_RGB == kind.code for code in many if code not in unfit)
        return own and left <= max(1, int(sum(many.values()) * _TOLERATED))

    def unfit(
        self, codes: NDArray[np.uint16] | None, side: int = MOST, formats: Collection[str] = ()
    ) -> dict[int, str]:
        """{kind's number: why images of it are left out}.

        Args:
            codes: of all images.
            side: the smallest of theirs, as far as one is known.
            formats: of their files, as far as they are known.

        Raises:
            ValueError: channels are asked for of images whose kinds are not known.
        """
        many = tally(codes)
        if self.channels == RGB:
            none = [code for code in many if code & NO_RGB]
            reasons = {code: f"{_named(code)}, of which no RGB is made" for code in none}
            for code in none:
                if (kind := Kind.of(code)) is not None:
                    doubt = doubt_about_axes(kind, side, formats)
                    reasons[code] += f"; {doubt}" if doubt else self._instead(kind, codes)
            return reasons
        known = {code: kind for code in many if (kind := Kind.of(code)) is not None}
        if not known and (codes is None or len(codes)) and DEEPER not in many:
            raise ValueError(
                f"data.channels: expected rgb, as an index of before does not say what channels "
                f"images have, got {self.channels}; fastequi data scan makes it again"
            )
        reasons = dict.fromkeys(set(many) - set(known), "channels that are not read as they are")
        reasons |= dict.fromkeys((code for code in many if code % NO_RGB == DEEPER), MORE_BITS)
        numbers = chosen(self.channels) or (0,)
        least = max(numbers) + 1
        fit = {code: kind for code, kind in known.items() if least <= kind.channels <= MOST}
        count, counted = self._of(self.count, fit, many, "channels")
        same = {code: kind for code, kind in fit.items() if kind.channels == count}
        depth, deep = self._of(self.depth, same, many, "depth")
        for code, kind in known.items():
            if self.begun and kind.channels != count:
                reasons[code] = f"{kind}, expected {count} channels as the run's"
            elif kind.channels < least:
                reasons[code] = f"{kind}, no channel {least - 1}"
            elif kind.channels > MOST:
                reasons[code] = f"{kind}, more than {MOST}"
            elif kind.channels != count:
                reasons[code] = f"{kind}, expected {count}{counted}"
            elif self.one_depth and self.begun and kind.depth != depth:
                reasons[code] = (
                    f"{kind}, expected {depth}{deep}, as data.value_range is in its numbers"
                )
            elif self.one_depth and kind.depth != depth:
                reasons[code] = (
                    f"{kind}, but data.value_range is in the numbers of one depth, {depth}{deep}; "
                    f"data.value_range=dtype takes several"
                )
            elif self.depth and DEPTHS.index(kind.depth) > DEPTHS.index(self.depth):
                reasons[code] = f"{kind}, expected {depth} at most as the run's"
        return reasons

    def _of(
        self, own: int | str, kinds: Mapping[int, Kind], many: Mapping[int, int], name: str
    ) -> tuple[int | str, str]:
        """(the value of a field that images shall have, why this one)."""
        if own:
            return own, " as the run's"
        total: dict[int | str, int] = {}
        for code, kind in kinds.items():
            value = getattr(kind, name)
            total[value] = total.get(value, 0) + many[code]
        most = max(total, key=lambda value: (total[value], _rank(value))) if total else 0
        even = [value for value, number in total.items() if number == total.get(most)]
        if len(even) > 1:
            return most, " (as many have another)"
        return most, " as most have"

    def tell(
        self,
        what: str,
        codes: NDArray[np.uint16] | None,
        sides: NDArray[np.int32],
        formats: Collection[str],
        measured: Mapping[int, Measured],
    ) -> None:
        """Logs what a run makes of images that are not as it uses them.

        Args:
            what: they are.
            codes: of their kinds.
            sides: [n, 2] of them.
            formats: of their files.
            measured: of kinds by their numbers, where a scan has.
        """
        if self.channels != RGB:
            side = smallest(sides)
            for kind in counts(codes):
                if said := doubt_about_axes(kind, side, formats):
                    logger.warning("%s: %s", what, said)
            return
        for kind, count in counts(codes).items():
            if kind.more_than_rgb8:
                made = f"{_made_rgb(count, f' of {kind}')}{_dropped(kind)}"
                words = self._instead(kind, codes), _greys(measured.get(kind.code), kind)
                logger.warning("%s: %s%s%s", what, made, *words)
        if count := tally(codes).get(DEEPER, 0):
            logger.warning("%s: %s, of %s", what, _made_rgb(count), MORE_BITS)


def smallest(sides: NDArray[np.int32]) -> int:
    """The smallest side of the first images."""
    return int(sides[:_LOOKED_AT].min(initial=MOST))


def _made_rgb(count: int, of: str = "") -> str:
    """That images are made RGB: "1 image of ... is made 8-bit RGB"."""
    images, are = ("image", "is") if count == 1 else ("images", "are")
    return f"{count} {images}{of} {are} made 8-bit RGB"


def _dropped(kind: Kind) -> str:
    """Which channels are not in the RGB that is made of images."""
    if kind.channels in (1, 3):
        return ""
    each = {_GREY_AND_MORE: "the second channel", 4: "the fourth channel"}
    return f", without {each.get(kind.channels, 'the channels behind the third')}"


def _greys(measured: Measured | None, kind: Kind) -> str:
    """How few of 8 bits' 256 values the images take, by what was measured; "" of enough."""
    if measured is None or kind.depth != "uint16":
        return ""
    used = 1 if kind.channels == _GREY_AND_MORE else 3
    low, high = (measured.percentiles[p][:used] for p in (0.1, 99.9))
    most = max(_in_8_bits(b) - _in_8_bits(a) + 1 for a, b in zip(low, high, strict=True))
    if most > _FEW_GREYS:
        return ""
    ends = f"{min(low):.9g} to {max(high):.9g}"
    return f"; little is left of them: their values, {ends}, become {most} of 256 greys"


def _in_8_bits(value: float) -> int:
    """A value of 16 bits as decoding to 8 bits makes it."""
    return (int(value) * 255 + 32767) // 65535


def _named(code: int) -> str:
    """A kind in words, one that is not known too."""
    if code % NO_RGB == DEEPER:
        return MORE_BITS
    return str(Kind.of(code) or "channels that are not read as they are")


def _rank(value: int | str) -> int:
    """The order of channels, or of depths."""
    return DEPTHS.index(value) if isinstance(value, str) else value
