"""The decoding graph: photographs and parameters in, all views out, on the CPU or a GPU.

    image ─ decode ┬─ M windows of u  ─ colour ─ blur ─ solarize ─ rot90 ────────────► u  uint8
                   ├─ M windows of v1 ─ colour ─ blur ─ solarize ─ rot90 ─ normalise ─► v1 float32
                   └─ M · V local crops, likewise, if the run has any ───────────────► crops float32

An image is a file that DALI reads itself, or encoded bytes that the feed brings (of tar shards).

Nothing is random here: all choices arrive as arrays (`fastequi.data.views.parameters`), so the
same arrays give the same bytes for any number of threads. Every photograph is decoded once for its
windows; those of one kind then go through the other operators together, as the frames of one
sequence. With a shared crop v1 is cut from the resampled u instead of being resampled again.

The only module that imports DALI.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.config import Augment, DataConfig
from fastequi.data.views.parameters import ViewParams
from fastequi.data.views.rotations import rotation_matrices

_MISSING: Exception | None = None
try:
    from nvidia.dali import Pipeline, fn, types
    from nvidia.dali import __version__ as _version
except Exception as error:  # a broken install raises more than ImportError
    _MISSING = error

_IN_FLIGHT = 2  # batches DALI prepares ahead

Feed = tuple[Any, ...]
File = str | NDArray[np.uint8]  # a path, or an image's encoded bytes


def decoder_backend(device: torch.device) -> tuple[str, str]:
    """What decodes images for a device, and why: two short texts."""
    if _MISSING is not None:
        return "none", f"DALI cannot be imported ({_MISSING}); pip install fastequi[dali]"
    if device.type == "cuda":
        return f"dali {_version}, mixed", "decodes and augments on the GPU"
    return f"dali {_version}, cpu", "no CUDA device in use"


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
        require_dali()
        self.device = device
        self._pipeline = Pipeline(
            batch_size=decodes,
            num_threads=num_threads,
            device_id=_device_id(device),
            prefetch_queue_depth=_IN_FLIGHT,
            exec_dynamic=True,  # outputs stay valid for as long as they are held
        )
        self._crops = cfg.local_crops
        with self._pipeline:
            self._pipeline.set_outputs(*_graph(cfg, feed, device, encoded, frame))
        self._pipeline.build()

    def run(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The next batch, in the order of the feeds, on the current stream of the device.

        Returns:
            v1 [B, 3, H, W] normalised float32; u [B, 3, Hs, Ws] uint8, channels-last; and crops
            [V, B, 3, h, h] normalised float32, or None where V is 0.
        """
        views: list[Tensor] = []
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device)
            for out in self._pipeline.run(cuda_stream=stream):
                views.append(torch.from_dlpack(out.as_tensor()))
        else:
            views += [torch.from_numpy(np.array(out.as_array())) for out in self._pipeline.run()]
        v1, u = (x.flatten(0, 1) if x.dim() == 5 else x for x in views[:2])  # [decodes, M, ...]
        crops = None
        if self._crops:
            crops = views[2] if views[2].dim() == 5 else views[2][:, None]  # [decodes, M · V, ...]
            crops = crops.flatten(0, 1).unflatten(0, (-1, self._crops)).transpose(0, 1)
        return v1, u.permute(0, 3, 1, 2), crops


def feed_of(
    cfg: DataConfig,
    files: Sequence[File],
    v1: ViewParams,
    u: ViewParams,
    crops: ViewParams | None = None,
) -> Feed:
    """One batch for the graph, in the order of its inputs.

    Args:
        files: [D] paths, or encoded images.
        v1, u: parameters of the D · M samples, M consecutive ones per file.
        crops: of their local views, V consecutive ones per sample.
    """

    def rows(values: NDArray[Any], trailing: int = 0) -> NDArray[Any]:
        """[D, frames, ...], or [D, ...] for one frame per decode."""
        frames = len(values) // len(files)
        lead = (len(files), frames) if frames > 1 else (len(files),)
        return np.ascontiguousarray(values).reshape(lead + values.shape[1:] + (1,) * trailing)

    arrays: list[Any] = [_samples(files)]
    views = (
        (u, True, cfg.source_size),
        (v1, not cfg.shared_crop, cfg.image_size),
        (crops, True, cfg.local_crop_size),
    )
    for params, has_window, size in views:
        if params is None:
            continue
        if has_window:
            arrays += [rows(params.start), rows(params.end)]
        if params.color is not None:
            arrays += [rows(column) for column in params.color.T]
        if params.sigma is not None:
            # a window of one pixel is exactly no blur; 0 lets DALI choose it for the sigma
            arrays += [rows(params.sigma), rows(np.where(params.sigma > 0, 0, 1).astype(np.int32))]
        if params.solarize is not None:
            arrays.append(rows(params.solarize.astype(np.uint8) * np.uint8(255), trailing=3))
        if params.rotation is not None:
            arrays.append(rows(rotation_matrices(params.rotation, size)))
    return tuple(arrays)


def _samples(files: Sequence[File]) -> list[NDArray[np.uint8]]:
    return [np.frombuffer(os.fsencode(f), np.uint8) if isinstance(f, str) else f for f in files]


def _decode(files: Any, device: torch.device, encoded: bool) -> Any:
    read = files if encoded else fn.io.file.read(files)
    return fn.decoders.image(read, device="mixed" if device.type == "cuda" else "cpu")


