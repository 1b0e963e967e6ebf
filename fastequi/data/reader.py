"""Every image of a source once, in order and without augmentation, for evaluation and embedding.

The largest centred square of an image (or a rectangle of another shape), or a share of it, is
resized with antialiasing, by the same graph as the loader's (`fastequi.data.dali`). So values along
an image's own edges are not those of Pillow and PyTorch: DALI repeats the outermost pixels where a
filter reaches beyond them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.channel_views import ChannelPipeline
from fastequi.data.config import Augment, DataConfig
from fastequi.data.dali import Feed, ViewPipeline, feed_of
from fastequi.data.drawn import Drawn
from fastequi.data.given import Given, usable_threads
from fastequi.data.pixels import pixels_of
from fastequi.data.sources.images import WHOLE, Source
from fastequi.data.views.parameters import ViewParams

logger = logging.getLogger(__name__)

Size = int | tuple[int, int]  # side of a square, or height and width

_AHEAD = 4  # batches that may have been decoded beyond the last one handed out


def read(
    source: Source,
    size: Size,
    *,
    device: torch.device,
    share: float = 1.0,
    batch: int = 64,
    num_threads: int = 0,
    values: DataConfig = DataConfig(),  # noqa: B008
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Yields batches of images and their indices in the source, in its order.

    A file that cannot be decoded is named and left out.

    Args:
        source: the images; only its region is used.
        size: side of the squares in pixels, or height and width of rectangles.
        device: "cpu" or a CUDA device, where they are decoded and stored.
        share: of the largest window that fits (224 / 256 is usual on ImageNet).
        batch: images per batch.
        num_threads: of DALI; 0: all usable cores, at most 16.
        values: whose channels and value_range are taken; by default 8-bit RGB.

    Yields:
        ([B, C, height, width] uint8, or uint16 of channels with more bits, [B] places).

    Raises:
        ImportError: DALI is not installed.
        RuntimeError: more of the files cannot be decoded than the source tolerates.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected 0 < share <= 1, got {share}")
    batch = min(batch, len(source))
    threads, plain = usable_threads(num_threads), Augment.none()
    frame = (size, size) if isinstance(size, int) else size
    cfg = replace(
        values,
        image_size=frame[0],
        source_size=frame[0],
        a1=plain,
        a2=plain,
        shared_crop=True,
        batch_size=batch,
    )
    pixels = pixels_of(cfg, source)
    left, bad, given = np.arange(len(source)), 0, Given(source, threads, pixels)
    try:
        while len(left):
            parts = [left[i : i + batch] for i in range(0, len(left), batch)]
            plan = _Plan(cfg, given, parts, share, frame)
            how = device, threads, given.as_bytes
            pipeline = (
                ViewPipeline(cfg, batch, plan.feed, *how, frame)
                if pixels is None
                else ChannelPipeline(cfg, batch, plan, *how, pixels, frame)
            )
            for part in parts:
                try:
                    images = pipeline.run().u
                except Exception as error:
                    found, changed = given.examine(left[: _AHEAD * batch].tolist(), device)
                    if not found and not changed:
                        raise
                    for i, why in found.items():
                        name = source.names[i]
                        logger.warning("%s cannot be decoded and is left out (%s)", name, why)
                    bad += len(found)
                    if bad == len(source) or bad > source.tolerance.allowed(len(source)):
                        raise RuntimeError(
                            f"{bad} of {len(source)} images cannot be decoded, more than "
                            f"{source.tolerance}"
                        ) from error
                    left = np.array([i for i in left if int(i) not in found], np.int64)
                    break
                left = left[len(part) :]
                yield images[: len(part)], part
    finally:
        given.close()


class _Plan:
    """DALI's next inputs: the parts; the last one is padded, and repeated as DALI runs ahead."""

    def __init__(
        self,
        cfg: DataConfig,
        given: Given,
        parts: list[NDArray[np.int64]],
        share: float,
        frame: tuple[int, int],
    ) -> None:
        self.cfg, self.given, self.parts, self.share, self.frame = cfg, given, parts, share, frame
        self.next = 0

    def feed(self) -> Feed:
        """As DALI's graph takes them."""
        return feed_of(self.cfg, *self())

    def __call__(self) -> Drawn:
        part = self.parts[min(self.next, len(self.parts) - 1)]
        self.next += 1
        filled = np.concatenate([part, np.repeat(part[-1:], self.cfg.batch_size - len(part))])
        window = _centre(self.given.source, filled, self.share, self.frame)
        return Drawn(self.given.files(filled.tolist()), window, window, None)


def _centre(
    source: Source, files: NDArray[np.int64], share: float, frame: tuple[int, int]
) -> ViewParams:
    """The centred windows of files, in the shape of the frame."""
    x0, y0, x1, y1 = source.region
    sizes = source.sizes[files].astype(np.float64)
    if share == 1 and source.region == WHOLE:
        return _covered(sizes, np.array(frame))
    extent, middle = np.array([y1 - y0, x1 - x0]), np.array([y0 + y1, x0 + x1]) / 2
    shape = np.array(frame) / max(frame)
    half = share * (sizes * extent / shape).min(1, keepdims=True) * shape / sizes / 2
    start, end = middle - half, middle + half
    return ViewParams(start.astype(np.float32), end.astype(np.float32))


def _covered(sizes: NDArray[np.float64], frame: NDArray[np.int64]) -> ViewParams:
    """The windows of whole images that are resized until they cover the frame, and cut at its
    centre: by whole pixels as torchvision's Resize and CenterCrop, and so
    :class:`fastequi.export.transform.ImageTransform`, round them."""
    covering = np.maximum((frame[::-1] * sizes / sizes[:, ::-1]).astype(np.int64), frame)
    start = np.round((covering - frame) / 2)
    end = (start + frame) / covering
    return ViewParams((start / covering).astype(np.float32), end.astype(np.float32))
