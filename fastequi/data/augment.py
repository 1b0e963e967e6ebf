"""The augmentations as data: what to do to every view, drawn as arrays that DALI only applies.

A view is a window of a photograph, mirrored or not, then colour, blur and solarization in that
order. Windows are real-valued (not rounded to pixels) and given as fractions of the photograph.

Where the base methods' torchvision code differs: brightness, contrast, saturation and hue come in
one fixed order, as `fastequi.paths.color_matrix` defines them; a window that fits in none of five
tries is shrunk until it does, instead of taking a centre crop; sampling is linear with
antialiasing, instead of bicubic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastequi.philox import Draws

_TRIES = 5  # area, aspect ratio pairs per window; with its position that is three Philox blocks

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Augment:
    """One view's augmentation; a probability of 0 leaves the operation out of the graph.

    Args:
        area: range of the window's area, as a share of the visible region's.
        aspect: range of the window's width over its height, log-uniform.
        side: instead of `area`, range of the window's side (the root of its area) as a share of
            the photograph's shorter side: (48 / 256, 77 / 256) cuts windows of 48 to 77 px from a
            photograph scaled to 256.
        flip: probability of mirroring left to right.
        jitter: probability of the four colour changes.
        brightness, contrast, saturation: factors uniform in 1 ± value.
        hue: uniform in ± value, in turns.
        gray: probability of no saturation.
        blur: probability of a Gaussian blur.
        sigma: its range in pixels of the view.
        solarize: probability of inverting values of 128 and above.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    side: tuple[float, float] | None = None
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 1.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            _expect(0 <= getattr(self, name) <= 1, name, "a probability", getattr(self, name))
        for name in ("brightness", "contrast", "saturation", "hue"):
            value = getattr(self, name)
            _expect(0 <= value < math.inf, name, "a half-range >= 0", value)
        _expect_range("area", self.area, 1.0)
        _expect_range("aspect", self.aspect, math.inf)
        _expect_range("sigma", self.sigma, math.inf)
        if self.side is not None:
            _expect_range("side", self.side, math.inf)

    @classmethod
    def none(
        cls, side: tuple[float, float] | None = None, area: tuple[float, float] = (1.0, 1.0)
    ) -> Augment:
        """Square windows and nothing else: by `side`, else by `area` (all that fits)."""
        return cls(area=area, aspect=(1.0, 1.0), side=side).plain()

    def plain(self) -> Augment:
        """The same windows with neither flip, colour, blur nor solarization."""
        return replace(self, flip=0.0, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)

    @property
    def colors(self) -> bool:
        return self.jitter > 0 or self.gray > 0


def local_crop() -> Augment:
    """DINO's local crops: small windows, blurred every other time."""
    return Augment(area=(0.05, 0.4), blur=0.5)


def vicreg_second() -> Augment:
    """VICReg's second view: rarely blurred, sometimes solarized (as in BYOL)."""
    return Augment(blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class ViewConfig:
    """The views of an image, the batch, and who decodes it. The defaults are the paper's recipe.

    Args:
        image_size: side of v1 (and of v2) in pixels.
        source_size: side of u in pixels: the view plus a margin. With 48 around a 32 px view no
            rotation has an empty corner (48 / 32 > √2); equal to `image_size` in the papers. A
            window range of the second view is that of all of u, margin included.
        mean, std: of the normalisation, in 0..1 (ImageNet's).
        a1: the first view v1.
        a2: the second view u, before the path transformation.
        crops: further, local views of every image (multi-crop).
        crop_size: their side in pixels.
        a3: their augmentation.
        mask_share: share of the views v1 and v2 of which blocks of patches are masked.
        mask_ratio: range of the share of such a view's patches.
        shared_crop: v1 is the centre of u's window, in the same orientation: the views then
            differ by colour and the path alone. The window and flip of `a1` are not used.
        batch_size: images in a step, over all ranks.
        samples_per_decode: M samples from every decoded photograph (repeated augmentation:
            Hoffer et al. 2020). Decoding is most of the work on a CPU.
        repeat: times every photograph is decoded in an epoch; raise it for small sets. An epoch
            is files × repeat × samples_per_decode samples.
        num_threads: of DALI in each rank; 0 takes every usable core, at most 16.
    """

    image_size: int = 224
    source_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    a1: Augment = field(default_factory=Augment)
    a2: Augment = field(default_factory=vicreg_second)
    crops: int = 0
    crop_size: int = 96
    a3: Augment = field(default_factory=local_crop)
    mask_share: float = 0.0
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    shared_crop: bool = False
    batch_size: int = 2048
    samples_per_decode: int = 1
    repeat: int = 1
    num_threads: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "crop_size", "batch_size", "samples_per_decode", "repeat"):
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _expect(self.crops >= 0, "crops", "at least 0", self.crops)
        _expect(0 <= self.mask_share <= 1, "mask_share", "a share 0 .. 1", self.mask_share)
        _expect_range("mask_ratio", self.mask_ratio, 1.0)
        size, source = self.image_size, self.source_size
        _expect(source >= size, "source_size", f"at least image_size={size}", source)
        _expect(
            not self.shared_crop or (source - size) % 2 == 0,
            "source_size",
            f"image_size={size} plus an even margin (shared_crop cuts v1 from the centre)",
            source,
        )
        _expect(
            self.batch_size % self.samples_per_decode == 0,
            "batch_size",
            f"a multiple of samples_per_decode={self.samples_per_decode}",
            self.batch_size,
        )
        _expect(self.num_threads >= 0, "num_threads", "0 (automatic) or more", self.num_threads)
        _expect(all(s > 0 for s in self.std), "std", "positive values", self.std)

    def plain(self) -> ViewConfig:
        """The same windows of both views without augmentation, for evaluation."""
        return replace(self, a1=self.a1.plain(), a2=self.a2.plain(), crops=0, mask_share=0.0)


