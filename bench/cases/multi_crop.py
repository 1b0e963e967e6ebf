"""The views of a multi-crop recipe, of decoded photographs, beside what it takes to decode these.

Two views of 224 px and eight of 96 px, each by the probabilities of the recipe: nearly all colours
change, one view is always blurred, half of the small ones are. What a call gives is checked as in
`views.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cases import decode, views
from bench.cases.geometry import DTYPES, MEAN, STD, itemsize
from bench.cases.views import HEIGHT, WIDTH
from bench.opbench import Call, Inputs, OpBench, Provider, Unavailable
from fastequi.data.config import Augment
from fastequi.data.views.parameters import ViewParams, crop_params, view_params
from fastequi.functional import fused_views
from fastequi.philox import Draws
from fastequi.recipes import RECIPES

RECIPE = "dino_vits16"


class Kind(NamedTuple):
    """Views of one kind, as many of each photograph, one after the other."""

    aug: Augment
    size: int
    drawn: ViewParams
    photographs: Sequence[NDArray[np.uint8]]

    @property
    def arrays(self) -> list[NDArray[np.uint8]]:
        """The photograph of every view."""
        count = len(self.drawn.start) // len(self.photographs)
        return [array for array in self.photographs for _ in range(count)]

    def __str__(self) -> str:
        return f"{len(self.drawn.start)} views of {self.size} px"


def _inputs(B: int, dtype: str) -> Inputs:
    cfg = replace(RECIPES[RECIPE]().data, batch_size=B)
    arrays = [np.array(image) for image in views.photographs(B)]
    draws, sides = Draws.of(0, 0, np.arange(B)), np.tile((HEIGHT, WIDTH), (B, 1))
    first, second = view_params(cfg, draws, sides)
    small = crop_params(cfg, draws, sides)
    assert small is not None
    kinds = [
        Kind(cfg.a1, cfg.image_size, first, arrays),
        Kind(cfg.a2, cfg.source_size, second, arrays),
        Kind(cfg.a3, cfg.local_crop_size, small, arrays),
    ]
    return {"kinds": kinds, "dtype": DTYPES[dtype], **decode.files_of(B)}


def _checked(found: Any, kind: Kind) -> None:
    """Raises Unavailable unless these are normalised views of that size."""
    shape = len(kind.arrays), 3, kind.size, kind.size
    made = np.stack([np.asarray(view) for view in found])
    if made.shape != shape or not np.isfinite(made).all() or not 0.3 < made.std() < 3:
        raise Unavailable(f"gives {made.shape} of spread {made.std():.2g}, not {kind}")


def _only_float32(inputs: Inputs) -> None:
    if inputs["dtype"] != torch.float32:
        raise Unavailable("makes float32")


def _ours(inputs: Inputs, mode: str) -> Call:
    """As `fastequi.data.fused` calls it; parameters drawn ahead, as it draws them."""
    views.only_forward(mode)
    kinds = inputs["kinds"]
    calls = [views.arguments("all", each.size, each.photographs, each.drawn) for each in kinds]
    for kind, (photos, windows, options) in zip(kinds, calls, strict=True):
        options["dtype"] = inputs["dtype"]
        _checked(fused_views(photos, windows, **options).float(), kind)

    def call() -> dict[str, Tensor]:
        for photos, windows, options in calls:
            fused_views(photos, windows, **options)
        return {}

    return call


def _dali(inputs: Inputs, mode: str) -> Call:
    """fastequi's own graph without its decoder."""
    views.only_forward(mode)
    _only_float32(inputs)
    pipelines = []
    for kind in inputs["kinds"]:
        pipelines.append(views.pipeline("all", kind.size, kind.arrays, kind.drawn))
        _checked(pipelines[-1].run()[0].as_array(), kind)

    def call() -> dict[str, Tensor]:
        for pipeline in pipelines:
            pipeline.run()
        return {}

    return call


def _albumentations(inputs: Inputs, mode: str) -> Call:
    views.only_forward(mode)
    _only_float32(inputs)
    try:
        transforms = [_composed(kind.aug, kind.size) for kind in inputs["kinds"]]
    except ImportError as error:
        raise Unavailable(f"{error}") from None
    for kind, transform in zip(inputs["kinds"], transforms, strict=True):
        _checked([transform(image=array)["image"] for array in kind.arrays], kind)

    work = [(t, kind.arrays) for t, kind in zip(transforms, inputs["kinds"], strict=True)]

    def call() -> dict[str, Tensor]:
        for transform, arrays in work:
            for array in arrays:
                transform(image=array)
        return {}

    return call


def _composed(aug: Augment, size: int) -> Any:
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    most = aug.brightness, aug.contrast, aug.saturation
    ranges = [*((1 - value, 1 + value) for value in most), (-aug.hue, aug.hue)]
    return A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=aug.area, p=1.0),
            A.HorizontalFlip(p=aug.flip),
            A.ColorJitter(*ranges, p=aug.jitter),
            A.ToGray(p=aug.gray),
            A.GaussianBlur((0, 0), aug.sigma, p=aug.blur),
            A.Solarize((0.5, 0.5), p=aug.solarize),
            A.Normalize(MEAN, STD),
            A.ToTensorV2(),
        ]
    )


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    """Of windows of the mean area read once and views written."""
    cfg = RECIPES[RECIPE]().data
    total = 0
    for aug, size, count in (
        (cfg.a1, cfg.image_size, 1),
        (cfg.a2, cfg.source_size, 1),
        (cfg.a3, cfg.local_crop_size, cfg.local_crops),
    ):
        total += count * (
            int(3 * HEIGHT * WIDTH * sum(aug.area) / 2) + 3 * size**2 * itemsize(params)
        )
    return params["B"] * total


def _verdict(params: Mapping[str, Any], medians: Mapping[str, float]) -> str:
    shares = ", ".join(
        f"{name} {ms / params['B']:.3f}" for name, ms in medians.items() if name != "triad"
    )
    return f"milliseconds of a photograph: {shares}"


_PEER: dict[str, Any] = {"partial": True}

CASES = (
    OpBench(
        name="multi_crop_cpu",
        device="cpu",
        title="2 views of 224 px and 8 of 96 px of photographs of 500x375, and their decoding",
        inputs=_inputs,
        providers={
            "decoding by DALI": Provider(decode.by_dali, **_PEER),
            "DALI": Provider(_dali, **_PEER),
            "AlbumentationsX": Provider(_albumentations, **_PEER),
            "ours": Provider(_ours, **_PEER),
        },
        answer=lambda inputs, mode: {},
        bytes_moved=_bytes,
        formula="pixels of the windows read once + views written once",
        flops=lambda params, mode: 0.0,
        sweep=tuple({"B": 32, "dtype": dtype} for dtype in ("float32", "bfloat16")),
        verdict=_verdict,
    ),
)
