"""The options of evaluations of images with a label for every pixel, and what they call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastequi.cli.geometry import GeometryOptions
from fastequi.cli.image_options import expect_places
from fastequi.cli.parsing import parse

_COLDEST = 1e-6  # temperature: cosines of 1 divided by it are finite, their softmax defined
_FASTEST = 1e9  # learning rate: AdamW's products with it are finite in 32 bits
_FARTHEST = 1e9  # metres: bins and their sums are finite in 32 bits


@dataclass(frozen=True)
class DenseOptions(GeometryOptions):
    """What those take that compare with a value known for each pixel."""

    side: int = 0
    """Shorter side of the images in pixels, the longer keeps the aspect, both rounded to patches;
    0: the encoder's own. A ViT's positions are interpolated."""
    windows: bool = False
    """Slide square windows of the encoder's own size over the images, by two thirds of a side."""
    train_images: int = 0
    """Images that are fitted on, evenly spaced; 0: all."""
    test_images: int = 0
    """Images that are tested on, evenly spaced; 0: all."""

    def of_set(self) -> dict[str, Any]:
        """What the readers of sets take of them.

        Raises:
            ValueError: no folder was given.
        """
        _expect(self, "train_images test_images side", lambda n: n >= 0, "0 or more")
        expect_places(self.data, "a folder of images and what is known of their pixels")
        limits = {"train_images": self.train_images, "test_images": self.test_images}
        return {"data": self.selection(self.data), **limits}


@dataclass(frozen=True)
class SegmentOptions(DenseOptions):
    """Classes of pixels by a linear head on frozen tokens, and by retrieval without training,
    beside baselines: the most frequent class, raw patches, position only, a random init. --data: a
    folder of images/ and masks/ (PNG or TIFF of class ids, 255 ignored), of Pascal VOC, ADE20K or
    Cityscapes; images have the channels that the encoder takes."""

    classes: int = 0
    """Of images/ and masks/; 0: the largest id in the masks and one."""
    methods: tuple[Literal["linear", "retrieval"], ...] = ("linear", "retrieval")
    """A linear head (AdamW, as DINOv2's), nearest patches (as Hummingbird's), or both."""
    scales: tuple[float, ...] = (1.0,)
    """Of the side; classes are of the mean over scales (0.75 1 1.25)."""
    steps: int = 1000
    """Of the linear head, 16 images each."""
    lr: float = 1e-3
    """Highest rate of the linear head."""
    memory: int = 100_000
    """Patches that the retrieval remembers at most, equally many of each training image."""
    neighbours: int = 30
    """Nearest patches that the retrieval weighs."""
    temperature: float = 0.02
    """Of their weights."""
    search: Literal["torch", "faiss"] = "torch"
    """What finds them, both exactly: products of matrices on the device, or faiss on the CPU."""


@dataclass(frozen=True)
class ClustersOptions(DenseOptions):
    """Classes of clusters of tokens (k-means), as many as classes and matched to them, or many and
    each of the class of most of its pixels, beside the baselines of segment. --data: as segment."""

    classes: int = 0
    """Of images/ and masks/; 0: the largest id in the masks and one."""
    clusters: int = 0
    """Of the over-clustering; 0: 500, or a twentieth of the tokens if that is less."""
    tokens: int = 100_000
    """That centres are found from at most, equally many of each image."""
    fit_on: Literal["test", "train"] = "test"
    """Images that centres and the classes of clusters are found on; the literature's are those that
    are tested."""


@dataclass(frozen=True)
class DepthOptions(DenseOptions):
    """Depths of pixels by a linear head of bins on frozen tokens (as DINOv2's), beside baselines:
    the mean depth, raw patches, position only, a random init. --data: a folder of images/ and
    depth/, PNG or TIFF of 16 bits or TIFF of floats, 0 where a depth is not known; images have the
    channels that the encoder takes."""

    metres: float = 0.001
    """Of a unit in the files: 0.001 as of NYU Depth v2, 0.00390625 (1/256) as of KITTI."""
    nearest: float = 0.001
    """Metres; nearer depths do not count."""
    farthest: float = 10.0
    """Metres; farther depths do not count (NYU 10, KITTI 80)."""
    crop: Literal["none", "eigen", "garg"] = "none"
    """Part of test images that counts: Eigen's of NYU at 640x480, or Garg's of KITTI."""
    bins: int = 256
    """Of depth."""
    steps: int = 1000
    """Of the linear head, 16 images each."""
    lr: float = 1e-3
    """Highest rate of the linear head."""


