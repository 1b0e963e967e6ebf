"""The words of `data.channels` and its kin, replaced by numbers once the images are known.

A run's config.json holds the result, so that it does not depend on an index later.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fastequi.data import channels
from fastequi.data.config import Augment, DataConfig
from fastequi.data.pixels import pixels_of
from fastequi.data.sources.images import Source
from fastequi.data.sources.kinds import Kind, counts
from fastequi.data.sources.measured import PERCENTILES, Measured, in_unit
from fastequi.data.sources.wanted import Wanted

logger = logging.getLogger(__name__)

_SCAN = "fastequi data scan measures them"


def wanted(cfg: DataConfig) -> Wanted:
    """What a run asks of the images that it opens."""
    return Wanted(cfg.channels, one_depth=cfg.value_range != channels.DTYPE)


def settled(cfg: DataConfig, source: Source) -> DataConfig:
    """The settings with numbers: of channels, of percentiles, of mean and deviation.

    Args:
        cfg: as it was asked for.
        source: opened with :func:`wanted`.

    Raises:
        ValueError: a percentile, a mean or a deviation is neither given nor measured; or as
            :func:`fastequi.data.pixels.pixels_of`.
    """
    if cfg.is_rgb:
        return cfg
    kinds = list(counts(source.kinds))
    if not kinds:
        pixels_of(cfg, source)  # says what is missing
    kind = kinds[0]
    numbers = channels.chosen(cfg.channels) or tuple(range(kind.channels))
    default = DataConfig()
    given = (cfg.mean, cfg.std) != (default.mean, default.std)
    if not given:  # as many as there are channels, until they are known
        cfg = replace(cfg, mean=(0.5,) * len(numbers), std=(0.25,) * len(numbers))
    cfg = replace(cfg, channels=channels.written(numbers))
    ends = channels.percentiles(cfg.value_range)
    if ends is not None:
        cfg = replace(cfg, value_range=_range(ends, numbers, _measured(source, kinds)))
    pixels = pixels_of(cfg, source)
    assert pixels is not None
    is_rgb = kind.rgb and numbers == (0, 1, 2)
    if not given and is_rgb and cfg.value_range == channels.DTYPE:
        cfg = replace(cfg, mean=default.mean, std=default.std)
    elif not given:
        mean, std = in_unit(_measured(source, kinds), pixels.ranges, numbers)
        flat = tuple(numbers[i] for i, value in enumerate(std) if value <= 0)
        if flat:
            raise ValueError(
                f"data.std: expected channels whose values differ, got {channels.written(flat)} "
                f"with one value in all images: leave them out of data.channels, or give data.std"
            )
        cfg = replace(cfg, mean=mean, std=std)
        said = "; ".join(
            f"{name} {' '.join(f'{v:.4g}' for v in values)}"
            for name, values in (("data.mean", mean), ("data.std", std))
        )
        logger.info("as the index says: %s", said)
    _tell(cfg, pixels.count)
    return cfg


def _measured(source: Source, kinds: list[Kind]) -> Measured:
    if len(kinds) == 1 and (found := source.measured.get(kinds[0].code)) is not None:
        return found
    what = "of several depths" if len(kinds) > 1 else "that no index of one place measured"
    raise ValueError(
        f"data.mean, data.std: expected numbers, or percentiles in data.value_range that are, for "
        f"images {what}; {_SCAN} for a place whose images are of one depth"
    )


def _range(ends: tuple[float, float], numbers: tuple[int, ...], measured: Measured) -> str:
    """Percentiles as numbers."""
    for end in ends:
        if end not in measured.percentiles:
            known = " ".join(f"{p:g}" for p in PERCENTILES)
            raise ValueError(f"data.value_range: expected percentiles among {known}, got {end:g}")
    low, high = (measured.percentiles[end] for end in ends)
    if flat := [c for c in numbers if not low[c] < high[c]]:
        raise ValueError(
            f"data.value_range: expected percentiles that differ, but channels "
            f"{channels.written(tuple(flat))} have {low[flat[0]]:g} at both"
        )
    return ",".join(f"{low[c]:.9g}:{high[c]:.9g}" for c in numbers)


def _tell(cfg: DataConfig, count: int) -> None:
    """Logs which augmentations are not used, as channels are not RGB."""
    augs: list[Augment] = [cfg.a1, cfg.a2, *[cfg.a3] * (cfg.local_crops > 0)]
    unused = [name for name in ("gray", "solarize") if any(getattr(aug, name) for aug in augs)]
    if any(aug.jitter for aug in augs):
        unused = ["brightness", "contrast", "saturation", "hue", *unused]
    logger.info(
        "%d of %d channels are kept%s",
        *(cfg.in_chans, count),
        f"; of RGB images alone, and not used: {', '.join(unused)}" if unused else "",
    )
