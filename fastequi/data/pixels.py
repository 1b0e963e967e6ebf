"""What a run takes of its images where it keeps their channels: which ones, how deep, what range.

`data.channels` and `data.value_range` ask; the images' headers, and of percentiles, means and
deviations an index, answer. A run's config.json then holds numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastequi.data import channels
from fastequi.data.config import DataConfig
from fastequi.data.sources.encoded import unmarked
from fastequi.data.sources.images import Source
from fastequi.data.sources.kinds import DEPTHS, Kind, counts

LARGEST = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}  # what becomes 1 in value_range=dtype
MOST_IN_TIFF = 32  # channels that DALI reads of one


@dataclass(frozen=True)
class Pixels:
    """The values of decoded images.

    Attributes:
        count: channels of the files.
        depth: the type that all are decoded to, one of `kinds.DEPTHS`; of those with fewer bits
            values are scaled as the types' ranges are.
        chosen: the channels that are taken, from 0.
        ranges: the lower and upper end of each of those, which become 0 and 1.
        as_arrays: whether DALI gets .npy files: those of a set, or where there are more channels
            than it reads in a TIFF.
    """

    count: int
    depth: str
    chosen: tuple[int, ...]
    ranges: channels.Ranges
    as_arrays: bool = False

    @property
    def cuts(self) -> bool:
        """Whether values can lie outside the ranges."""
        most = LARGEST[self.depth]
        inside = all(low <= 0 and most <= high for low, high in self.ranges)
        return self.depth == "float32" or not inside

    @classmethod
    def whole(cls, kind: Kind) -> Pixels:
        """All that images of a kind hold."""
        chosen = tuple(range(kind.channels))
        ranges = ((0.0, LARGEST[kind.depth]),) * len(chosen)
        return cls(*kind[:2], chosen, ranges, kind.channels > MOST_IN_TIFF)


def pixels_of(cfg: DataConfig, source: Source) -> Pixels | None:
    """What a run takes of a source; None where it makes 8-bit RGB of every image.

    Args:
        cfg: whose channels and ranges are numbers; see :func:`fastequi.data.settling.settled`.
        source: opened for the same `channels`.

    Raises:
        ValueError: the images are of several numbers of channels, or too few.
    """
    if cfg.is_rgb:
        return None
    kinds = list(counts(source.kinds))
    if not kinds or len({kind.channels for kind in kinds}) > 1:
        found = ", ".join(map(str, kinds)) or "kinds that no index says"
        raise ValueError(f"data.channels: expected images with one number of channels, got {found}")
    count = kinds[0].channels
    numbers = channels.chosen(cfg.channels) or tuple(range(count))
    if max(numbers) >= count:
        raise ValueError(f"data.channels: expected numbers below {count}, got {cfg.channels}")
    depth = cfg.file_depth or _deepest(kinds)
    if cfg.file_channels not in (0, count):
        raise ValueError(f"channels: expected images with {cfg.file_channels}, got {kinds[0]}")
    ends = channels.ranges(cfg.value_range)
    if ends is None:
        if cfg.value_range != channels.DTYPE:
            raise ValueError(f"value_range: expected numbers by now, got {cfg.value_range}")
        ends = ((0.0, LARGEST[depth]),)
    if len(ends) == 1:
        ends *= len(numbers)
    as_arrays = count > MOST_IN_TIFF or set(map(unmarked, source.formats)) == {"NPY"}
    return Pixels(count, depth, numbers, ends, as_arrays)


def _deepest(kinds: list[Kind]) -> str:
    return max((kind.depth for kind in kinds), key=DEPTHS.index)