def segment(argv: list[str]) -> None:
    options = parse(SegmentOptions, "fastequi eval segment", argv)
    _expect(options, "steps memory neighbours", lambda n: n >= 1, ">= 1")
    _expect(options, "lr", lambda x: 0 < x <= _FASTEST, f"> 0 and at most {_FASTEST:g}")
    _expect(options, "temperature", lambda x: x >= _COLDEST, f">= {_COLDEST:g}")
    _expect(options, "classes", _classes_fit, "0 or 2 .. 255")
    if not options.methods:
        raise ValueError("--methods: expected linear, retrieval or both, got none")
    shown = " ".join(f"{scale:g}" for scale in options.scales) or "none"
    if min(options.scales, default=0) <= 0:
        raise ValueError(f"--scales: expected one or more, all > 0, got {shown}")
    if len(set(options.scales)) < len(options.scales):
        raise ValueError(f"--scales: expected different ones, got {shown}")
    given = options.of_set()

    from fastequi.evaluate.geometry.dense_maps import Sizing
    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.linear_head import Fit
    from fastequi.evaluate.geometry.masks import open_masks
    from fastequi.evaluate.geometry.retrieval import expect_search
    from fastequi.evaluate.geometry.segment import Segmentation, evaluate_segments

    if "retrieval" in options.methods:
        expect_search(options.search)
    what = Segmentation(
        sizing=Sizing(options.side, options.windows, options.scales),
        methods=tuple(dict.fromkeys(options.methods)),
        fit=Fit(steps=options.steps, lr=options.lr, seed=options.seed),
        memory=options.memory,
        neighbours=options.neighbours,
        temperature=options.temperature,
        seed=options.seed,
        search=options.search,
    )
    opened = partial(open_masks, classes=options.classes, **given)
    run = partial(evaluate_segments, opened, what)
    evaluate("segment", options.checkpoint, run, **options.frame())


def clusters(argv: list[str]) -> None:
    options = parse(ClustersOptions, "fastequi eval clusters", argv)
    _expect(options, "tokens", lambda n: n >= 1, ">= 1")
    _expect(options, "clusters", lambda n: n >= 0, "0 or more")
    _expect(options, "classes", _classes_fit, "0 or 2 .. 255")
    given = options.of_set()

    from fastequi.evaluate.geometry.clusters import Clustering, evaluate_clusters
    from fastequi.evaluate.geometry.dense_maps import Sizing
    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.masks import open_masks

    what = Clustering(
        sizing=Sizing(options.side, options.windows),
        many=options.clusters,
        tokens=options.tokens,
        fit_on=options.fit_on,
        seed=options.seed,
    )
    opened = partial(open_masks, classes=options.classes, **given)
    run = partial(evaluate_clusters, opened, what)
    evaluate("clusters", options.checkpoint, run, **options.frame())


def depth(argv: list[str]) -> None:
    options = parse(DepthOptions, "fastequi eval depth", argv)
    _expect(options, "steps", lambda n: n >= 1, ">= 1")
    _expect(options, "bins", lambda n: n >= 2, ">= 2")
    _expect(options, "lr", lambda x: 0 < x <= _FASTEST, f"> 0 and at most {_FASTEST:g}")
    _expect(options, "metres nearest", lambda x: x > 0, "> 0")
    _expect(options, "metres", lambda x: x <= _FARTHEST, f"at most {_FARTHEST:g}")
    _expect(options, "farthest", lambda x: x > options.nearest, f"> --nearest {options.nearest:g}")
    _expect(options, "farthest", lambda x: x <= _FARTHEST, f"at most {_FARTHEST:g} m")
    given = options.of_set()

    from fastequi.evaluate.geometry.dense_maps import Sizing
    from fastequi.evaluate.geometry.depth import DepthHead, evaluate_depths
    from fastequi.evaluate.geometry.depth_sets import open_depths
    from fastequi.evaluate.geometry.frame import evaluate
    from fastequi.evaluate.geometry.linear_head import Fit

    what = DepthHead(
        sizing=Sizing(options.side, options.windows),
        bins=options.bins,
        fit=Fit(steps=options.steps, lr=options.lr, weight_decay=0.01, seed=options.seed),
    )
    opened = partial(
        open_depths,
        metres=options.metres,
        nearest=options.nearest,
        farthest=options.farthest,
        crop=options.crop,
        **given,
    )
    run = partial(evaluate_depths, opened, what)
    evaluate("depth", options.checkpoint, run, **options.frame())


def _classes_fit(count: int) -> bool:
    return count == 0 or 2 <= count <= 255


def _expect(options: object, names: str, fits: Callable[[Any], bool], expected: str) -> None:
    """Raises ValueError that names the first option whose value does not fit."""
    for name in names.split():
        value = getattr(options, name)
        if not fits(value):
            raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, got {value}")
