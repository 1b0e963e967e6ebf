"""The data's settings: augmentations of every view, sizes, batch, loading.

A view is a window of a photograph, mirrored or not, then colour, blur, solarization and a rotation,
in that order; `fastequi.data.views.parameters` draws what happens to which sample. Images whose
channels are not colours (`data.channels`) have neither colour nor solarization but, for each
channel, a gain, an offset, a gamma, noise, or no contents at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from fastequi.data.channels import DTYPE, RGB, chosen, plain, ranges

MOST_WITH_NOISE = 1024  # pixels of a view's side


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
        jitter: probability of the four colour changes; of channels that are not colours, of gain,
            offset and gamma.
        brightness, contrast, saturation: factors uniform in 1 ± value.
        hue: uniform in ± value, 1 is 360 degrees.
        gray: probability of no saturation.
        blur: probability of a Gaussian blur.
        sigma: its range in pixels of the view.
        solarize: probability of inverting values of 128 and above.
        gain: of channels that are not colours: each is multiplied by a factor uniform in 1 ± value,
        offset: plus a number uniform in ± value, of values in 0..1,
        gamma: to the power 2^x, x uniform in ± value.
        noise: of images whose channels are kept, as the next: standard deviation of Gaussian
            noise, uniform between 0 and this, of values in 0..1.
        drop: probability of a channel to be its mean everywhere.
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
    gain: float = 0.4
    offset: float = 0.1
    gamma: float = 0.0
    noise: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarize", "drop"):
            _expect(0 <= getattr(self, name) <= 1, name, "a probability", getattr(self, name))
        for name in ("brightness", "contrast", "saturation", "hue", "gain", "offset", "gamma"):
            value = getattr(self, name)
            _expect(0 <= value < math.inf, name, "a half-range >= 0", value)
        _expect(0 <= self.noise < math.inf, "noise", "a deviation >= 0", self.noise)
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
        plain = replace(self, flip=0.0, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
        return replace(plain, noise=0.0, drop=0.0)

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
class DataConfig:
    """The views of an image, the batch, and how images are decoded; by default the paper's.

    Args:
        image_size: side of v1 (and of v2) in pixels.
        source_size: side of u, the source image of v2, in pixels: the view plus a margin; equal to
            `image_size` in the papers. With 48 px around a 32 px view no rotation has an empty
            corner (48 / 32 > √2). Window ranges of the second view refer to u with its margin.
        channels: "rgb" makes 8-bit RGB of every image. "all" takes the channels that files have,
            alike in all of them, with their depth; numbers such as 0,3,7, from 0, take some.
        value_range: of those: what becomes 0 and what 1. "dtype": all that the type holds, 0..255
            or 0..65535, of floats 0..1. "percentiles": the .1 and the 99.9 percentile of each
            channel, as `fastequi data scan` measured them; "percentiles:1:99" others, of 0, .1, .5,
            1, 2, 5, 25, 50, 75, 95, 98, 99, 99.5, 99.9 and 100. Or LOW:HIGH in the files' own
            numbers, such as 0:4095, one for all channels or one for each, in the order of
            `channels`, with commas between.
        file_channels, file_depth: channels and type of the values of the files, which a run that
            keeps them writes down; others that are added later are not used.
        file_part: what of each file is the image where no scan says it: "" all of it, "chw",
            "image" or "image:chw" as `--axes` and `--array` of a scan, "nodata=file" or
            "image:chw::nodata=-9999" as its `--nodata`; a run writes down what it had.
        file_colors: whether the channels are red, green and blue, and are augmented as these are;
            None: as the files say, which a run writes down. True may be given for three bands.
        mean, std: of the normalisation, of values in 0..1, one for each channel (ImageNet's). Of
            other channels than RGB, where they are not given, those that a scan measured.
        a1: augmentation of the first view v1.
        a2: augmentation of the second view u, before the path transformation.
        local_crops: number of local crops of every image (multi-crop).
        local_crop_size: side of a local crop in pixels.
        a3: augmentation of local crops.
        rotations: rotate every view, local crops too, by 0, 90, 180 or 270 degrees, drawn at
            random; exact, without interpolation.
        overlap: smallest overlap of v2's window with v1's, and of a local crop's window with both,
            as shares of the photograph's visible region. Up to ten windows are drawn; if none
            overlaps enough, the tenth is moved to the middle of the earlier windows' intersection.
            There a window of four times that area overlaps enough, unless an oblong photograph
            makes it smaller.
        mask_share: share of the views v1 and v2 in which blocks of patches are masked.
        mask_ratio: range of the masked share of patches in such a view.
        shared_crop: v1 is the centre of u's window, with the same flip: the views then differ by
            colour and the path alone. The window and flip of `a1` are not used.
        batch_size: images per step, over all ranks.
        samples_per_decode: M samples from every decoded photograph (repeated augmentation:
            Hoffer et al. 2020). Decoding is most of the work on a CPU.
        repeat: times that every photograph is decoded in an epoch; raise it for small sets. An
            epoch is files × repeat × samples_per_decode samples.
        num_threads: DALI's threads in each rank; 0: all usable cores, at most 16.
        tolerate: largest share of images that may be unreadable; one always may, unless it is 0.
        order: how an epoch's order is found. "computed": any position by itself, in constant time
            and memory (`fastequi.data.order`). "table": by sorting a random number of every image,
            16 bytes each, as runs did before; they keep it.
        shuffle: which images may follow one another. "global": any of the set. "window": those of
            a few tar shards at a time, which are read one after the other
            (`fastequi.data.windows`).
        window: shards in a window, for `shuffle=window`; more of them mix better.
        cache_dir: folder on a local disk for whole shards of a remote set (--data URL), which the
            processes of a machine share; empty: single images are read, as byte ranges.
        cache_gb: largest size of that folder, in units of 10^9 bytes; the shards that were not used
            for longest go first.
        views: what makes the views of decoded images, on the device. "dali": its operators one
            after the other. "fused": one pass per view (:func:`fastequi.fused_views`), the same
            but for DALI's rounding (a grey level, rarely two); several times as fast on a CPU.
            "auto": fused on a CPU where the C kernels run, which was faster at every size
            measured; on a GPU the faster of both, measured once for a recipe and kept as
            attention's choices are (of images whose channels are kept, dali); else dali. A run
            keeps what it began with.
    """

    image_size: int = 224
    source_size: int = 224
    channels: str = RGB
    value_range: str = DTYPE
    file_channels: int = 0
    file_depth: Literal["", "uint8", "uint16", "float32"] = ""
    file_part: str = ""
    file_colors: bool | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    a1: Augment = field(default_factory=Augment)
    a2: Augment = field(default_factory=vicreg_second)
    local_crops: int = 0
    local_crop_size: int = 96
    a3: Augment = field(default_factory=local_crop)
    rotations: bool = False
    overlap: tuple[float, float] = (0.0, 0.0)
    mask_share: float = 0.0
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    shared_crop: bool = False
    batch_size: int = 2048
    samples_per_decode: int = 1
    repeat: int = 1
    num_threads: int = 0
    tolerate: float = 0.1
    order: Literal["computed", "table"] = "computed"
    shuffle: Literal["global", "window"] = "global"
    window: int = 16
    cache_dir: str = ""
    cache_gb: float = 64.0
    views: Literal["dali", "fused", "auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("image_size", "local_crop_size", "batch_size", "samples_per_decode", "repeat"):
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _expect(self.local_crops >= 0, "local_crops", "at least 0", self.local_crops)
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
        self._check_overlap()
        _expect(self.num_threads >= 0, "num_threads", "0 (automatic) or more", self.num_threads)
        _expect(0 <= self.tolerate < 1, "tolerate", "a share 0 <= tolerate < 1", self.tolerate)
        fine = self.order in ("computed", "table")
        _expect(fine, "order", "computed or table", self.order)
        fine = self.shuffle in ("global", "window")
        _expect(fine, "shuffle", "global or window", self.shuffle)
        fine = self.shuffle == "global" or self.order == "computed"
        _expect(fine, "order", "computed beside shuffle=window", self.order)
        _expect(self.window >= 1, "window", "at least 1 shard", self.window)
        fine = 0 < self.cache_gb < math.inf
        _expect(fine, "cache_gb", "a size > 0 in units of 10^9 bytes", self.cache_gb)
        known = ("dali", "fused", "auto")
        _expect(self.views in known, "views", "dali, fused or auto", self.views)
        for name in ("channels", "value_range"):
            text = getattr(self, name)
            _expect(isinstance(text, str), name, "text", text)
            object.__setattr__(self, name, plain(text))
        self._check_channels()
        unit = "of values whose range has become 0..1"
        fine = all(0 <= m <= 1 for m in self.mean)
        _expect(fine, "mean", f"0 to 1, {unit}", self.mean)
        fine = all(0 < s <= 1 for s in self.std)
        _expect(fine, "std", f"positive values up to 1, {unit}", self.std)

    def _check_channels(self) -> None:
        numbers, ends = chosen(self.channels), ranges(self.value_range)
        rgb = self.is_rgb
        fine = not rgb or self.value_range == DTYPE
        _expect(fine, "value_range", "dtype beside channels=rgb", self.value_range)
        _expect(self.file_channels >= 0, "file_channels", "at least 0", self.file_channels)
        noisy = any(aug.noise > 0 for aug in (self.a1, self.a2, self.a3))
        largest = max(self.image_size, self.source_size, self.local_crop_size)
        fine = rgb or not noisy or largest <= MOST_WITH_NOISE
        _expect(fine, "image_size", f"at most {MOST_WITH_NOISE} px beside noise", largest)
        count = 3 if rgb else len(numbers or ())
        if not count:  # "all": their number is in the files
            return
        for name in ("mean", "std"):
            values = getattr(self, name)
            # ImageNet's three stand for what a scan measured
            fine = len(values) == count or (not rgb and len(values) == 3)
            each = "1 value" if count == 1 else f"{count} values"
            what = f"{each}, one for each of channels={self.channels}"
            _expect(fine, name, what, values)
        fine = not self.file_colors or (count == 3 and not rgb)
        _expect(
            fine, "file_colors", "true only where data.channels are three numbers", self.channels
        )
        fine = ends is None or len(ends) in (1, count)
        what = "one LOW:HIGH for all channels"
        if count > 1:
            what += f" or {count}, one for each of channels={self.channels} in this order"
        _expect(fine, "value_range", what, self.value_range)

    def _check_overlap(self) -> None:
        if not self.overlaps:
            return
        _expect(not self.shared_crop, "shared_crop", "False beside rotations or overlap", True)
        views = [("a2", self.a2, self.overlap[0]), ("a3", self.a3, self.overlap[1])]
        for name, aug, least in [("a1", self.a1, 0.0), *views[: 1 + (self.local_crops > 0)]]:
            _expect(aug.flip == 0, f"{name}.flip", "0 beside rotations or overlap", aug.flip)
            _expect(aug.side is None, f"{name}.side", "None beside rotations or overlap", aug.side)
            what = f"at least {4 * least:g}, four times the overlap"
            _expect(least >= 0 and aug.area[0] >= 4 * least, f"{name}.area", what, aug.area)

    @property
    def is_rgb(self) -> bool:
        """Whether every image is made 8-bit RGB."""
        return self.channels == RGB

    @property
    def has_colors(self) -> bool:
        """Whether the channels are red, green and blue, of 8 bits or more."""
        return self.is_rgb or bool(self.file_colors)

    @property
    def in_chans(self) -> int:
        """Channels of the views.

        Raises:
            ValueError: of channels=all, whose number the files say; a run that has begun knows it.
        """
        numbers = chosen(self.channels)
        if numbers is None and not self.is_rgb:
            raise ValueError("channels: expected rgb or numbers where no images are given, got all")
        return 3 if numbers is None else len(numbers)

    @property
    def samples_per_file(self) -> int:
        """Samples of an image per epoch: id // samples_per_file is its index in the source."""
        return self.repeat * self.samples_per_decode

    @property
    def overlaps(self) -> bool:
        """Whether a batch describes where its views overlap."""
        return self.rotations or max(self.overlap) > 0

    def resized(self, image_size: int, source_size: int) -> DataConfig:
        """Views of other sizes at the same scale of the photographs: windows grow with u."""

        def scaled(aug: Augment) -> Augment:
            if aug.side is None:
                return aug
            low, high = (side * source_size / self.source_size for side in aug.side)
            return replace(aug, side=(low, high))

        a1, a2 = scaled(self.a1), scaled(self.a2)
        return replace(self, image_size=image_size, source_size=source_size, a1=a1, a2=a2)

    def plain(self) -> DataConfig:
        """The same windows of both views without augmentation, for evaluation of any images."""
        views = replace(self, a1=self.a1.plain(), a2=self.a2.plain(), shuffle="global")
        none = (0.0, 0.0)
        return replace(views, local_crops=0, mask_share=0.0, rotations=False, overlap=none)


def _expect(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _expect_range(name: str, limits: tuple[float, float], top: float) -> None:
    low, high = limits
    holds = 0 < low <= high <= top and high < math.inf
    _expect(holds, name, f"0 < low <= high{'' if top == math.inf else f' <= {top:g}'}", limits)
