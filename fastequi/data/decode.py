"""Decoding by DALI: at the head of a graph, alone, or an image at a time to see what fails.

An image is a file that DALI reads itself, or encoded bytes (of tar shards). The only module that
imports DALI.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastequi.data.pixels import LARGEST, Pixels

_MISSING: Exception | None = None
try:
    from nvidia.dali import Pipeline, fn, math, types
    from nvidia.dali import __version__ as _version
except Exception as error:  # a broken install raises more than ImportError
    _MISSING = error
    Pipeline: Any = None  # type: ignore[no-redef]
    fn = math = types = None  # type: ignore[assignment]

IN_FLIGHT = 2  # batches DALI prepares ahead

File = str | NDArray[np.uint8]  # a path, or an image's encoded bytes
See = Callable[[NDArray[Any]], object]  # called with values [H, W, C], by several threads


def require_dali() -> None:
    """Raises ImportError, with the command to install it, if DALI cannot be imported."""
    if _MISSING is not None:
        raise ImportError(
            f"reading images needs DALI: pip install fastequi[dali] (importing it: {_MISSING})"
        ) from _MISSING


def is_installed() -> bool:
    """Whether DALI can be imported."""
    return _MISSING is None


def decoder_backend(device: torch.device) -> tuple[str, str]:
    """The backend that decodes images for a device, and the reason: two short texts."""
    if _MISSING is not None:
        return "none", f"DALI cannot be imported ({_MISSING}); pip install fastequi[dali]"
    if device.type == "cuda":
        return f"dali {_version}, mixed", "decodes and augments on the GPU"
    return f"dali {_version}, cpu", "no CUDA device in use"


def samples(files: Sequence[File]) -> list[NDArray[np.uint8]]:
    """As DALI takes them: paths as bytes, too."""
    return [np.frombuffer(os.fsencode(f), np.uint8) if isinstance(f, str) else f for f in files]


def decoded(files: Any, device: torch.device, encoded: bool, pixels: Pixels | None = None) -> Any:
    """The part of a graph that reads and decodes: to 8-bit RGB, or to what a run takes."""
    read = files if encoded else fn.io.file.read(files)
    on_gpu = device.type == "cuda"
    where = "mixed" if on_gpu else "cpu"
    if pixels is None:
        return fn.decoders.image(read, device=where)
    if pixels.as_arrays:
        image = fn.decoders.numpy(read, dtype=_type_of(pixels))
        return image.gpu() if on_gpu else image
    # DALI 2.4 ends the process where it decodes a grey JPEG as any data
    kind = {1: types.GRAY, 3: types.RGB}.get(pixels.count, types.ANY_DATA)
    return fn.decoders.image(read, device=where, output_type=kind, dtype=_type_of(pixels))


def within(image: Any, pixels: Pixels) -> Any:
    """The part of a graph that cuts decoded values off at the ends of their channels' ranges.

    Whole numbers stay in their type where the ends are whole too, and one pair of ends is taken for
    all channels, those too that no one reads: two and four times as fast.
    """
    if not pixels.cuts:
        return image
    most = LARGEST[pixels.depth]
    ends = np.array(pixels.ranges)
    whole = pixels.depth != "float32" and bool((ends == ends.round()).all())
    least, largest = (0.0, most) if whole else (-_FARTHEST, _FARTHEST)
    kind = _type_of(pixels) if whole else types.FLOAT
    image = image if whole else fn.cast(image, dtype=types.FLOAT)
    for cut, end, idle in ((math.max, ends[:, 0], least), (math.min, ends[:, 1], largest)):
        end = end.clip(least, largest)
        if (end == idle).all():
            continue
        if (end == end[0]).all():
            constant = types.Constant(end[0].item(), dtype=kind)
        else:
            each = np.full((1, 1, pixels.count), idle)
            each[..., list(pixels.chosen)] = end
            constant = types.Constant(each.astype(pixels.depth if whole else np.float32))
        image = cut(image, constant)
    return image


_FARTHEST = float(np.finfo(np.float32).max)


def _type_of(pixels: Pixels) -> Any:
    return {"uint8": types.UINT8, "uint16": types.UINT16, "float32": types.FLOAT}[pixels.depth]


def device_id(device: torch.device) -> int | None:
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    return torch.cuda.current_device() if device.index is None else device.index


def stream_of(device: torch.device) -> torch.cuda.Stream | None:
    """Where a pipeline's outputs are ready, its first argument of `run`, which has no name: named
    ones are inputs of the graph."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def pipeline_of(
    graph: Callable[[], Sequence[Any]], batch: int, threads: int, device: torch.device
) -> Any:
    """A built pipeline of batches that are made ahead, and stay valid for as long as they are held.

    Args:
        graph: makes the outputs; called once.
        batch: images in a batch.
        threads: DALI's CPU threads.
        device: where images are decoded.

    Raises:
        ImportError: DALI is not installed.
    """
    require_dali()
    pipeline = Pipeline(
        batch_size=batch,
        num_threads=threads,
        device_id=device_id(device),
        prefetch_queue_depth=IN_FLIGHT,
        exec_dynamic=True,  # or outputs are overwritten
    )
    with pipeline:
        pipeline.set_outputs(*graph())
    pipeline.build()
    return pipeline