@dataclass(frozen=True)
class ViewParams:
    """What happens to one view of B samples; None where no sample of the run needs it.

    Attributes:
        start, end: [B, 2] corners (y, x) of the window as fractions of the photograph, float32;
            a mirrored window has start x > end x.
        color: [B, 4] brightness, contrast, saturation (factors) and hue (degrees), float32.
        sigma: [B] blur in pixels of the view, float32; 0 leaves the sample alone.
        solarize: [B] bool.
    """

    start: NDArray[np.float32]
    end: NDArray[np.float32]
    color: NDArray[np.float32] | None = None
    sigma: NDArray[np.float32] | None = None
    solarize: NDArray[np.bool_] | None = None


def view_params(
    cfg: ViewConfig, draws: Draws, sizes: NDArray[np.integer], region: Region = WHOLE
) -> tuple[ViewParams, ViewParams]:
    """The parameters of v1 and u.

    Args:
        cfg: the views.
        draws: of the B samples.
        sizes: [B, 2] height, width of each sample's photograph in pixels.
        region: part (x0, y0, x1, y1) of every photograph that may be seen, as fractions.
    """
    start, end = _windows(cfg.a2, draws, "u", sizes, region)
    u = ViewParams(start, end, *_pixels(cfg.a2, draws, "u"))
    if cfg.shared_crop:
        middle, half = (start + end) / 2, (end - start) / 2
        share = np.float32(cfg.image_size / cfg.source_size)
        start, end = middle - share * half, middle + share * half
    else:
        start, end = _windows(cfg.a1, draws, "v1", sizes, region)
    return ViewParams(start, end, *_pixels(cfg.a1, draws, "v1")), u


def crop_params(
    cfg: ViewConfig, draws: Draws, sizes: NDArray[np.integer], region: Region = WHOLE
) -> ViewParams | None:
    """The parameters of the local crops, [B · crops], those of a sample together; None if none.

    The arguments are those of :func:`view_params`.
    """
    views = []
    for i in range(cfg.crops):
        start, end = _windows(cfg.a3, draws, f"crop{i}", sizes, region)
        views.append(ViewParams(start, end, *_pixels(cfg.a3, draws, f"crop{i}")))

    def merge(name: str) -> Any:
        parts = [getattr(view, name) for view in views]
        if parts[0] is None:
            return None
        return np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])

    return ViewParams(*(merge(f.name) for f in fields(ViewParams))) if views else None


def _windows(
    aug: Augment, draws: Draws, view: str, sizes: NDArray[np.integer], region: Region
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Corners [B, 2] (y, x) of B windows, with the flip folded in."""
    x0, y0, x1, y1 = region
    origin, extent = np.array([y0, x0]), np.array([y1 - y0, x1 - x0])
    photo = np.asarray(sizes, np.float64)
    visible = photo * extent
    unit = draws.uniform(f"{view}/crop", 2 * _TRIES + 2).astype(np.float64)
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
    end = np.clip(low + window, origin, origin + extent).astype(np.float32)
    if aug.flip > 0:
        mirrored = draws.uniform(f"{view}/flip")[:, 0] < aug.flip
        start[mirrored, 1], end[mirrored, 1] = end[mirrored, 1], start[mirrored, 1]
    return start, end


def _pixels(
    aug: Augment, draws: Draws, view: str
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    """Colour [B, 4], blur sigma [B] and solarize [B]."""
    color = sigma = solarize = None
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
    if aug.blur > 0:
        unit = draws.uniform(f"{view}/blur", 2)
        drawn = _between(unit[:, 1], aug.sigma)
        sigma = np.where(unit[:, 0] < aug.blur, drawn, 0).astype(np.float32)
    if aug.solarize > 0:
        solarize = draws.uniform(f"{view}/solarize")[:, 0] < aug.solarize
    return color, sigma, solarize


def _between(unit: NDArray, limits: tuple[float, ...]) -> NDArray:
    low, high = limits
    return low + unit * (high - low)


def _expect(holds: bool, name: str, expected: str, came: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {came}")


def _expect_range(name: str, limits: tuple[float, float], top: float) -> None:
    low, high = limits
    holds = 0 < low <= high <= top and high < math.inf
    _expect(holds, name, f"0 < low <= high{'' if top == math.inf else f' <= {top:g}'}", limits)
