"""Views of images whose channels are kept: DALI decodes and resamples, PyTorch does the rest
(`data.views="dali"`; in one pass with the same parameters: `fused.py`).

    image ─ decode ─ range ─ windows ─┬─ gain, offset, gamma ─ blur ─ noise ─ drop ─ rot90 ─► u
                                      ├─ likewise ─ normalise ──────────────────────────────► v1
                                      └─ likewise ─ normalise ──────────────────────────────► local

    x ← (min(max(x, low), high) - low) / (high - low),
    x ← clip(gain · x + offset) ^ gamma,  x ← x ∗ G_sigma,
    x ← clip(x + deviation · noise),      x ← mean of x where a channel is dropped

with clip to 0..1, of every channel by itself. Where the channels are red, green and blue, colours
change together in the place of gain, offset and gamma, as in `dali.py`, and x ← 1 - x from ½ on
after the blur where a view is solarized. As everywhere, all choices arrive as arrays; noise is read
from one table of normal numbers, from a place that is drawn for each channel. u has 8 bits of
images with 8, else 16.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.config import MOST_WITH_NOISE, Augment, DataConfig
from fastequi.data.dali import Decoded, View, views
from fastequi.data.decode import decoded, fn, pipeline_of, samples, stream_of, types, within
from fastequi.data.drawn import Drawn
from fastequi.data.pixels import LARGEST, Pixels
from fastequi.data.views.parameters import NOISE_PLACES, ViewParams
from fastequi.data.views.rotations import rotate
from fastequi.functional import gaussian_blur
from fastequi.functional.normalise import normalise
from fastequi.paths import color_matrix, recolored
from fastequi.philox import Draws


class ChannelPipeline:
    """Batches of views, like :class:`fastequi.data.dali.ViewPipeline`.

    Args:
        cfg: the views.
        decodes: images in a batch; M = cfg.samples_per_decode samples come from each.
        draw: called once per batch, ahead of time.
        device: where the views are made: "cpu", or a CUDA device.
        num_threads: DALI's CPU threads.
        encoded: files are images' bytes, not paths.
        pixels: what is taken of the images.
        frame: height and width of u in pixels where it is no square; of a shared crop without
            margin only.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        cfg: DataConfig,
        decodes: int,
        draw: Callable[[], Drawn],
        device: torch.device,
        num_threads: int,
        encoded: bool,
        pixels: Pixels,
        frame: tuple[int, int] | None = None,
    ) -> None:
        self.cfg, self.device, self.pixels = cfg, device, pixels
        self._draw, self._ahead = draw, deque[Drawn]()  # being decoded, oldest first
        # a view of its own even where v1 is the middle of u
        self._views = [View(v.name, v.aug, v.size, v.frames) for v in views(cfg)]
        graph = partial(self._graph, encoded, frame)
        self._pipeline = pipeline_of(graph, decodes, num_threads, device)

    def run(self) -> Decoded:
        """The next batch, in the order of the draws, on the current stream of the device."""
        outputs = self._pipeline.run(stream_of(self.device))
        drawn = self._ahead.popleft()
        given = {"u": drawn.u, "v1": drawn.v1, "local": drawn.local_crops}
        found: dict[str, Tensor] = {}
        for view, out in zip(self._views, outputs, strict=True):
            if self.device.type == "cuda":
                values = torch.from_dlpack(out.as_tensor())
            else:
                values = torch.from_numpy(np.array(out.as_array()))
            params = given[view.name]
            assert params is not None, "drawn for every view that the configuration has"
            found[view.name] = self._made(values.flatten(0, -4), view, params)
        local = found.get("local")
        if local is not None:
            local = local.unflatten(0, (-1, self.cfg.local_crops)).transpose(0, 1)
        return Decoded(found["v1"], found["u"], local)

    def _graph(self, encoded: bool, frame: tuple[int, int] | None) -> tuple[Any, ...]:
        kinds = [types.UINT8, *[types.FLOAT] * 2 * len(self._views)]
        files, *corners = fn.external_source(
            source=self._feed, num_outputs=len(kinds), dtype=kinds, batch=True
        )
        image = within(decoded(files, self.device, encoded, self.pixels), self.pixels)
        outputs = []
        for k, view in enumerate(self._views):
            start, end = corners[2 * k : 2 * k + 2]
            each = [
                fn.resize(
                    image,
                    roi_start=start[i],
                    roi_end=end[i],
                    size=list(frame or (view.size, view.size)),
                    roi_relative=True,
                    antialias=True,
                    dtype=types.FLOAT,
                )
                for i in range(view.frames)
            ]
            outputs.append(fn.stack(*each, axis_name="F"))
        return tuple(outputs)

    def _feed(self) -> tuple[Any, ...]:
        """The next images and windows; called by DALI, ahead of the batches returned."""
        drawn = self._draw()
        self._ahead.append(drawn)
        given = {"u": drawn.u, "v1": drawn.v1, "local": drawn.local_crops}
        arrays: list[NDArray[Any]] = []
        for view in self._views:
            params = given[view.name]
            assert params is not None, "drawn for every view that the configuration has"
            for corner in (params.start, params.end):
                arrays.append(corner.astype(np.float32).reshape(-1, view.frames, 2))
        return samples(drawn.files), *arrays

    def _made(self, values: Tensor, view: View, params: ViewParams) -> Tensor:
        """A view of resampled values [N, S, S, count]."""
        taken = in_range(values, self.pixels)
        images = augmented(taken, view.aug, params)
        if self.cfg.rotations and params.rotation is not None:
            rotate(images, params.rotation)
        if view.name == "u":
            return as_whole(images, self.pixels.depth)
        return normalise(images, self.cfg.mean, self.cfg.std)


