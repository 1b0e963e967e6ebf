"""Mean, standard deviation and percentiles of each channel, over all images of a kind.

Counts of values are kept while images are read, so that parts add up to the whole in any order, to
the last bit. Of whole numbers every value is counted by itself, and all is exact. Floats are
counted by sign, exponent and the first nine bits of the mantissa, and the bits behind are taken for
0: a percentile is nearer to 0 by less than 2^-9 of itself, the least and the largest too, and 0, 1
or 255 are themselves. Means and deviations are of sums of each image's values in float64, added
exactly.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PERCENTILES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0)
QUANTILES = 512
_SHIFT = 14  # bits of a float's 32 that are not counted by
_BINS = {"uint8": 1 << 8, "uint16": 1 << 16, "float32": 1 << (32 - _SHIFT)}
_SIGN = np.uint32(1 << 31)
_WRITTEN = 1e-8  # of itself, by which the end of a range is off that is written in nine digits
_BY_PILLOW = (1, 3, 4)  # channels of images that Pillow counts the values of


@dataclass(frozen=True)
class Measured:
    """What was measured of the images of one kind.

    Attributes:
        images: how many there are.
        mean, std: of each channel, in the files' numbers.
        percentiles: {p: of each channel}, for p in PERCENTILES; 0 and 100 are the ends.
        quantiles: of each channel, the values at (i + 1/2) / QUANTILES of all.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    percentiles: Mapping[float, tuple[float, ...]]
    quantiles: tuple[tuple[float, ...], ...] = ()

    def outside(self, channel: int, low: float, high: float) -> float:
        """The share of a channel's values that lie outside a range."""
        values = np.array(self.quantiles[channel])
        low, high = _widened(low, high)
        return float(((values < low) | (values > high)).mean())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        each = {f"{p:g}": list(values) for p, values in self.percentiles.items()}
        found = {"images": self.images, "mean": list(self.mean), "std": list(self.std)}
        return {**found, "percentiles": each, "quantiles": [list(c) for c in self.quantiles]}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Measured:
        """From what :meth:`to_json` made."""
        each = {float(p): tuple(values) for p, values in found["percentiles"].items()}
        quantiles = tuple(map(tuple, found["quantiles"]))
        return cls(found["images"], tuple(found["mean"]), tuple(found["std"]), each, quantiles)


