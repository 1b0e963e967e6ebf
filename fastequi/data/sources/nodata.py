"""Pixels that stand for no data: margins of satellite images, gaps, clouds that were cut out.

They get the least value that their channel has in the same image: no value that is far from all
others, which would be all that a range of percentiles or a deviation shows, and no edge to black.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Number = int | float  # whole ones beyond 2^53 are none of the latter
# as C's libraries write what is no number, and infinity
_NAN = re.compile(r"[-+]?(?:nan(?:\(\w*\))?|1\.#(?:q|s)?nan0*|1\.#ind0*)", re.IGNORECASE)
_INFINITE = re.compile(r"([-+]?)1\.#inf0*", re.IGNORECASE)


def number_of(said: str | bytes | None) -> Number | None:
    """The number that GDAL_NODATA, or the end of a name, is; None where it says nothing.

    Raises:
        ValueError: it is none.
    """
    text = said.decode(errors="replace") if isinstance(said, bytes) else said or ""
    text = text.strip(" \0\t\n")
    if not text:
        return None
    if _NAN.fullmatch(text):
        return math.nan
    if found := _INFINITE.fullmatch(text):
        return -math.inf if found[1] == "-" else math.inf
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"GDAL_NODATA is {text!r}, expected a number")


def fill(values: NDArray[Any], number: Number | None) -> None:
    """Writes the least value of each channel of values [H, W, C] in the place of a number, and of
    values that are not finite; 0 in a channel that has no others.

    Raises:
        ValueError: no pixel has data.
    """
    missing = _missing(values, number)
    if missing is None or not missing.any():
        return
    if missing.all():
        raise ValueError("no pixel has data")
    for c in range(values.shape[2]):
        there = values[..., c][~missing[..., c]]
        values[..., c][missing[..., c]] = there.min() if there.size else 0


def _missing(values: NDArray[Any], number: Number | None) -> NDArray[np.bool_] | None:
    if values.dtype.kind == "f":
        missing = ~np.isfinite(values)
        with np.errstate(over="ignore"):  # of a number beyond half precision
            return missing if number is None else missing | (values == values.dtype.type(number))
    if number is None or not math.isfinite(number) or number != int(number):
        return None
    if values.dtype.kind == "b":
        return None
    limits = np.iinfo(values.dtype)
    return values == int(number) if limits.min <= number <= limits.max else None
