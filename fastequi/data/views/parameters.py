"""The random parameters of every view, drawn as arrays that DALI only applies.

Windows are real-valued (not rounded to pixels) and given as fractions of the photograph.

Where the base methods' torchvision code differs: brightness, contrast, saturation and hue come in
one fixed order, as `fastequi.paths.color_matrix` defines them; a window that fits in none of five
tries is shrunk until it does, instead of taking a centre crop; sampling is linear with
antialiasing, instead of bicubic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastequi.data.config import Augment, DataConfig
from fastequi.data.sources.images import WHOLE, Region
from fastequi.philox import Draws

_TRIES = 5  # area, aspect ratio pairs per window; with its position that is three Philox blocks
NOISE_PLACES = 1 << 22
_WINDOWS = 10  # drawn until one overlaps the earlier ones as it has to

Window = tuple[NDArray[np.float32], NDArray[np.float32]]  # corners [B, 2] (y, x)


@dataclass(frozen=True)
class ViewParams:
    """The parameters of one view of B samples; None where the run does not use them.

    Attributes:
        start, end: [B, 2] corners (y, x) of the window as fractions of the photograph, float32;
            a mirrored window has start x > end x.
        color: [B, 4] brightness, contrast, saturation (factors) and hue (degrees), float32.
        sigma: [B] blur in pixels of the view, float32; 0 leaves the sample alone.
        solarize: [B] bool.
        rotation: [B] multiples of 90 degrees counter-clockwise, 0 .. 3, as np.rot90's.
        channels: [B, C, 3] gain, offset and gamma of each channel that is no colour, float32.
        noise: [B] its standard deviation, float32; as the rest, of images whose channels are kept.
        noise_places: [B, C] where each channel's begins in a table of NOISE_PLACES places.
        dropped: [B, C] bool.
    """

    start: NDArray[np.float32]
    end: NDArray[np.float32]
    color: NDArray[np.float32] | None = None
    sigma: NDArray[np.float32] | None = None
    solarize: NDArray[np.bool_] | None = None
    rotation: NDArray[np.int64] | None = None
    channels: NDArray[np.float32] | None = None
    noise: NDArray[np.float32] | None = None
    noise_places: NDArray[np.int64] | None = None
    dropped: NDArray[np.bool_] | None = None

    @property
    def boxes(self) -> NDArray[np.float64]:
        """[B, 4] windows as x0, y0, x1, y1, of views that are not mirrored."""
        return np.concatenate([self.start[:, ::-1], self.end[:, ::-1]], 1).astype(np.float64)


def view_params(
    cfg: DataConfig, draws: Draws, sizes: NDArray[np.integer], region: Region = WHOLE
) -> tuple[ViewParams, ViewParams]:
    """The parameters of v1 and u.

    Args:
        cfg: the views.
        draws: of the B samples.
        sizes: [B, 2] height, width of each sample's photograph in pixels.
        region: part (x0, y0, x1, y1) of every photograph that may be seen, as fractions.
    """
    if not cfg.shared_crop:
        first = _windows(cfg.a1, draws, "v1", sizes, region)
        least = cfg.overlap[0], [first]
        second = _windows(cfg.a2, draws, "u", sizes, region, *least)
    else:
        second = _windows(cfg.a2, draws, "u", sizes, region)
        middle, half = (second[0] + second[1]) / 2, (second[1] - second[0]) / 2
        share = np.float32(cfg.image_size / cfg.source_size)
        first = middle - share * half, middle + share * half
    return _view(cfg, cfg.a1, draws, "v1", first), _view(cfg, cfg.a2, draws, "u", second)


def crop_params(
    cfg: DataConfig,
    draws: Draws,
    sizes: NDArray[np.integer],
    region: Region = WHOLE,
    views: Sequence[ViewParams] = (),
) -> ViewParams | None:
    """The parameters of the local crops, [B · V], a sample's together; None if there are none.

    The arguments are those of :func:`view_params`, and its result: `views`, which the local crops
    overlap as far as `cfg.overlap` demands.
    """
    others = [(view.start, view.end) for view in views]
    crops = []
    for i in range(cfg.local_crops):
        name = f"crop{i}"
        window = _windows(cfg.a3, draws, name, sizes, region, cfg.overlap[1], others)
        crops.append(_view(cfg, cfg.a3, draws, name, window))

    def merge(name: str) -> Any:
        parts = [getattr(crop, name) for crop in crops]
        if parts[0] is None:
            return None
        return np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])

    return ViewParams(*(merge(f.name) for f in fields(ViewParams))) if crops else None


def _windows(
    aug: Augment,
    draws: Draws,
    view: str,
    sizes: NDArray[np.integer],
    region: Region,
    overlap: float = 0.0,
    others: Sequence[Window] = (),
) -> Window:
    """Corners [B, 2] (y, x) of B windows, with the flip folded in.

    Args:
        overlap: least share of the region that every window has in common with each of `others`,
            earlier windows of the same samples.
    """
    x0, y0, x1, y1 = region
    start, end = _drawn(aug, draws, f"{view}/crop", sizes, region)
    if overlap > 0:
        least = overlap * (x1 - x0) * (y1 - y0)
        for attempt in range(1, _WINDOWS + 1):
            rows = np.flatnonzero(_common(start, end, others) <= least)
            if not rows.size:
                break
            part = Draws(draws.seed, draws.epoch, draws.sample_ids[rows])
            if attempt < _WINDOWS:
                stream = f"{view}/crop{attempt}"
                again = _drawn(aug, part, stream, sizes[rows], region)
            else:
                theirs = [(low[rows], high[rows]) for low, high in others]
                again = _moved(start[rows], end[rows], theirs, region)
            start[rows], end[rows] = again
    if aug.flip > 0:
        mirrored = draws.uniform(f"{view}/flip")[:, 0] < aug.flip
        start[mirrored, 1], end[mirrored, 1] = end[mirrored, 1], start[mirrored, 1]
    return start, end


def _common(
    start: NDArray[np.float32], end: NDArray[np.float32], others: Sequence[Window]
) -> NDArray[np.float64]:
    """[B] the least area that a window has in common with one of the others."""
    areas = []
    for low, high in others:
        sides = np.minimum(end, high).astype(np.float64) - np.maximum(start, low)
        areas.append(np.maximum(sides, 0).prod(1))
    return np.min(areas, 0)


def _moved(
    start: NDArray[np.float32],
    end: NDArray[np.float32],
    others: Sequence[Window],
    region: Region,
) -> Window:
    """The windows with their middle where that of what the others share is, inside the region."""
    x0, y0, x1, y1 = region
    size = end - start
    middle = (np.max([low for low, _ in others], 0) + np.min([high for _, high in others], 0)) / 2
    low = np.clip(middle - size / 2, [y0, x0], np.array([y1, x1]) - size)
    high = np.minimum(low + size, [y1, x1])
    return low.astype(np.float32), high.astype(np.float32)


def _drawn(
    aug: Augment, draws: Draws, stream: str, sizes: NDArray[np.integer], region: Region
) -> Window:
    """Corners [B, 2] (y, x) of B windows."""
    x0, y0, x1, y1 = region
    origin, extent = np.array([y0, x0]), np.array([y1 - y0, x1 - x0])
    photo = np.asarray(sizes, np.float64)
    visible = photo * extent
    unit = draws.uniform(stream, 2 * _TRIES + 2).astype(np.float64)
    if aug.side is not None:
        side = _between(unit[:, :_TRIES], aug.side) * photo.min(1, keepdims=True)
    else:
        side = np.sqrt(_between(unit[:, :_TRIES], aug.area) * visible.prod(1, keepdims=True))
    log_aspect = _between(unit[:, _TRIES : 2 * _TRIES], tuple(math.log(a) for a in aug.aspect))
    stretch = np.exp(log_aspect / 2)
    tries = np.stack([side / stretch, side * stretch], -1)  # [B, tries, 2] height, width
    excess = (tries / visible[:, None]).max(-1)
    first = (excess <= 1).argmax(1)  # 0 if none fits
    rows = np.arange(len(tries))
    window = tries[rows, first] / np.maximum(excess[rows, first], 1)[:, None] / photo
    low = origin + unit[:, -2:] * (extent - window)
    start = np.clip(low, origin, origin + extent).astype(np.float32)
    return start, np.clip(low + window, origin, origin + extent).astype(np.float32)


def _view(cfg: DataConfig, aug: Augment, draws: Draws, view: str, window: Window) -> ViewParams:
    rotation = (draws.bits(f"{view}/turn", 1)[:, 0] % 4).astype(np.int64) if cfg.rotations else None
    more = {} if cfg.is_rgb else _channels(aug, draws, view, cfg)
    if cfg.has_colors:
        color, sigma, solarize = _pixels(aug, draws, view)
        return ViewParams(*window, color, sigma, solarize, rotation, **more)
    return ViewParams(*window, sigma=_sigma(aug, draws, view), rotation=rotation, **more)


def _pixels(
    aug: Augment, draws: Draws, view: str
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    """Colour [B, 4], blur sigma [B] and solarize [B]."""
    color = solarize = None
    if aug.colors:
        color = np.tile(np.array([1, 1, 1, 0], np.float32), (len(draws), 1))
        unit = draws.uniform(f"{view}/color", 6)
        if aug.jitter > 0:
            factors = [
                (max(0.0, 1 - r), 1 + r) for r in (aug.brightness, aug.contrast, aug.saturation)
            ]
            ranges = np.array([*factors, (-360 * aug.hue, 360 * aug.hue)], np.float32)
            drawn = ranges[:, 0] + unit[:, 1:5] * (ranges[:, 1] - ranges[:, 0])
            color = np.where(unit[:, :1] < aug.jitter, drawn, color)
        color[unit[:, 5] < aug.gray, 2] = 0
    if aug.solarize > 0:
        solarize = draws.uniform(f"{view}/solarize")[:, 0] < aug.solarize
    return color, _sigma(aug, draws, view), solarize


def _sigma(aug: Augment, draws: Draws, view: str) -> NDArray[np.float32] | None:
    """[B] of the blur."""
    if not aug.blur:
        return None
    unit = draws.uniform(f"{view}/blur", 2)
    drawn = _between(unit[:, 1], aug.sigma)
    return np.where(unit[:, 0] < aug.blur, drawn, 0).astype(np.float32)


def _channels(aug: Augment, draws: Draws, view: str, cfg: DataConfig) -> dict[str, Any]:
    """What happens to each channel by itself, by its name in :class:`ViewParams`."""
    found: dict[str, Any] = {}
    count = cfg.in_chans
    if aug.jitter > 0 and not cfg.has_colors:
        unit = draws.uniform(f"{view}/channels", 1 + 3 * count)
        spread = 2 * unit[:, 1:].reshape(-1, count, 3) - 1  # -1 .. 1
        values = spread * np.array([aug.gain, aug.offset, aug.gamma], np.float32)
        values[..., 0] = np.maximum(1 + values[..., 0], 0)
        values[..., 2] = np.exp2(values[..., 2])
        chosen = (unit[:, :1] < aug.jitter)[..., None]
        found["channels"] = np.where(chosen, values, np.array([1, 0, 1], np.float32))
    if aug.noise > 0:
        found["noise"] = draws.uniform(f"{view}/noise", 1, 0.0, aug.noise)[:, 0]
        bits = draws.bits(f"{view}/noise places", count)
        found["noise_places"] = (bits % np.uint32(NOISE_PLACES)).astype(np.int64)
    if aug.drop > 0:
        found["dropped"] = draws.uniform(f"{view}/drop", count) < aug.drop
    return found


def _between(unit: NDArray, limits: tuple[float, ...]) -> NDArray:
    low, high = limits
    return low + unit * (high - low)
