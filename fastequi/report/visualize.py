"""`fastequi visualize`: pictures of an encoder's features and a run's reconstructions, as PNG."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastequi.build import views_of
from fastequi.data.channels import RGB
from fastequi.data.config import Augment
from fastequi.data.given import rgb_of
from fastequi.data.loader import make_loader
from fastequi.data.sources.encoded import why
from fastequi.data.sources.image_sets import embedded_photos, open_source
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import TEST_REGION
from fastequi.data.sources.trouble import raise_trouble
from fastequi.data.views.batch import Batch
from fastequi.evaluate.checked import expect_finite
from fastequi.evaluate.classification import normalise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_encoder, random_init
from fastequi.evaluate.photo_windows import images_for, values_of
from fastequi.evaluate.results import writable_folder
from fastequi.functional import warp
from fastequi.functional.normalise import denormalise, in_unit
from fastequi.methods.tir import TIR
from fastequi.paths import SE2
from fastequi.philox import Draws
from fastequi.report import feature_views
from fastequi.report.false_colors import FalseColors, picked_of, said
from fastequi.report.markup import two
from fastequi.report.sheets import Sheet, Tile, heat, path_sheet, to_uint8
from fastequi.weights.architecture import UNSTATED, Stated

logger = logging.getLogger(__name__)

_SHOWN, _ROWS, _SWEPT = 9, 6, 3  # images of the PCA, of other sheets, of the sweep
_OTHERS = 64  # images at most, shown or not, that the sweep's windows come from
_WINDOWS, _FEWER = 1500, 300  # the probe is fitted on, and of large views on a CPU
_LARGE = 64  # pixels
_DEGREES = (-45.0, -30.0, -15.0, 0.0, 15.0, 30.0, 45.0)


def photographs(data: Data | None, encoder: Encoder) -> Source:
    """The images of `data` with an encoder's channels; by default the embedded ones, with the part
    that no demo trains on.

    Only windows are cut from that part: squares still show whole images.
    """
    if data is None:
        encoder.expect_photographs()
        return embedded_photos(TEST_REGION)
    return open_source(data, wanted=images_for(encoder))


def visualize(
    spec: str,
    data: Data | None,
    out: Path,
    *,
    device: str = "auto",
    windows: int = 0,
    stated: Stated = UNSTATED,
    shown: str = "",
) -> list[Path]:
    """Writes one PNG for each sheet and prints what each shows.

    Args:
        spec: see :func:`fastequi.evaluate.encoders.load_encoder`.
        data: see `fastequi.data.sources.image_sets.open_source`; None: the embedded photographs.
        out: folder of the files, made if need be.
        device: "auto", "cpu", "cuda" or "cuda:1".
        windows: that the sweep's probe is fitted on; 0: 1500, 300 of large views on a CPU.
        stated: what a file does not say; see `load_encoder`.
        shown: channels of the files that pictures show, as `picked_of` takes them.
    """
    encoder = load_encoder(spec, device, stated)
    picked_of(shown, encoder.channels, encoder.in_chans)
    photos = photographs(data, encoder)
    writable_folder(out)
    files = []
    found, why_not = sheets(encoder, photos, windows, shown)
    for reason in why_not:
        print(f"no {reason}")
    for name, sheet in found.items():
        files.append(out / f"{name}.png")
        sheet.png().save(files[-1])
        print(f"{files[-1]}: {sheet.title}. {sheet.note}")
    return files


@torch.no_grad()
def sheets(
    encoder: Encoder, photos: Source, windows: int = 0, shown: str = ""
) -> tuple[dict[str, Sheet], list[str]]:
    """Every sheet that can be made of an encoder, by the name of its file; why others cannot.

    Args:
        encoder: any.
        photos: images to show.
        windows: that the sweep's probe is fitted on; 0: 1500, 300 of large views on a CPU.
        shown: channels of the files that pictures show, as `picked_of` takes them.
    """
    picked = picked_of(shown, encoder.channels, encoder.in_chans)
    found = {
        "reconstructions": reconstructions(encoder, photos, picked),
        "pca": pca(encoder, photos, picked),
        "attention": attention(encoder, photos, picked),
        "sweep": sweep(encoder, photos, windows, picked),
    }
    made = {name: sheet for name, sheet in found.items() if isinstance(sheet, Sheet)}
    return made, [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]


def reconstructions(encoder: Encoder, photos: Source, picked: tuple[int, ...] = ()) -> Sheet | str:
    """One path of every image, the longest of 8 that are drawn; or why there is none."""
    method, config = encoder.method, encoder.config
    if not isinstance(method, TIR) or method.decoder is None or config is None:
        return "it has no decoders"
    views, path = views_of(config), config.path.build(config.data.in_chans)
    pictures = _pictures(encoder, photos, _SHOWN, views.source_size)[:_ROWS]
    u = torch.stack([_window(picture, views.source_size) for picture in pictures])
    u = u.to(encoder.device)
    tries = 8
    params = path.sample(Draws.of(0, 0, range(len(u) * tries)), views.image_size)
    params = params.unflatten(0, (len(u), tries))
    furthest = params[:, :, 0].abs().argmax(1)
    params = params[torch.arange(len(u)), furthest].to(encoder.device)
    size = (views.image_size, views.image_size)
    scale: dict[str, Any] = {"mean": views.mean, "std": views.std}
    still = path.at(params, (0.0,), size, zoom=views.zoom).theta[:, 0]
    v1 = warp(u, still, size=size, padding_mode=views.padding_mode, **scale)
    u = u.contiguous(memory_format=torch.channels_last)
    batch = Batch(v1=v1, u=u, path=params, sample_ids=torch.arange(len(u)), epoch=0)
    shown = method.reconstruct(batch)
    expect_finite(encoder.name, {"predictions": shown["pred"]})
    return path_sheet(shown, views.mean, views.std, encoder.channels, picked)


def pca(encoder: Encoder, photos: Source, picked: tuple[int, ...] = ()) -> Sheet:
    """Every image beside the first three principal components of its tokens."""
    size, name = feature_views.shown_size(encoder), feature_views.patch_name(encoder)
    images = torch.stack(_squares(encoder, photos, _SHOWN, size)).to(encoder.device)
    tokens = feature_views.dense_tokens(encoder, normalise(images, encoder))
    colors = [
        (c * 255).round().byte().cpu().numpy() for c in feature_views.pca_colors(list(tokens))
    ]
    return Sheet(
        title="Principal components of the patches",
        note=f"The first three principal components of the {name} features as red, green and blue; "
        "one basis for all images, so that similar colours mean similar features."
        f"{_colors(encoder, picked)}",
        columns=("image", name),
        rows=tuple(zip(_tiles(images, encoder, picked), colors, strict=True)),
        side=192,
        smooth=True,
        wrap=True,
    )


def attention(encoder: Encoder, photos: Source, picked: tuple[int, ...] = ()) -> Sheet | str:
    """The last block's attention over every image, head by head; or why there is none."""
    size = encoder.image_size
    images = torch.stack(_squares(encoder, photos, _ROWS, size)).to(encoder.device)
    weights = feature_views.last_attention(encoder, normalise(images, encoder))
    if weights is None:
        return "it has no attention of fastequi.models.vit"
    heads = weights.shape[1]
    tiles = [
        (tile, *(heat(tile, head) for head in maps))
        for tile, maps in zip(_tiles(images, encoder, picked, 160), weights, strict=True)
    ]
    whose = "The class token's attention" if "cls" in encoder.names else "The patches' attention"
    return Sheet(
        title="Attention of the last block",
        note=f"{whose} to the patches, softmax(q·k) for each of {heads} heads"
        f"{'' if 'cls' in encoder.names else ', mean over the patches as queries'}; "
        f"bright where it is largest.{_colors(encoder, picked)}",
        columns=("image", *(f"head {i + 1}" for i in range(heads))),
        rows=tuple(tiles),
        side=160,
        smooth=True,
        wrap=heads <= 3,
    )


