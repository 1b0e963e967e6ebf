"""The words of `data.channels` and `data.value_range`: which values of an image files a run takes.

Channels are counted from 0. What lies at or below the lower end of the range becomes 0, at or above
the upper end 1; in between it is linear.
"""

from __future__ import annotations

import math
import re

from fastequi.functional.fused_views import MOST_VALUE, is_range

RGB = "rgb"
ALL = "all"
DTYPE = "dtype"
PERCENTILES = "percentiles"
MOST = 1024  # channels, as the kernels take

Ranges = tuple[tuple[float, float], ...]  # lower and upper end of each channel


def chosen(text: str) -> tuple[int, ...] | None:
    """The numbers in "0,3,7"; None of "rgb" and of "all".

    Raises:
        ValueError: another text, a number that comes twice, or more than 1024.
    """
    text = plain(text)
    if text in (RGB, ALL):
        return None
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise ValueError(
            f"channels: expected {RGB}, {ALL} or numbers from 0 such as 0,3,7, got {text!r}"
        )
    numbers = tuple(map(int, text.split(",")))
    if len(set(numbers)) < len(numbers) or len(numbers) > MOST:
        raise ValueError(f"channels: expected at most {MOST} numbers that differ, got {text}")
    return numbers


def plain(text: str) -> str:
    """Without blanks around words, commas and colons: one text for what means the same."""
    pieces = (piece.split(":") for piece in text.split(","))
    return ",".join(":".join(word.strip() for word in piece) for piece in pieces)


def written(numbers: tuple[int, ...]) -> str:
    """Channels as :func:`chosen` reads them."""
    return ",".join(map(str, numbers))


def ranges(text: str) -> Ranges | None:
    """The ends in "0:4095", of all channels, or in "0:4095,10:900", of each; None of the words
    "dtype" and "percentiles" or "percentiles:1:99".

    Raises:
        ValueError: another text, or an upper end that is not above the lower one.
    """
    text = plain(text)
    if text == DTYPE or percentiles(text) is not None:
        return None
    try:
        pairs = [tuple(map(float, pair.split(":"))) for pair in text.split(",")]
        found = tuple((low, high) for low, high in pairs)
    except ValueError:
        found = ()
    if not found or not all(is_range(low, high) for low, high in found):
        raise ValueError(
            f"value_range: expected {DTYPE}, {PERCENTILES} or LOW:HIGH such as 0:4095, of each "
            f"channel 0:4095,10:900, with LOW below HIGH (within ±{MOST_VALUE:g}, and apart in "
            f"float32 too), got {text!r}"
        )
    return found


def percentiles(text: str) -> tuple[float, float] | None:
    """The two in "percentiles:1:99", .1 and 99.9 of "percentiles"; None of another text."""
    text = plain(text)
    if text == PERCENTILES:
        return 0.1, 99.9
    word, _, rest = text.partition(":")
    if word != PERCENTILES:
        return None
    try:
        low, high = map(float, rest.split(":"))
    except ValueError:
        low = high = math.nan
    if not 0 <= low < high <= 100:
        raise ValueError(
            f"value_range: expected {PERCENTILES}:LOW:HIGH, 0 <= LOW < HIGH <= 100, got {text!r}"
        )
    return low, high
