"""The options of a run that a scan prints for images of one kind: lines that run as they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastequi.data.channels import ALL, PERCENTILES, written
from fastequi.data.pixels import LARGEST
from fastequi.data.sources import measured as known
from fastequi.data.sources.kinds import Kind, counts, tally
from fastequi.data.sources.measured import Measured, in_unit
from fastequi.data.sources.wanted import Wanted
from fastequi.functional.fused_views import MOST_VALUE, is_range

_LOW, _HIGH = 0.1, 99.9  # of the word alone
_COLORS = "0,1,2"


def options(
    kind: Kind, measured: Measured, every: Mapping[int, Measured], codes: NDArray[np.uint16] | None
) -> list[str]:
    """What a run of these images is given, or in words why there is nothing that runs.

    Args:
        kind: of the images.
        measured: of them.
        every: what was measured of all kinds, by their numbers.
        codes: the kinds of all images of the set.
    """
    if kind.channels in (1, 3) and kind.depth == "uint8" and _is_made_rgb(kind, codes):
        each = (measured.mean, measured.std)
        mean, std = (_numbers(value / 255 for value in values) for values in each)
        if kind.channels == 1 or min(measured.std) <= 0:
            return [f"  mean {mean}, std {std}, of values in 0..1"]
        return [f"  --data.mean {mean} --data.std {std}"]
    if len({one.channels for one in counts(codes)}) > 1 and not Wanted(ALL).takes(kind, codes):
        return [
            "  of images with several numbers of channels a run takes those that most have: "
            "--exclude leaves the others out"
        ]
    lines = []
    if kind.rgb and (kind.channels == 4 or kind.depth == "uint16"):
        said = ALL if kind.channels == 3 else _COLORS
        lines.append(f"  --data.channels {said} (red, green, blue; mean and std stay ImageNet's)")
        if kind.channels == 3:
            return lines
    if not Wanted(ALL, one_depth=True).takes(kind, codes):
        return [*lines, *_of_depths(kind, every, codes)]
    return [*lines, *_ranged(kind, measured)]


def _ranged(kind: Kind, measured: Measured) -> list[str]:
    """Percentiles between which every channel has a range, and the channels that have one."""
    whole, size = range(kind.channels), np.abs
    lows = [p for p in known.PERCENTILES if _LOW <= p < 50]
    highs = [p for p in reversed(known.PERCENTILES) if 50 < p <= _HIGH]

    def held(percentiles: Sequence[float]) -> float:
        """The first percentile at which no channel has a value that only marks missing ones."""
        each = (p for p in percentiles if size(measured.percentiles[p]).max() <= MOST_VALUE)
        return next(each, percentiles[-1])

    low, high = held(lows), held(highs)
    usable = _usable(measured, low, high, whole)
    if len(usable) < kind.channels:  # few pixels may have all that differs
        wider = _usable(measured, 0.0, 100.0, whole)
        if len(wider) > len(usable):
            low, high, usable = 0.0, 100.0, wider
    if not usable:
        return ["  in every channel nearly all values are one: there is no range to train on"]
    word = PERCENTILES if (low, high) == (_LOW, _HIGH) else f"{PERCENTILES}:{low:g}:{high:g}"
    said = ALL if len(usable) == kind.channels else written(usable)
    lines = [f"  --data.channels {said} --data.value-range {word}"]
    if said != ALL:
        rest = tuple(sorted(set(whole) - set(usable)))
        lines.append(f"  without channels {written(rest)}, whose values are nearly all one")
    if size(measured.percentiles[_LOW]).max() > MOST_VALUE or (
        size(measured.percentiles[_HIGH]).max() > MOST_VALUE
    ):
        lines.append(
            f"  values beyond ±{MOST_VALUE:g}, as files mark missing ones, are outside this range"
        )
    return lines


def _usable(measured: Measured, low: float, high: float, whole: range) -> tuple[int, ...]:
    """The channels that a run takes with this range."""
    ends = [(measured.percentiles[low][c], measured.percentiles[high][c]) for c in whole]
    fine = [c for c in whole if is_range(*ends[c])]
    _, std = in_unit(measured, [ends[c] for c in fine], fine)
    return tuple(c for c, each in zip(fine, std, strict=True) if each > 0)


def _of_depths(
    kind: Kind, every: Mapping[int, Measured], codes: NDArray[np.uint16] | None
) -> list[str]:
    """Of images with one number of channels and several depths: normalised as all together."""
    parts = [(one, m) for code, m in every.items() if (one := Kind.of(code)) is not None]
    same = [(one, m) for one, m in parts if one.channels == kind.channels]
    depths = " and ".join(sorted({one.depth for one, _ in same}))
    line = f"  of {depths} together no range is taken, as it is in the numbers of one depth"
    if any(one.depth == "float32" for one, _ in same) or not Wanted(ALL).takes(kind, codes):
        return [f"{line}: --exclude leaves one depth out"]
    share = np.array([m.images for _, m in same], np.float64)
    share /= share.sum()
    unit = [
        in_unit(m, [(0.0, LARGEST[one.depth])] * kind.channels, range(kind.channels))
        for one, m in same
    ]
    means, stds = (np.array([each[i] for each in unit]) for i in (0, 1))
    mean = share @ means
    std = np.sqrt(share @ (stds**2 + (means - mean) ** 2))
    if min(std) <= 0:
        return [f"{line}: --exclude leaves one depth out"]
    numbers = f"--data.mean {_numbers(mean)} --data.std {_numbers(std)}"
    return [f"{line}:", f"  --data.channels {ALL} {numbers}"]


def _is_made_rgb(kind: Kind, codes: NDArray[np.uint16] | None) -> bool:
    """Whether a run without options takes images of this kind."""
    many = tally(codes)
    return not many or kind.code in many  # without the bit of those that no RGB is made of


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
