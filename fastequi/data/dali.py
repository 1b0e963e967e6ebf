"""The decoding graph: photographs and parameters in, all views out, on the CPU or a GPU.

    image ─ decode ┬─ M windows of u  ─ colour ─ blur ─ solarize ─ rot90 ───────────► u uint8
                   ├─ M windows of v1 ─ colour ─ blur ─ solarize ─ rot90 ─ normalise ► v1 float32
                   └─ M · V local crops, likewise, if the run has any ───────────────► float32

An image is a file that DALI reads itself, or encoded bytes that the feed brings (of tar shards).

Nothing is random here: all choices arrive as arrays (`fastequi.data.views.parameters`), so the
same arrays give the same bytes for any number of threads. :func:`inputs` declares the arrays once;
the feed, their types and the graph follow from it. Every photograph is decoded once for its
windows; those of one kind then go through the other operators together, as the frames of one
sequence. With a shared crop v1 is cut from the resampled u instead of being resampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.config import Augment, DataConfig
from fastequi.data.decode import (
    File,
    decoded,
    fn,
    pipeline_of,
    samples,
    stream_of,
    types,
)
from fastequi.data.views.parameters import ViewParams
from fastequi.data.views.rotations import rotation_matrices

Feed = tuple[Any, ...]
_COLOR = ("brightness", "contrast", "saturation", "hue")  # columns of ViewParams.color


@dataclass(frozen=True)
class View:
    """One kind of view in the graph.

    Attributes:
        name: "u", "v1" or "local".
        aug: its augmentation.
        size: side in pixels.
        frames: views of this kind from every decoded photograph.
        window: resampled from the photograph; a v1 that is cut from u is not.
    """

    name: str
    aug: Augment
    size: int
    frames: int
    window: bool = True


@dataclass(frozen=True)
class Input:
    """One array of a batch, as the feed makes it and the graph reads it.

    Attributes:
        view: the :class:`View` that it belongs to.
        name: the operator's argument, or what the array means.
        dtype: of the array.
        array: makes it from the view's parameters, [samples, ...].
        per_frame: the operator takes one value for every frame of a sequence.
    """

    view: View
    name: str
    dtype: type[np.generic]
    array: Callable[[ViewParams], NDArray[Any]]
    per_frame: bool = True


def views(cfg: DataConfig) -> list[View]:
    """The kinds of views of a configuration."""
    each = cfg.samples_per_decode
    found = [
        View("u", cfg.a2, cfg.source_size, each),
        View("v1", cfg.a1, cfg.image_size, each, window=not cfg.shared_crop),
    ]
    if cfg.local_crops:
        frames = each * cfg.local_crops
        found.append(View("local", cfg.a3, cfg.local_crop_size, frames))
    return found


def inputs(cfg: DataConfig) -> list[Input]:
    """The arrays of a batch beside its images, in their order."""
    return [one for view in views(cfg) for one in _inputs_of(view, cfg.rotations)]


def _inputs_of(view: View, rotations: bool) -> list[Input]:
    found = []
    if view.window:
        found += [
            Input(view, "start", np.float32, lambda p: p.start, per_frame=False),
            Input(view, "end", np.float32, lambda p: p.end, per_frame=False),
        ]
    if view.aug.colors:
        found += [
            Input(view, name, np.float32, lambda p, i=i: _there(p.color)[:, i])  # type: ignore[misc]
            for i, name in enumerate(_COLOR)
        ]
    if view.aug.blur > 0:
        found += [
            Input(view, "sigma", np.float32, lambda p: _there(p.sigma)),
            # a window of one pixel is exactly no blur; 0 lets DALI choose it for the sigma
            Input(view, "window_size", np.int32, lambda p: np.where(_there(p.sigma) > 0, 0, 1)),
        ]
    if view.aug.solarize > 0:  # 255 where the sample is solarized, else 0
        found.append(Input(view, "solarize", np.uint8, _solarize, per_frame=False))
    if rotations:

        def matrix(params: ViewParams) -> NDArray[np.float32]:
            return rotation_matrices(_there(params.rotation), view.size)

        found.append(Input(view, "matrix", np.float32, matrix))
    return found


def _solarize(params: ViewParams) -> NDArray[Any]:
    """[samples, 1, 1, 1], to meet height, width and channels."""
    return (_there(params.solarize) * np.uint8(255))[:, None, None, None]


def _there(values: NDArray[Any] | None) -> NDArray[Any]:
    assert values is not None, "drawn for every operation that the configuration has"
    return values


class Decoded(NamedTuple):
    """The graph's views of a batch of B samples.

    Attributes:
        v1: [B, 3, H, W] normalised float32.
        u: [B, 3, Hs, Ws] uint8, channels-last in memory.
        local_crops: [V, B, 3, h, h] normalised float32, or None where V is 0.
    """

    v1: Tensor
    u: Tensor
    local_crops: Tensor | None


class ViewPipeline:
    """DALI's graph for one configuration.

    Args:
        cfg: the views.
        decodes: photographs in a batch; M = cfg.samples_per_decode samples come from each.
        feed: called once per batch, ahead of time; returns what :func:`feed_of` makes.
        device: where the views are made: "cpu", or a CUDA device.
        num_threads: DALI's CPU threads.
        encoded: the feed brings images' bytes, not paths.
        frame: height and width of u in pixels where it is no square; of a shared crop without
            margin only.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        cfg: DataConfig,
        decodes: int,
        feed: Callable[[], Feed],
        device: torch.device,
        num_threads: int,
        encoded: bool = False,
        frame: tuple[int, int] | None = None,
    ) -> None:
        self.device, self._local_crops = device, cfg.local_crops
        graph = partial(_graph, cfg, feed, device, encoded, frame)
        self._pipeline = pipeline_of(graph, decodes, num_threads, device)

    def run(self) -> Decoded:
        """The next batch, in the order of the feeds, on the current stream of the device."""
        outputs = self._pipeline.run(stream_of(self.device))
        if self.device.type == "cuda":
            found = [torch.from_dlpack(out.as_tensor()) for out in outputs]
        else:
            found = [torch.from_numpy(np.array(out.as_array())) for out in outputs]
        v1, u = (x.flatten(0, 1) if x.dim() == 5 else x for x in found[:2])  # [decodes, M, ...]
        local = None
        if self._local_crops:
            local = found[2] if found[2].dim() == 5 else found[2][:, None]  # [decodes, M · V, ...]
            local = local.flatten(0, 1).unflatten(0, (-1, self._local_crops)).transpose(0, 1)
        return Decoded(v1, u.permute(0, 3, 1, 2), local)


