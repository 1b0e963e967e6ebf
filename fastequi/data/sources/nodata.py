"""Pixels that stand for no data: margins of satellite images, gaps, clouds that were cut out.

They get the least value that their channel has in the same image: no value that is far from all
others, which would be all that a range of percentiles or a deviation shows, and no edge to black.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def said(text: str) -> float:
    """The number that GDAL_NODATA is.

    Raises:
        ValueError: it is none.
    """
    try:
        return float(text.strip().strip("\0"))
    except ValueError:
        raise ValueError(f"GDAL_NODATA is {text!r}, expected a number") from None


def fill(values: NDArray[Any], number: float | None) -> None:
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


def _missing(values: NDArray[Any], number: float | None) -> NDArray[np.bool_] | None:
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
