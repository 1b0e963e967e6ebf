"""The words of `data.channels` and its kin, replaced by numbers once the images are known.

A run's config.json holds the result, so that it does not depend on an index later.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from fastequi.data import channels
from fastequi.data.config import Augment, DataConfig
from fastequi.data.pixels import Pixels, pixels_of
from fastequi.data.sources.encoded import INVERTED_DICOM, INVERTED_TIFF, is_marked
from fastequi.data.sources.images import Source
from fastequi.data.sources.kinds import Kind, counts
from fastequi.data.sources.measured import PERCENTILES, Measured, in_unit
from fastequi.data.sources.parts import part_named
from fastequi.data.sources.tolerance import Tolerance
from fastequi.data.sources.wanted import Wanted

logger = logging.getLogger(__name__)

_SHOWN = 16  # numbers that are logged

_COLORS = (0, 1, 2)  # red, green and blue
_CLIPPED, _USED = 0.05, 0.1  # shares of values outside a range, and of a range that values use


def wanted(cfg: DataConfig) -> Wanted:
    """What a run asks of the images that it opens."""
    one_depth = cfg.value_range != channels.DTYPE
    part = part_named(cfg.file_part)
    if str(part) != cfg.file_part or part.page is not None:
        raise ValueError(
            f"data.file_part: expected an end of a name as a scan makes it, such as image:chw, got "
            f"{cfg.file_part!r}"
        )
    known = cfg.file_channels, cfg.file_depth
    tolerance = Tolerance(cfg.tolerate)
    return Wanted(cfg.channels, one_depth, *known, part=cfg.file_part, tolerance=tolerance)


def settled(cfg: DataConfig, source: Source) -> DataConfig:
    """The settings with numbers: of channels, of percentiles, of mean and deviation.

    Args:
        cfg: as it was asked for.
        source: opened with :func:`wanted`.

    Raises:
        ValueError: a percentile, a mean or a deviation is neither given nor measured; or as
            :func:`fastequi.data.pixels.pixels_of`.
    """
    if source.part:
        cfg = replace(cfg, file_part=source.part)
    if cfg.is_rgb:
        return cfg
    begun, kinds = bool(cfg.file_channels), list(counts(source.kinds))
    if not kinds:
        pixels_of(cfg, source)  # says what is missing
    _expect_alike(cfg, source)
    kind = kinds[0]
    numbers = channels.chosen(cfg.channels) or tuple(range(kind.channels))
    default = DataConfig()
    given = (cfg.mean, cfg.std) != (default.mean, default.std)
    if not given:  # as many as there are channels, until they are known
        cfg = replace(cfg, mean=(0.5,) * len(numbers), std=(0.25,) * len(numbers))
    cfg = _with_channels(cfg, numbers)
    ends = channels.percentiles(cfg.value_range)
    if channels.ranges(cfg.value_range) is not None and not cfg.file_channels:
        _tell_inverted(cfg, source)
    if ends is not None:
        cfg = replace(cfg, value_range=_range(ends, numbers, _measured(source, kinds)))
    pixels = pixels_of(cfg, source)
    assert pixels is not None
    is_rgb = all(kind.rgb for kind in kinds) and numbers == _COLORS
    if not cfg.file_channels and cfg.file_colors is None:  # runs begun before keep what they have
        cfg = replace(cfg, file_colors=is_rgb)
    cfg = replace(cfg, file_channels=pixels.count, file_depth=pixels.depth)  # type: ignore[arg-type]
    if len(kinds) == 1 and (found := source.measured.get(kind.code)) is not None:
        _tell_range(cfg, pixels, found, begun)
    if not given and is_rgb and cfg.value_range == channels.DTYPE:
        cfg = replace(cfg, mean=default.mean, std=default.std)
    elif not given:
        mean, std = in_unit(_measured(source, kinds), pixels.ranges, numbers)
        flat = tuple(numbers[i] for i, value in enumerate(std) if value <= 0)
        if flat:
            raise ValueError(
                f"data.std: expected channels whose values differ, got {channels.written(flat)}; "
                f"leave those with one value in all images out of data.channels, or give data.mean "
                f"and data.std; for those beyond one end of data.value_range "
                f"({cfg.value_range[:60]}) --data.value-range {channels.PERCENTILES} fits each "
                f"channel's"
            )
        cfg = replace(cfg, mean=mean, std=std)
        said = "; ".join(
            f"{name} {' '.join(f'{v:.4g}' for v in values[:_SHOWN])}"
            + f" ... ({len(values)})" * (len(values) > _SHOWN)
            for name, values in (("data.mean", mean), ("data.std", std))
        )
        logger.info("as the index says: %s", said)
    _tell(cfg, pixels.count)
    return cfg


def _with_channels(cfg: DataConfig, numbers: tuple[int, ...]) -> DataConfig:
    """With these channels, whose number may not be that of the ranges, means and deviations."""
    try:
        return replace(cfg, channels=channels.written(numbers))
    except ValueError as error:
        raise ValueError(f"data.{error}") from error


def _expect_alike(cfg: DataConfig, source: Source) -> None:
    """Raises ValueError where images of several places are not of one kind: of a single place those
    that differ are left out when it is opened."""
    found = counts(source.kinds)
    said = ", ".join(f"{count} of {kind}" for kind, count in found.items())
    way = "images of several places; --exclude leaves images out"
    if len({kind.channels for kind in found}) > 1:
        raise ValueError(
            f"data.channels: expected images with one number of channels, got {said}, as {way}"
        )
    if cfg.value_range != channels.DTYPE and len({kind.depth for kind in found}) > 1:
        raise ValueError(
            f"data.value_range: expected {channels.DTYPE}, or images of one depth, as a range is "
            f"in the files' own numbers, got {said}, as {way}"
        )


def _tell_inverted(cfg: DataConfig, source: Source) -> None:
    """Warns of files that a range in their own numbers does not fit."""
    for name, within in ((INVERTED_TIFF, "their type"), (INVERTED_DICOM, "the bits stored")):
        if any(is_marked(form, name) for form in source.formats):
            logger.warning(
                "data.value_range: there are images of %s, whose values are inverted within %s "
                "before the range %s is taken of them; fastequi data scan counts them and prints "
                "what values there are",
                *(name, within, cfg.value_range),
            )


def _tell_range(cfg: DataConfig, pixels: Pixels, measured: Measured, begun: bool) -> None:
    """Logs the range, and warns where it hardly fits what was measured; where nothing does a new
    run is refused."""
    if cfg.value_range != channels.DTYPE:
        each = dict(zip(pixels.chosen, pixels.ranges, strict=True))
        alike = len(set(each.values())) == 1
        said = ", ".join(
            f"{low:.9g} to {high:.9g}" + ("" if alike else f" (channel {c})")
            for c, (low, high) in list(each.items())[: 1 if alike else _SHOWN]
        )
        said += f", ... ({len(each)})" * (not alike and len(each) > _SHOWN)
        logger.info("data.value_range: 0 to 1 are %s", said)
    pairs = list(zip(pixels.chosen, pixels.ranges, strict=True))
    clipped = {c: measured.outside(c, low, high) for c, (low, high) in pairs}
    most = max(clipped, key=lambda c: clipped[c])
    if min(clipped.values()) == 1 and not begun:
        low, high = _ends(measured, most)
        raise ValueError(
            f"data.value_range: expected one that holds values of the images, got "
            f"{_words(dict(pairs)[most])}, outside of which all of them lie ({low:.9g} to "
            f"{high:.9g} of channel {most}); {channels.PERCENTILES} fits each channel's"
        )
    if clipped[most] > _CLIPPED:
        logger.warning(
            "data.value_range: %.0f %% of the values of channel %d lie outside %s and become its "
            "ends; its values are %.9g to %.9g%s",
            *(100 * clipped[most], most, _words(dict(pairs)[most]), *_ends(measured, most)),
            _others(sum(share > _CLIPPED for share in clipped.values()) - 1, len(pairs)),
        )
    used = {c: (_ends(measured, c)[1] - _ends(measured, c)[0]) / (b - a) for c, (a, b) in pairs}
    used = {c: share for c, share in used.items() if share > 0}  # no range fits constants better
    least = min(used, key=lambda c: used[c], default=0)
    if used and used[least] < _USED:
        logger.warning(
            "data.value_range: the values of channel %d, %.9g to %.9g, are %.2g %% of %s%s; "
            "data.value_range=%s fits each channel's",
            *(least, *_ends(measured, least), 100 * used[least], _words(dict(pairs)[least])),
            _others(sum(share < _USED for share in used.values()) - 1, len(pairs)),
            channels.PERCENTILES,
        )


def _others(count: int, of: int) -> str:
    """That a warning which names the worst channel is of others too."""
    return f" (and the like of {count} more of {of} channels)" if count else ""


def _ends(measured: Measured, channel: int) -> tuple[float, float]:
    """Nearly the least and the largest value."""
    low, high = (measured.percentiles[p][channel] for p in (0.1, 99.9))
    return low, high


def _words(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.9g}:{ends[1]:.9g}"


def _measured(source: Source, kinds: list[Kind]) -> Measured:
    if len(kinds) == 1 and (found := source.measured.get(kinds[0].code)) is not None:
        return found
    if len(kinds) > 1:
        raise ValueError(
            f"data.mean, data.std: expected numbers, as the images are of several depths "
            f"({', '.join(map(str, kinds))}), for which none were measured together; "
            f"fastequi data scan prints some"
        )
    raise ValueError(
        "data.mean, data.std: expected numbers, as the images were not scanned; fastequi data scan "
        "PLACE measures them, and the percentiles that data.value_range may take (of several "
        "places scan each)"
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
            f"{channels.written(tuple(flat))} have {low[flat[0]]:g} at both: leave them out of "
            f"data.channels, or give LOW:HIGH of each channel"
        )
    text = ",".join(f"{low[c]:.9g}:{high[c]:.9g}" for c in numbers)
    try:
        channels.ranges(text)
    except ValueError as error:
        shares = " and ".join(f"{end:g}" for end in ends)
        raise ValueError(
            f"data.{error}, the percentiles {shares}; where an end is no measured value, as of "
            f"missing ones, percentiles within the others or LOW:HIGH leave it out"
        ) from error
    return text


def _tell(cfg: DataConfig, count: int) -> None:
    """Logs which augmentations are not used, as channels are not RGB."""
    if cfg.has_colors:
        logger.info("3 of %d channels are kept: red, green and blue of %s", count, cfg.file_depth)
        return
    augs: list[Augment] = [cfg.a1, cfg.a2, *[cfg.a3] * (cfg.local_crops > 0)]
    unused = [name for name in ("gray", "solarize") if any(getattr(aug, name) for aug in augs)]
    if any(aug.jitter for aug in augs):
        unused = ["brightness", "contrast", "saturation", "hue", *unused]
    logger.info(
        "%d of %d channels are kept%s",
        *(cfg.in_chans, count),
        f"; {', '.join(unused)} are for RGB images and not used" if unused else "",
    )