def feed_of(
    cfg: DataConfig,
    files: Sequence[File],
    v1: ViewParams,
    u: ViewParams,
    local_crops: ViewParams | None = None,
) -> Feed:
    """One batch for the graph: its images, then the arrays of :func:`inputs`.

    Args:
        files: [D] paths, or encoded images.
        v1, u: parameters of the D · M samples, M consecutive ones per file.
        local_crops: of their local views, V consecutive ones per sample.
    """
    drawn = {"u": u, "v1": v1, "local": local_crops}

    def rows(declared: Input) -> NDArray[Any]:
        """[D, frames, ...], or [D, ...] for one frame per decode."""
        params = drawn[declared.view.name]
        assert params is not None, "local_crops: drawn where the configuration has some"
        values = np.ascontiguousarray(declared.array(params), declared.dtype)
        frames = len(values) // len(files)
        lead = (len(files), frames) if frames > 1 else (len(files),)
        return values.reshape(lead + values.shape[1:])

    return (samples(files), *(rows(declared) for declared in inputs(cfg)))


def _graph(
    cfg: DataConfig,
    feed: Callable[[], Feed],
    device: torch.device,
    encoded: bool,
    frame: tuple[int, int] | None,
) -> tuple[Any, ...]:
    on_gpu, declared = device.type == "cuda", inputs(cfg)
    dtypes = [types.UINT8, *(_dali_type(one.dtype) for one in declared)]
    files, *arrays = fn.external_source(
        source=feed, num_outputs=len(dtypes), dtype=dtypes, batch=True
    )
    given: dict[tuple[str, str], Any] = {}
    for one, array in zip(declared, arrays, strict=True):
        several = one.per_frame and one.view.frames > 1
        given[one.view.name, one.name] = fn.per_frame(array) if several else array
    image = decoded(files, device, encoded)

    def windows(view: View) -> Any:
        start, end = given[view.name, "start"], given[view.name, "end"]
        shape = frame or (view.size, view.size)
        shared: dict[str, Any] = {"size": list(shape), "roi_relative": True, "antialias": True}
        if view.frames == 1:
            return fn.resize(image, roi_start=start, roi_end=end, **shared)
        each = (
            fn.resize(image, roi_start=start[i], roi_end=end[i], **shared)
            for i in range(view.frames)
        )
        return fn.stack(*each, axis_name="F")

    def augmented(x: Any, view: View) -> Any:
        own = {name: array for (of, name), array in given.items() if of == view.name}
        if "hue" in own:
            x = fn.color_twist(x, **{name: own[name] for name in _COLOR})
        if "sigma" in own:
            x = fn.gaussian_blur(x, sigma=own["sigma"], window_size=own["window_size"])
        if "solarize" in own:
            flag = own["solarize"]
            x = x ^ ((x >= 128) * (flag.gpu() if on_gpu else flag))
        if "matrix" in own:  # pixel onto pixel, so that nothing is interpolated
            x = fn.warp_affine(x, matrix=own["matrix"], interp_type=types.INTERP_NN)
        return x

    def normalised(x: Any, view: View) -> Any:
        return fn.crop_mirror_normalize(
            x,
            mean=[255 * m for m in cfg.mean],
            std=[255 * s for s in cfg.std],
            dtype=types.FLOAT,
            output_layout="FCHW" if view.frames > 1 else "CHW",
        )

    u, v1, *local = views(cfg)
    source = windows(u)
    if v1.window:
        first = windows(v1)
    elif u.size > v1.size:
        first = fn.crop(source, crop=(v1.size, v1.size))
    else:
        first = source
    crops = [normalised(augmented(windows(view), view), view) for view in local]
    return (normalised(augmented(first, v1), v1), augmented(source, u), *crops)


def _dali_type(dtype: type[np.generic]) -> Any:
    known = {np.uint8: types.UINT8, np.int32: types.INT32, np.float32: types.FLOAT}
    return known[dtype]