def _graph(
    cfg: DataConfig,
    feed: Callable[[], Feed],
    device: torch.device,
    encoded: bool,
    frame: tuple[int, int] | None,
) -> tuple[Any, ...]:
    on_gpu = device.type == "cuda"
    kinds = _input_types(cfg)
    inputs = iter(fn.external_source(source=feed, num_outputs=len(kinds), dtype=kinds, batch=True))
    image = _decode(next(inputs), device, encoded)

    def windows(size: int, frames: int) -> Any:
        start, end = next(inputs), next(inputs)
        shape = frame or (size, size)
        shared: dict[str, Any] = {"size": list(shape), "roi_relative": True, "antialias": True}
        if frames == 1:
            return fn.resize(image, roi_start=start, roi_end=end, **shared)
        each = (
            fn.resize(image, roi_start=start[i], roi_end=end[i], **shared) for i in range(frames)
        )
        return fn.stack(*each, axis_name="F")

    def pixels(x: Any, aug: Augment, frames: int) -> Any:
        def each(values: Any) -> Any:
            return fn.per_frame(values) if frames > 1 else values

        if aug.colors:
            names = ("brightness", "contrast", "saturation", "hue")
            x = fn.color_twist(x, **{name: each(next(inputs)) for name in names})
        if aug.blur > 0:
            x = fn.gaussian_blur(x, sigma=each(next(inputs)), window_size=each(next(inputs)))
        if aug.solarize > 0:
            flag = next(inputs)  # 255 where the sample is solarized, else 0
            x = x ^ ((x >= 128) * (flag.gpu() if on_gpu else flag))
        if cfg.rotations:  # pixel onto pixel, so that nothing is interpolated
            x = fn.warp_affine(x, matrix=each(next(inputs)), interp_type=types.INTERP_NN)
        return x

    def normalised(x: Any, frames: int) -> Any:
        return fn.crop_mirror_normalize(
            x,
            mean=[255 * m for m in cfg.mean],
            std=[255 * s for s in cfg.std],
            dtype=types.FLOAT,
            output_layout="FCHW" if frames > 1 else "CHW",
        )

    samples = cfg.samples_per_decode
    source = windows(cfg.source_size, samples)
    u = pixels(source, cfg.a2, samples)
    if not cfg.shared_crop:
        view = windows(cfg.image_size, samples)
    elif cfg.source_size > cfg.image_size:
        view = fn.crop(source, crop=(cfg.image_size, cfg.image_size))
    else:
        view = source
    views = [normalised(pixels(view, cfg.a1, samples), samples), u]
    if cfg.local_crops:
        frames = samples * cfg.local_crops
        views.append(
            normalised(pixels(windows(cfg.local_crop_size, frames), cfg.a3, frames), frames)
        )
    return tuple(views)


def _input_types(cfg: DataConfig) -> list[Any]:
    """The types of :func:`feed_of`'s arrays."""
    kinds = [types.UINT8]
    views = [(cfg.a2, True), (cfg.a1, not cfg.shared_crop)]
    for aug, has_window in views + [(cfg.a3, True)] * (cfg.local_crops > 0):
        kinds += [types.FLOAT] * (2 * has_window + 4 * aug.colors)
        kinds += [types.FLOAT, types.INT32] * (aug.blur > 0) + [types.UINT8] * (aug.solarize > 0)
        kinds += [types.FLOAT] * cfg.rotations
    return kinds


def decoded_sizes(
    files: Sequence[File], device: torch.device, num_threads: int
) -> list[tuple[int, int] | str]:
    """What DALI makes of each file: (height, width) upright, or its words why it cannot decode it.

    All are paths, or all encoded images. They are decoded together; what fails is halved.
    """
    require_dali()
    found: list[tuple[int, int] | str] = ["" for _ in files]
    left = [range(len(files))] if files else []
    while left:
        part = left.pop()
        sizes = _decoded([files[i] for i in part], device, num_threads)
        if not isinstance(sizes, str):
            for i, size in zip(part, sizes, strict=True):
                found[i] = size
        elif len(part) == 1:
            found[part[0]] = sizes
        else:
            left += [part[len(part) // 2 :], part[: len(part) // 2]]
    return found


def _decoded(
    files: Sequence[File], device: torch.device, num_threads: int
) -> list[tuple[int, int]] | str:
    pipeline = Pipeline(
        batch_size=len(files),
        num_threads=num_threads,
        device_id=_device_id(device),
        prefetch_queue_depth=1,
    )
    samples, encoded = _samples(files), not isinstance(files[0], str)
    with pipeline:
        source = fn.external_source(source=lambda: samples, dtype=types.UINT8)
        pipeline.set_outputs(_decode(source, device, encoded))
    try:
        (images,) = pipeline.run()
        return [(int(height), int(width)) for height, width, _ in images.shape()]
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    """The line of DALI's message that says what happened, without its account of the graph."""
    text = str(error)
    lines = (text.partition("encountered:")[2] or text).splitlines()
    told = (line.strip(" :").replace(" sample #0", "") for line in lines)
    reason = next((line for line in told if line), type(error).__name__)
    unnamed = reason.startswith("nvImageCodec failure: '#")  # and a number
    return f"damaged, or in an unknown format ({reason})" if unnamed else reason


def _device_id(device: torch.device) -> int | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    return torch.cuda.current_device() if device.index is None else device.index


def require_dali() -> None:
    """Raises ImportError, with the way to install it, where DALI cannot be imported."""
    if _MISSING is not None:
        raise ImportError(
            f"reading images needs DALI: pip install fastequi[dali] (importing it: {_MISSING})"
        ) from _MISSING