def in_range(values: Tensor, pixels: Pixels) -> Tensor:
    """The chosen channels of values [N, H, W, count], as [N, C, H, W] floats in 0..1."""
    device = values.device
    if pixels.chosen != tuple(range(pixels.count)):
        values = values[..., there(np.array(pixels.chosen), device)]
    low, high = there(np.array(pixels.ranges, np.float32).T[..., None, None].copy(), device)
    images = values.permute(0, 3, 1, 2).contiguous()
    return images.sub_(low).div_(high - low).clamp_(0, 1)


def augmented(images: Tensor, aug: Augment, params: ViewParams) -> Tensor:
    """Images [N, C, H, W] in 0..1 with what was drawn for colours or for each channel; changed in
    place."""
    device = images.device
    if aug.colors and params.color is not None:
        brightness, contrast, saturation, degrees = there(params.color, device).unbind(1)
        matrix = color_matrix(brightness, contrast, saturation, degrees / 360)
        images = recolored(images, matrix).clamp_(0, 1)
    if params.channels is not None:
        gain, offset, gamma = there(params.channels, device).permute(2, 0, 1)[..., None, None]
        images.mul_(gain).add_(offset).clamp_(0, 1)
        if aug.gamma > 0:
            images.pow_(gamma)
    if aug.blur > 0 and params.sigma is not None:
        most = max(aug.sigma[1], 0.5)
        images = gaussian_blur(images, there(params.sigma, device), max_sigma=most)
    if params.solarize is not None:
        inverted = there(params.solarize, device)[:, None, None, None] & (images >= 0.5)
        images = torch.where(inverted, 1 - images, images)
    return disturbed(images, params)


def disturbed(images: Tensor, params: ViewParams) -> Tensor:
    """Images [N, C, H, W] in 0..1 with noise, and without the contents of some channels."""
    device = images.device
    if params.noise is not None and params.noise_places is not None:
        deviation = there(params.noise, device)[:, None, None, None]
        side = images.shape[2] * images.shape[3]
        table = noise_table(device)
        windows = table.as_strided((NOISE_PLACES, side), (1, 1))
        noise = windows[there(params.noise_places, device)].view(images.shape)
        images = images.addcmul(deviation, noise).clamp_(0, 1)
    if params.dropped is not None:
        mean = images.mean((2, 3), keepdim=True)
        images = torch.where(there(params.dropped, device)[..., None, None], mean, images)
    return images


def as_whole(images: Tensor, depth: str) -> Tensor:
    """Floats in 0..1 as uint8 of images with 8 bits, else as uint16."""
    dtype = torch.uint8 if depth == "uint8" else torch.uint16
    most = LARGEST["uint8" if depth == "uint8" else "uint16"]
    return (images * most).round_().to(dtype)


@lru_cache(2)
def noise_table(device: torch.device) -> Tensor:
    """Normal numbers, a view's more than there are places: the same on every machine."""
    count = NOISE_PLACES + _LARGEST_VIEW
    parts = []
    for start in range(0, -(-count // _ROW), _TOGETHER):  # a few, as a draw takes much memory
        rows = Draws.of(0, 0, np.arange(start, start + _TOGETHER))
        first, second = np.split(rows.uniform("noise", 2 * _ROW).astype(np.float64), 2, 1)
        normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)  # Box, Muller, 1958
        parts.append(normal.astype(np.float32).reshape(-1))
    return torch.from_numpy(np.concatenate(parts)[:count]).to(device)


_ROW, _TOGETHER = 1 << 12, 16
_LARGEST_VIEW = MOST_WITH_NOISE**2  # pixels


def there(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device, by a copy that is not waited for."""
    found = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return found.pin_memory().to(device, non_blocking=True)
    return found
