"""What makes the views of a run where `data.views=auto`.

On a CPU it is `fused_views` where its C kernel runs, which was faster at every size measured
(bench/results). On a GPU, where it depends on the GPU, the processor beside it and the recipe, both
make views of the packaged photographs once, decoding included, and the choice is kept.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from fastequi import choices
from fastequi.data.config import DataConfig
from fastequi.data.dali import Decoded, ViewPipeline, feed_of
from fastequi.data.drawn import Drawn
from fastequi.data.fused import FusedPipeline
from fastequi.data.given import usable_threads
from fastequi.data.views.parameters import crop_params, view_params
from fastequi.functional import backend
from fastequi.philox import Draws
from fastequi.versions import version_of

logger = logging.getLogger(__name__)

Views = Literal["dali", "fused"]

_PHOTOS = Path(__file__).parent / "photos"
_MOST = 64  # samples of a batch that is measured
_SAMPLES, _WARM = 7, 3  # batches


def chosen(cfg: DataConfig, device: torch.device) -> Views:
    """What `cfg.views` means on a device.

    On a GPU auto is measured, once for a recipe; images whose channels are kept are DALI's there.
    """
    if cfg.views != "auto":
        return cfg.views
    way = backend(device)[0]
    if device.type == "cpu":
        return "fused" if way == "native" else "dali"
    return fastest_views(cfg, device) if way == "triton" and cfg.is_rgb else "dali"


def about(views: str, device: torch.device) -> str:
    """What makes the views of a run, as text."""
    if views == "dali":
        return "views by DALI's operators (data.views=dali)"
    by = {"native": "C", "triton": "Triton", "torch": "PyTorch"}[backend(device)[0]]
    return f"views in one pass each, by {by} (data.views=fused)"


def fastest_views(cfg: DataConfig, device: torch.device) -> Views:
    """The faster way for the views of RGB images, measured or read; DALI's where that fails."""
    samples = max(min(cfg.batch_size, _MOST) // cfg.samples_per_decode, 1) * cfg.samples_per_decode
    shape = cfg.image_size, cfg.source_size, cfg.local_crops, cfg.local_crop_size, cfg.shared_crop
    augmented = cfg.a1, cfg.a2, cfg.a3 if cfg.local_crops else None, cfg.samples_per_decode
    digest = hashlib.sha256(repr((shape, augmented)).encode()).hexdigest()[:8]
    key = f"{cfg.source_size} and {cfg.image_size} px, {cfg.local_crops} of {cfg.local_crop_size}"
    key += f" px, {samples} samples, {digest}"
    versions = "-".join(f"{n}{version_of(n)}" for n in ("torch", "nvidia-dali", "fastequi"))
    measured = replace(cfg, batch_size=samples)
    try:
        found = choices.fastest(
            *("views", key, ("dali", "fused"), device, versions),
            lambda: _times(measured, samples, device),
        )
    except Exception as error:  # what cannot be measured must not end a run that DALI can make
        logger.warning("data.views=auto is dali, as both could not be measured: %s", error)
        return "dali"
    return "fused" if found == "fused" else "dali"


def _times(cfg: DataConfig, samples: int, device: torch.device) -> dict[str, float]:
    """Median seconds of a batch of either way, in turns."""
    decodes = samples // cfg.samples_per_decode
    threads = usable_threads(cfg.num_threads)
    feeding, drawing = _draws(cfg, decodes), _draws(cfg, decodes)
    by_dali = ViewPipeline(cfg, decodes, lambda: feed_of(cfg, *feeding()), device, threads)
    fused = FusedPipeline(cfg, decodes, drawing, device, threads)
    ways: dict[str, Callable[[], Decoded]] = {"dali": by_dali.run, "fused": fused.run}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(_SAMPLES + _WARM):
        for name, run in ways.items():
            choices.wait(device)
            start = time.perf_counter()
            run()
            choices.wait(device)
            if round_ >= _WARM:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def _draws(cfg: DataConfig, decodes: int) -> Callable[[], Drawn]:
    """Draws batch after batch of the packaged photographs, the same for both."""
    photos = sorted(_PHOTOS.glob("*.jpg"))
    files = [str(photos[i % len(photos)]) for i in range(decodes)]
    sides = {file: Image.open(file).size[::-1] for file in set(files)}
    sizes = np.array([sides[file] for file in files]).repeat(cfg.samples_per_decode, 0)
    batches = iter(range(1 << 30))

    def draw() -> Drawn:
        draws = Draws.of(0, next(batches), np.arange(len(sizes)))
        v1, u = view_params(cfg, draws, sizes)
        return Drawn(files, v1, u, crop_params(cfg, draws, sizes, views=(v1, u)))

    return draw