def sweep(
    encoder: Encoder, photos: Source, windows: int = 0, picked: tuple[int, ...] = ()
) -> Sheet | str:
    """Images rotated from -45° to 45° without a border, below each the predicted angle."""
    side = -(-encoder.image_size * 1415 // 1000)  # √2: no rotation has an empty corner
    pictures = _pictures(encoder, photos, _OTHERS, side)
    if len(pictures) < 2:
        return "its probe is fitted on other images, and there is one"
    swept = min(_SWEPT, len(pictures) // 2)
    slow = encoder.device.type == "cpu" and encoder.image_size > _LARGE
    windows = windows or (_FEWER if slow else _WINDOWS)
    generator = torch.Generator().manual_seed(0)

    def cut(some: list[Tensor], n: int) -> Tensor:
        return torch.stack([_random(some[i % len(some)], side, generator) for i in range(n)])

    shown = torch.stack([_window(picture, side) for picture in pictures[:swept]])
    train, test = cut(pictures[swept:], windows), cut(pictures[:swept], windows // 3)
    device, degrees = encoder.device, torch.tensor(_DEGREES)
    shown, train, test = (part.to(device) for part in (shown, train, test))
    found = feature_views.sweep(encoder, shown=shown, train=train, test=test, degrees=degrees)
    baseline = ""
    if encoder.fresh is not None:
        untrained = feature_views.sweep(
            random_init(encoder), shown=shown[:1], train=train, test=test, degrees=degrees
        )
        baseline = f" (at random initialisation {two(untrained.r2)})"
    repeated = shown.repeat_interleave(len(degrees), 0)
    frames = feature_views.rotated(repeated, degrees.to(device).repeat(swept), encoder)
    if encoder.channels == RGB:
        tiles = to_uint8(frames, encoder.mean, encoder.std)
    else:
        unit = denormalise(frames, encoder.mean, encoder.std).clamp(0, 1)
        tiles = FalseColors.of(unit, picked).pictures(unit)
    rows = [tuple(tiles[i : i + len(degrees)]) for i in range(0, len(tiles), len(degrees))]
    return Sheet(
        title="Predicted rotation of an image",
        note=f"Above, the true angle; below, the angle that a ridge probe predicts from the "
        f"similarities of the patches before and after, fitted on {windows:,} windows of "
        f"{len(pictures) - swept} other images. R² over {windows // 3} rotated windows of the "
        f"images shown: {two(found.r2)}{baseline}.{_colors(encoder, picked)}",
        columns=tuple(_signed(d) for d in _DEGREES),
        rows=tuple(rows),
        captions=tuple(tuple(_signed(p) for p in row) for row in found.predicted.tolist()),
    )


def _signed(degrees: float) -> str:
    rounded = round(degrees)
    return f"{rounded:+d}°".replace("-", "−") if rounded else "0°"


def _colors(encoder: Encoder, picked: tuple[int, ...]) -> str:
    """What the colours of its images are, where these are not RGB."""
    return "" if encoder.channels == RGB else f" {said(encoder.channels, encoder.in_chans, picked)}"


def _tiles(images: Tensor, encoder: Encoder, picked: tuple[int, ...], least: int = 0) -> list[Tile]:
    """uint8 or floats in 0..1 [B, C, H, W] as tiles, scaled up to `least` pixels."""
    if encoder.channels == RGB:
        shown_as = images.permute(0, 2, 3, 1).cpu().numpy()
    else:
        shown_as = FalseColors.of(images, picked).pictures(images)
    tiles = []
    for image in shown_as:
        side = max(least, image.shape[0])
        shown = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        tiles.append(np.asarray(shown))
    return tiles


def _opened(source: Source, count: int) -> Iterator[Image.Image]:
    """At most `count` images, evenly spaced; those that cannot be read are logged and left out."""
    found = 0
    for i in np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int):
        try:
            image = Image.fromarray(rgb_of(source.encoded(i)))
        except Exception as error:  # whatever damaged bytes make Pillow raise
            raise_trouble(error)
            _left_out(source.names[i], why(error))
        else:
            found += 1
            yield image
    if not found:
        raise ValueError(f"--data: of {len(source)} images none that was tried can be read")


@cache
def _left_out(path: str, why: str) -> None:
    """Logged once, for all sheets."""
    logger.warning("%s cannot be read and is left out (%s)", path, why)


def _squares(encoder: Encoder, photos: Source, count: int, size: int) -> list[Tensor]:
    """The middle square of images, uint8 [3, size, size], or as :func:`_of_channels` gives it."""
    if encoder.channels != RGB:
        return _of_channels(encoder, photos, count, size)
    found = _opened(photos, count)
    return [_tensor(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)) for image in found]


def _pictures(encoder: Encoder, photos: Source, count: int, least: int) -> list[Tensor]:
    """Images to cut windows from, uint8 [3, h, w], h and w at least `least`, most varied first.

    As large as on the PCA sheet where that is enough. Of other channels than RGB squares, as
    :func:`_of_channels` gives them.
    """
    found, short = [], feature_views.shown_size(encoder)
    if encoder.channels != RGB:
        squares = _of_channels(encoder, photos, count, max(short, least))
        return sorted(squares, key=lambda picture: -_variety(_window(picture, least)))
    for image in _opened(photos, count):
        width, height = image.size
        part = tuple(e * s for e, s in zip(photos.region, (width, height) * 2, strict=True))
        across, down = part[2] - part[0], part[3] - part[1]
        scale = max(short / min(width, height), least / across, least / down)
        size = (max(round(across * scale), least), max(round(down * scale), least))
        how = Image.Resampling.BICUBIC
        found.append(_tensor(image.resize(size, how, box=part)))  # type: ignore[arg-type]
    return sorted(found, key=lambda picture: -_variety(_window(picture, least)))


def _of_channels(encoder: Encoder, photos: Source, count: int, size: int) -> list[Tensor]:
    """The whole squares of images with an encoder's channels, [C, size, size] floats in 0..1."""
    n, plain = min(count, len(photos)), Augment.none()
    cfg = replace(
        values_of(encoder),
        image_size=size,
        source_size=size,
        a1=plain,
        a2=plain,
        shared_crop=True,
        batch_size=n,
    )
    with make_loader(photos, cfg, SE2(), seed=0, device=torch.device("cpu"), steps=1) as loader:
        return list(in_unit(next(iter(loader)).u))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _random(picture: Tensor, side: int, generator: torch.Generator) -> Tensor:
    top, left = (
        int(torch.randint(n - side + 1, (), generator=generator)) for n in picture.shape[1:]
    )
    return picture[:, top : top + side, left : left + side]


def _window(picture: Tensor, side: int) -> Tensor:
    """Of 16 random windows the one with the largest deviation of its pixels."""
    generator = torch.Generator().manual_seed(0)
    tries = [_random(picture, side, generator) for _ in range(16)]
    return max(tries, key=_variety)


def _variety(window: Tensor) -> float:
    return window.float().std().item()