class Counts:
    """Counts of the values of some images of one kind, which add up.

    Args:
        channels: of the images.
        depth: their type, one of `kinds.DEPTHS`.
    """

    def __init__(self, channels: int, depth: str) -> None:
        self.depth, self.images = depth, 0
        self.bins = np.zeros((channels, _BINS[depth]), np.int64)
        self.sums = [Fraction(0)] * channels  # of floats; those of whole numbers are in the bins
        self.squares = [Fraction(0)] * channels

    def add(self, other: Counts) -> None:
        """Adds those of other images."""
        self.images += other.images
        self.bins += other.bins
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other.squares, strict=True)]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Counts:
        """Of one image [H, W, C] of one of `kinds.DEPTHS`."""
        channels, depth = values.shape[2], values.dtype.name
        found = cls(channels, depth)
        found.images = 1
        if depth == "uint8" and channels in _BY_PILLOW:  # several times as fast as NumPy's
            whole = values[..., 0] if channels == 1 else values
            image = Image.fromarray(np.ascontiguousarray(whole))
            found.bins += np.array(image.histogram(), np.int64).reshape(channels, -1)
            return found
        for c in range(channels):
            each = np.ascontiguousarray(values[..., c]).reshape(-1)
            if depth == "float32":
                wide = each.astype(np.float64)
                found.sums[c], found.squares[c] = (
                    Fraction(float(total)) for total in (wide.sum(), (wide * wide).sum())
                )
                each = _ordered(each) >> np.uint32(_SHIFT)
            found.bins[c] = np.bincount(each, minlength=_BINS[depth])
        return found

    def measured(self) -> Measured:
        """What they say of all images; there has to be one."""
        count = int(self.bins[0].sum())
        mean, std, each, quantiles = list[float](), list[float](), list[list[float]](), []
        for bins, total, squares in zip(self.bins, self.sums, self.squares, strict=True):
            used = np.flatnonzero(bins)
            values = self._values(used)
            if self.depth != "float32":
                both = list(zip(used.tolist(), bins[used].tolist(), strict=True))
                total = Fraction(sum(value * many for value, many in both))
                squares = Fraction(sum(value * value * many for value, many in both))
            middle = total / count
            mean.append(float(middle))
            std.append(max(float(squares / count - middle * middle), 0.0) ** 0.5)
            below = np.cumsum(bins[used])
            # the smallest value that has at least p percent of all at or below it
            wanted = [max(-(-count * int(10 * p) // 1000), 1) for p in PERCENTILES]
            each.append(values[np.searchsorted(below, wanted)].tolist())
            middles = [-(-count * (2 * i + 1) // (2 * QUANTILES)) for i in range(QUANTILES)]
            quantiles.append(tuple(values[np.searchsorted(below, middles)].tolist()))
        pairs = zip(PERCENTILES, zip(*each, strict=True), strict=True)
        return Measured(self.images, tuple(mean), tuple(std), dict(pairs), tuple(quantiles))

    def _values(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """The value of each bin: of floats the one in it that is nearest to 0."""
        if self.depth != "float32":
            return bins.astype(np.float64)
        low = bins.astype(np.uint32) << np.uint32(_SHIFT)
        high = low | np.uint32((1 << _SHIFT) - 1)
        return _unordered(np.where(low & _SIGN, low, high)).astype(np.float64) + 0.0  # no -0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        packed = []
        for bins in self.bins:
            used = np.flatnonzero(bins)
            content = np.stack([np.diff(used, prepend=0), bins[used]]).astype("<i8").tobytes()
            packed.append(base64.b64encode(zlib.compress(content)).decode("ascii"))
        sums = [list(map(str, each)) for each in (self.sums, self.squares)]
        return {"depth": self.depth, "images": self.images, "sums": sums, "bins": packed}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Counts:
        """From what :meth:`to_json` made."""
        one = cls(len(found["bins"]), found["depth"])
        one.images = found["images"]
        one.sums, one.squares = ([Fraction(text) for text in each] for each in found["sums"])
        for c, text in enumerate(found["bins"]):
            content = zlib.decompress(base64.b64decode(text))
            steps, many = np.frombuffer(content, "<i8").reshape(2, -1)
            one.bins[c, np.cumsum(steps)] = many
        return one


def added(into: dict[int, Counts], more: Mapping[int, Counts]) -> None:
    """Adds counts of some images, by kind, to those of others."""
    for code, counts in more.items():
        if code in into:
            into[code].add(counts)
        else:
            into[code] = counts


def pooled(parts: Sequence[tuple[Measured, int]]) -> Measured:
    """What was measured of one kind in several places, of all of them together.

    Mean and deviation are as exact as theirs, the ends too. Other percentiles are those of the
    places' quantiles: of all values, a thousandth at most lie between one and the true one.

    Args:
        parts: what was measured of a place, and how many values its images have a channel.
    """
    of, counts = [one for one, _ in parts], np.array([count for _, count in parts], np.float64)
    share = counts / counts.sum()
    means, deviations = (np.array([getattr(one, name) for one in of]) for name in ("mean", "std"))
    mean = share @ means
    std = np.sqrt(share @ (deviations**2 + (means - mean) ** 2))
    points = np.concatenate([np.array(one.quantiles).T for one in of])  # [places · 512, C]
    weights = np.repeat(share / QUANTILES, [len(one.quantiles[0]) for one in of])
    ends = {p: np.array([one.percentiles[p] for one in of]) for p in (0.0, 100.0)}
    order = points.argsort(0, kind="stable")
    below = weights[order].cumsum(0)  # of all values, at or below each point

    def at(ranks: Sequence[float]) -> NDArray[np.float64]:
        ranked = np.take_along_axis(points, order, 0)
        each = [
            column[np.searchsorted(shares, np.array(ranks) - 1e-12).clip(max=len(column) - 1)]
            for column, shares in zip(ranked.T, below.T, strict=True)
        ]
        return np.stack(each, 1)

    each = dict(zip(PERCENTILES, at([p / 100 for p in PERCENTILES]), strict=True))
    each |= {0.0: ends[0.0].min(0), 100.0: ends[100.0].max(0)}
    quantiles = at([(i + 0.5) / QUANTILES for i in range(QUANTILES)]).T
    return Measured(
        sum(one.images for one in of),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        {p: tuple(values.tolist()) for p, values in each.items()},
        tuple(map(tuple, quantiles.tolist())),
    )


def in_unit(
    measured: Measured, ranges: Sequence[tuple[float, float]], chosen: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of chosen channels, where each one's range becomes 0..1 and what lies
    outside its ends: exact where nothing does, else of the quantiles."""
    mean, std = [], []
    for c, (low, high) in zip(chosen, ranges, strict=True):
        least, largest = (measured.percentiles[p][c] for p in (0.0, 100.0))
        wide_low, wide_high = _widened(low, high)
        if wide_low <= least and largest <= wide_high:
            mean.append((measured.mean[c] - low) / (high - low))
            std.append(measured.std[c] / (high - low))
        else:
            unit = ((np.array(measured.quantiles[c]) - low) / (high - low)).clip(0, 1)
            mean.append(float(unit.mean()))
            std.append(float(unit.std()))
    return tuple(mean), tuple(std)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range with what its written ends may be off."""
    return low - _WRITTEN * abs(low), high + _WRITTEN * abs(high)


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Numbers that are ordered as the floats are."""
    bits = values.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _unordered(numbers: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The floats of ordered numbers."""
    return np.where(numbers & _SIGN, numbers ^ _SIGN, ~numbers).view(np.float32)
