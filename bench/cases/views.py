"""Augmenting decoded photographs: DALI's operators one by one, and other libraries' own.

On a CPU each library runs as its users run it, with its own random parameters of the same ranges,
an image at a time where it takes one (kornia takes batches); DALI takes a batch. Decoding is apart
(`decode.py`). What a call gives is checked for its shape, type and range of values, since no two
libraries define a contrast or a hue alike: all are yardsticks, none an answer. Ours equals DALI's
within a grey level (tests/test_fused_views.py).

On a GPU: `views_gpu.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fastequi
from bench.cases.geometry import MEAN, STD
from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable
from fastequi.data.config import Augment, DataConfig
from fastequi.data.views.parameters import ViewParams, view_params
from fastequi.functional import fused_views
from fastequi.paths import color_matrix
from fastequi.philox import Draws

HEIGHT, WIDTH = 375, 500  # of the photographs, ImageNet's usual size
AREA, SIGMA, JITTER = (0.08, 1.0), (0.1, 2.0), (0.4, 0.4, 0.2, 0.1)
OPS = ("all", "crop", "colour", "blur", "solarize", "normalise")
_LAST = ("all", "normalise")  # their results are normalised float32 [3, H, W]


def photographs(count: int) -> list[Image.Image]:
    """The packaged ones in turn, at one size."""
    files = sorted((Path(fastequi.__file__).parent / "data" / "photos").glob("*.jpg"))
    found = [Image.open(file).convert("RGB").resize((WIDTH, HEIGHT)) for file in files]
    return [found[i % len(found)] for i in range(count)]


def only_forward(mode: str) -> None:
    if mode == "fwdbwd":
        raise Unavailable("views have no gradient")


def _inputs(op: str, B: int, size: int) -> Inputs:
    """Whole photographs for the crop, views of them for what comes after it."""
    images = photographs(B)
    if op not in ("all", "crop"):
        images = [image.resize((size, size)) for image in images]
    arrays = [np.asarray(image) for image in images]
    return {"op": op, "size": size, "images": images, "arrays": arrays}


def _checked(found: Any, inputs: Inputs) -> None:
    """Raises Unavailable unless it is a batch of such views."""
    op, size = inputs["op"], inputs["size"]
    views = np.stack([np.asarray(view) for view in found])
    last = op in _LAST
    shape = (len(inputs["images"]), *((3, size, size) if last else (size, size, 3)))
    if views.shape != shape and views.shape != (shape[0], 3, size, size):
        raise Unavailable(f"gives {views.shape}, not {shape}")
    if not np.isfinite(views.astype(np.float64)).all() or views.std() == 0:
        raise Unavailable("gives no images")
    if last and not 0.3 < views.std() < 3:
        raise Unavailable(f"gives values of spread {views.std():.2g}, not normalised ones")


def _each(make: Callable[[str, int], Callable[[Any], Any]], key: str) -> Make:
    """A library that takes an image: (op, size) to its function of one."""

    def made(inputs: Inputs, mode: str) -> Call:
        only_forward(mode)
        try:
            apply = make(inputs["op"], inputs["size"])
        except ImportError as error:
            raise Unavailable(f"{error}") from None
        images = inputs[key]

        def call() -> dict[str, Tensor]:
            for image in images:
                apply(image)
            return {}

        _checked([apply(image) for image in images], inputs)
        return call

    return made


def _chosen(op: str, steps: Mapping[str, Any]) -> list[Any]:
    return list(steps.values()) if op == "all" else [steps[op]]


def _ranges() -> list[tuple[float, float]]:
    """Of brightness, contrast and saturation as factors, of hue as a shift."""
    return [*((1 - most, 1 + most) for most in JITTER[:3]), (-JITTER[3], JITTER[3])]


def _albumentations(op: str, size: int) -> Callable[[Any], Any]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    one = {"p": 1.0}
    steps = {
        "crop": A.Compose(
            [A.RandomResizedCrop((size, size), scale=AREA, **one), A.HorizontalFlip(p=0.5)]
        ),
        "colour": A.ColorJitter(*_ranges(), **one),
        "blur": A.GaussianBlur((0, 0), SIGMA, **one),
        "solarize": A.Solarize((0.5, 0.5), **one),
        "normalise": A.Compose([A.Normalize(MEAN, STD), A.ToTensorV2()]),
    }
    transform = A.Compose(_chosen(op, steps))
    return lambda array: transform(image=array)["image"]


def _torchvision(op: str, size: int) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    steps = {
        "crop": v2.Compose(
            [v2.RandomResizedCrop(size, AREA, antialias=True), v2.RandomHorizontalFlip()]
        ),
        "colour": v2.ColorJitter(*JITTER),
        "blur": v2.GaussianBlur(2 * math.ceil(4 * SIGMA[1]) + 1, SIGMA),
        "solarize": v2.RandomSolarize(128, 1.0),
        "normalise": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]),
    }
    transform = v2.Compose(_chosen(op, steps))
    return lambda array: transform(torch.from_numpy(array).permute(2, 0, 1))


def _pillow(op: str, size: int) -> Callable[[Any], Any]:
    """DINO's own chain: torchvision's transforms of Pillow images, here without torchvision."""
    from PIL import ImageEnhance, ImageFilter, ImageOps

    draw = np.random.default_rng(0).uniform

    def crop(image: Image.Image) -> Image.Image:
        side = math.sqrt(draw(*AREA) * image.width * image.height)
        width, height = min(side, image.width), min(side, image.height)
        left, top = draw(0, image.width - width + 1e-9), draw(0, image.height - height + 1e-9)
        box = left, top, left + width, top + height
        found = image.resize((size, size), Image.Resampling.BILINEAR, box)
        return ImageOps.mirror(found) if draw() < 0.5 else found

    def colour(image: Image.Image) -> Image.Image:
        enhance = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
        for kind, most in zip(enhance, JITTER, strict=False):
            image = kind(image).enhance(draw(1 - most, 1 + most))
        hue, saturation, value = image.convert("HSV").split()
        turned = np.asarray(hue) + np.uint8(int(draw(-JITTER[3], JITTER[3]) * 255) % 256)
        return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")

    def normalise(image: Image.Image) -> Tensor:
        values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(255)
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        return values.sub_(mean).div_(std)

    steps = {
        "crop": crop,
        "colour": colour,
        "blur": lambda image: image.filter(ImageFilter.GaussianBlur(draw(*SIGMA))),
        "solarize": ImageOps.solarize,
        "normalise": normalise,
    }

    def transform(image: Any) -> Any:
        for step in _chosen(op, steps):
            image = step(image)
        return image

    return transform


def _kornia(inputs: Inputs, mode: str) -> Call:
    only_forward(mode)
    try:
        import kornia.augmentation as K
    except Exception as error:
        raise Unavailable(f"kornia: {error}") from None
    size = inputs["size"]
    reach = 2 * math.ceil(4 * SIGMA[1]) + 1
    steps = {
        "crop": K.AugmentationSequential(
            K.RandomResizedCrop((size, size), AREA, p=1.0), K.RandomHorizontalFlip()
        ),
        "colour": K.ColorJitter(*JITTER, p=1.0),
        "blur": K.RandomGaussianBlur((reach, reach), SIGMA, p=1.0),
        "solarize": K.RandomSolarize(0.0, 0.0, p=1.0),
        "normalise": K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    }
    transform = K.AugmentationSequential(*_chosen(inputs["op"], steps))
    batch = torch.stack([torch.from_numpy(a.copy()) for a in inputs["arrays"]]).permute(0, 3, 1, 2)

    def call() -> dict[str, Tensor]:
        transform(batch.float() / 255)
        return {}

    _checked(transform(batch.float() / 255), inputs)
    return call


def _dali(inputs: Inputs, mode: str) -> Call:
    """What fastequi runs with `data.views=dali`, without its decoder."""
    only_forward(mode)
    made = pipeline(
        inputs["op"],
        inputs["size"],
        inputs["arrays"],
        parameters(len(inputs["arrays"]), inputs["size"]),
    )

    def call() -> dict[str, Tensor]:
        made.run()
        return {}

    _checked(made.run()[0].as_array(), inputs)
    return call


def pipeline(op: str, size: int, arrays: Sequence[Any], drawn: ViewParams) -> Any:
    """DALI's, built: an operation, or all that are drawn; an array for each view.

    Raises:
        Unavailable: no DALI.
    """
    try:
        from nvidia.dali import Pipeline, fn, types
    except Exception as error:
        raise Unavailable(f"DALI: {error}") from None
    count = len(arrays)
    assert drawn.color is not None
    assert drawn.sigma is not None
    color, sigma = drawn.color, drawn.sigma.astype(np.float32)
    inverted = np.ones(count, bool) if drawn.solarize is None else drawn.solarize
    flags = (inverted * np.uint8(255))[:, None, None, None]
    reach = np.where(sigma > 0, 0, 1).astype(np.int32)  # DALI's own, or no blur
    given = [arrays, drawn.start, drawn.end, *color.T.copy(), sigma, reach, flags]
    made = Pipeline(
        batch_size=count,
        num_threads=torch.get_num_threads(),
        device_id=None,
        exec_async=False,  # nothing is made ahead while others are timed
        exec_pipelined=False,
        prefetch_queue_depth=1,
    )
    with made:
        image, start, end, *colors, width, reach, flag = fn.external_source(
            source=lambda: given, num_outputs=10, batch=True
        )
        if op in ("all", "crop"):
            shape: dict[str, Any] = {"size": [size, size], "roi_relative": True, "antialias": True}
            image = fn.resize(image, roi_start=start, roi_end=end, **shape)
        if op in ("all", "colour"):
            names = "brightness", "contrast", "saturation", "hue"
            image = fn.color_twist(image, **dict(zip(names, colors, strict=True)))
        if op in ("all", "blur"):
            image = fn.gaussian_blur(image, sigma=width, window_size=reach)
        if op in ("all", "solarize"):
            image = image ^ ((image >= 128) * flag)
        if op in _LAST:
            scale: dict[str, Any] = {"mean": [255 * m for m in MEAN], "std": [255 * s for s in STD]}
            image = fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", **scale)
        made.set_outputs(image)
    made.build()
    return made


def _ours(inputs: Inputs, mode: str) -> Call:
    """`fused_views`, its parameters drawn ahead as fastequi draws them."""
    only_forward(mode)
    size, arrays = inputs["size"], inputs["arrays"]
    drawn = parameters(len(arrays), size)
    photos, windows, given = arguments(inputs["op"], size, arrays, drawn)

    def call() -> dict[str, Tensor]:
        return {"views": fused_views(photos, windows, **given)}

    _checked(call()["views"], inputs)
    return call


def arguments(
    op: str, size: int, arrays: Sequence[Any], drawn: ViewParams
) -> tuple[list[Tensor], Tensor, dict[str, Any]]:
    """Photographs, windows and options of `fused_views`, on the CPU; as many views of each."""
    photos = [torch.from_numpy(array) for array in arrays]
    photo = torch.arange(len(photos)).repeat_interleave(len(drawn.start) // len(photos))
    sides = torch.tensor([array.shape[:2] for array in arrays]).repeat(1, 2)[photo]
    windows = sides.float()
    windows[:, :2] = 0
    given: dict[str, Any] = {"size": size, "dtype": torch.uint8, "photo": photo}
    if op in ("all", "crop"):
        corners = np.concatenate([drawn.start, drawn.end], 1)
        windows = torch.from_numpy(corners) * sides
    if op in ("all", "colour"):
        assert drawn.color is not None
        brightness, contrast, saturation, hue = torch.from_numpy(drawn.color).unbind(1)
        given["color"] = color_matrix(brightness, contrast, saturation, hue / 360)
    if op in ("all", "blur"):
        assert drawn.sigma is not None
        given["sigma"] = torch.from_numpy(drawn.sigma)
    if op in ("all", "solarize") and drawn.solarize is not None:
        given["solarize"] = torch.from_numpy(drawn.solarize)
    if op in _LAST:
        given |= {"dtype": torch.float32, "mean": MEAN, "std": STD}
    return photos, windows, given


def parameters(count: int, size: int) -> ViewParams:
    """The parameters of a view of each of so many photographs."""
    names = "brightness", "contrast", "saturation", "hue"
    jitter: dict[str, Any] = dict(zip(names, JITTER, strict=True))
    each = {"jitter": 1.0, "gray": 0.0, "blur": 1.0, "solarize": 1.0, "sigma": SIGMA, **jitter}
    augment = Augment(area=AREA, **each)
    config = DataConfig(a1=augment, a2=augment, image_size=size, source_size=size)
    draws = Draws.of(0, 0, np.arange(count))
    return view_params(config, draws, np.tile((HEIGHT, WIDTH), (count, 1)))[0]


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    """What is read and written if an operation, or all of them, pass over the pixels once."""
    view = 3 * params["size"] ** 2
    mean_area = sum(AREA) / 2
    read = int(3 * HEIGHT * WIDTH * mean_area) if params["op"] in ("all", "crop") else view
    return params["B"] * (read + view * (4 if params["op"] in _LAST else 1))


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """As many bytes copied, and widened where the result is normalised."""
    views = torch.zeros(len(inputs["arrays"]), 3, inputs["size"], inputs["size"], dtype=torch.uint8)
    out = torch.empty_like(views, dtype=torch.float32 if inputs["op"] in _LAST else torch.uint8)
    return lambda: out.copy_(views)


def images_a_second(params: Mapping[str, Any], medians: Mapping[str, float]) -> str:
    """The verdict of a case of images."""
    rates = ", ".join(
        f"{name} {1e3 * params['B'] / ms:,.0f}"
        for name, ms in medians.items()
        if name not in ("floor", "triad")
    )
    return f"{params.get('op', 'decode')}, images a second: {rates}"


_PEER: dict[str, Any] = {"partial": True}
_BATCH = {"B": 32, "size": 224}

CASES = (
    OpBench(
        name="views_cpu",
        device="cpu",
        title="views of decoded photographs, 500x375",
        inputs=_inputs,
        providers={
            "Pillow": Provider(_each(_pillow, "images"), **_PEER),
            "torchvision": Provider(_each(_torchvision, "arrays"), **_PEER),
            "kornia": Provider(_kornia, **_PEER),
            "AlbumentationsX": Provider(_each(_albumentations, "arrays"), **_PEER),
            "DALI": Provider(_dali, **_PEER),
            "ours": Provider(_ours, **_PEER),
        },
        answer=lambda inputs, mode: {},
        bytes_moved=_bytes,
        formula="pixels of the window read once + view written once",
        flops=lambda params, mode: 0.0,
        floor=_floor,
        sweep=(
            *({"op": op, **_BATCH} for op in OPS),
            {"op": "all", "B": 32, "size": 96},
        ),
        verdict=images_a_second,
    ),
)
