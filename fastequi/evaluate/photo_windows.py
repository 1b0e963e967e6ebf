"""Un-augmented windows of photographs, of which pairs are made."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastequi import paths
from fastequi.data.channels import DTYPE
from fastequi.data.config import Augment, DataConfig
from fastequi.data.loader import Loader, make_loader
from fastequi.data.settling import wanted
from fastequi.data.sources.image_sets import Source
from fastequi.data.sources.wanted import Wanted
from fastequi.data.views.batch import Views
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.photometric import Photometric

_SCALED, _PER_DECODE, _BATCH = 256, 8, 256  # _PER_DECODE at most; all are powers of two


def values_of(of: Encoder | DataConfig) -> DataConfig:
    """Settings that say which channels an encoder's images have, or a run's, and which values.

    Of a run also the share of images that may be unreadable. Of one that keeps channels its files
    number of them too, as others have other channels there;
    and, of a range in the files' own numbers, their depth, as those of others mean other values.
    """
    names = ("channels", "value_range", "mean", "std")
    values = DataConfig(**{name: getattr(of, name) for name in names})
    data = of if isinstance(of, DataConfig) else of.config.data if of.config else values
    values = replace(values, tolerate=data.tolerate)
    if data.channels != values.channels:
        return values
    ranged = values.value_range == data.value_range != DTYPE
    depth = data.file_depth if ranged else ""
    count, part = data.file_channels, data.file_part
    return replace(values, file_channels=count, file_depth=depth, file_part=part)


def photometric_for(encoder: Encoder) -> Photometric:
    """The photometric change of its images: colours of RGB, else a gain and an offset of each
    channel."""
    return Photometric(rgb=bool(encoder.colors))


def images_for(encoder: Encoder) -> Wanted:
    """What is asked of the images that an encoder gets."""
    return replace(wanted(values_of(encoder)), by_encoder=True)


def window_loader(
    source: Source,
    path: paths.Path,
    views: Views,
    *,
    seed: int,
    device: torch.device,
    window: tuple[float, float] | None = None,
    count: int | None = None,
    values: DataConfig = DataConfig(),  # noqa: B008
) -> Loader:
    """Endless batches of un-augmented windows, some from each decoding; close it after use.

    Args:
        source: the photographs.
        path: the transformation whose parameters the batches carry.
        views: of `fastequi.evaluate.tasks.views_for`.
        seed: of windows and parameters.
        device: that images go to.
        window: see `fastequi.evaluate.tasks.Budget`.
        count: windows that will be taken: eight are cut from a decoding, or fewer, down to one, so
            that they are from all photographs, or from as many as they can be; None: eight.
        values: of :func:`values_of`; 8-bit RGB by default.
    """
    per_decode = _PER_DECODE
    while count is not None and per_decode > 1 and per_decode * len(source) > count:
        per_decode //= 2
    if window is None:
        share = views.source_size / _SCALED
        window = (min(share, 0.6), min(1.6 * share, 1.0))
    plain = Augment.none(side=window)
    decodes = _BATCH // per_decode
    cfg = replace(
        values,
        image_size=views.image_size,
        source_size=views.source_size,
        a1=plain,
        a2=plain,
        shared_crop=True,
        batch_size=_BATCH,
        samples_per_decode=per_decode,
        repeat=max(-(-16 * decodes // len(source)), 1),
        tolerate=source.tolerance.share,
    )
    return make_loader(source, cfg, path, seed=seed, device=device)


def windows_for(
    encoder: Encoder, source: Source, path: paths.Path, views: Views, *, seed: int, count: int
) -> Loader:
    """:func:`window_loader` of images as an encoder takes them, on its device."""
    device, values = encoder.device, values_of(encoder)
    return window_loader(source, path, views, seed=seed, device=device, count=count, values=values)