class Decoder:
    """DALI's graph that decodes and nothing else: for views that are made elsewhere.

    Args:
        decodes: photographs in a batch.
        files: called once per batch, ahead of time; returns paths, or encoded images.
        device: where they are decoded: "cpu", or a CUDA device.
        num_threads: DALI's CPU threads.
        encoded: they are images' bytes, not paths.
        pixels: what a run takes; None for 8-bit RGB.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        decodes: int,
        files: Callable[[], Sequence[File]],
        device: torch.device,
        num_threads: int,
        encoded: bool = False,
        pixels: Pixels | None = None,
    ) -> None:
        self.device = device

        def graph() -> tuple[Any]:
            source = fn.external_source(
                source=lambda: samples(files()), dtype=types.UINT8, batch=True
            )
            return (decoded(source, device, encoded, pixels),)

        self._pipeline = pipeline_of(graph, decodes, num_threads, device)

    def run(self) -> list[Tensor]:
        """The next batch, on the current stream of the device: values [H, W, C] each.

        It is DALI's memory, which stays theirs for as long as they are held.
        """
        (images,) = self._pipeline.run(stream_of(self.device))
        return [torch.from_dlpack(images[i]) for i in range(len(images))]


def decoded_sizes(
    files: Sequence[File],
    device: torch.device,
    num_threads: int,
    pixels: Pixels | None = None,
    see: See | None = None,
) -> list[tuple[int, int] | str]:
    """What DALI makes of each file: (height, width) upright, or why it cannot be decoded.

    All are paths, or all encoded images. Each is a batch of its own: where an image of a larger one
    cannot be decoded, DALI goes on with the others after it has reported the error, in memory that
    is no longer there (DALI 2.4: a segmentation fault of its worker threads).
    """
    require_dali()
    workers = min(num_threads, len(files))
    found: list[tuple[int, int] | str] = ["" for _ in files]

    def decode(worker: int) -> None:
        pipeline = None
        for i in range(worker, len(files), workers):
            pipeline = pipeline or _Single(device, isinstance(files[i], str), pixels)
            found[i] = size = pipeline.size(files[i], see)
            if isinstance(size, str):
                pipeline = None  # after an error it is not run again

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(decode, range(workers)))
    return found


class _Single:
    """A graph that decodes one image at a time, in the calling thread."""

    def __init__(self, device: torch.device, paths: bool, pixels: Pixels | None) -> None:
        self._sample: list[NDArray[np.uint8]] = []
        self._channels, self._device = 3 if pixels is None else pixels.count, device
        self._pipeline = Pipeline(
            batch_size=1,
            num_threads=1,
            device_id=device_id(device),
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        with self._pipeline:
            source = fn.external_source(source=lambda: self._sample, dtype=types.UINT8)
            self._pipeline.set_outputs(decoded(source, device, not paths, pixels))

    def size(self, file: File, see: See | None = None) -> tuple[int, int] | str:
        self._sample = samples([file])
        try:
            (images,) = self._pipeline.run()
        except Exception as error:
            return _reason(error)
        ((height, width, channels),) = images.shape()
        if channels != self._channels:
            return f"{channels} channels, expected {self._channels}"
        if see is not None:
            see(np.asarray((images if self._device.type == "cpu" else images.as_cpu()).at(0)))
        return int(height), int(width)


def _reason(error: Exception) -> str:
    """The line of DALI's message that names the error, without its description of the graph."""
    text = str(error)
    lines = (text.partition("encountered:")[2] or text).splitlines()
    reasons = (line.strip(" :").replace(" sample #0", "") for line in lines)
    reason = next((line for line in reasons if line), type(error).__name__)
    unnamed = reason.startswith("nvImageCodec failure: '#")  # and a number
    return f"damaged, or in an unknown format ({reason})" if unnamed else reason
