"""Batches for the training loop: ordered by the sampler, decoded ahead by DALI, resumable.

DALI's own threads prepare two batches ahead while the loop trains; drawing a batch's parameters
takes the caller about a millisecond. Members of tar shards, and images that DALI refuses and Pillow
decodes, are read by threads of our own (`fastequi.data.given`). `state_dict` is the position after
the last batch returned, whatever was prepared beyond it.

An image that cannot be decoded does not end a run. DALI fails on the whole batch, so the loader
finds the images that fail by themselves, with Pillow too, adds them to `quarantined` with DALI's
reason, logs them, and makes the same batch again with each replaced by the next image in the
source's order that decodes. The replacement depends on the files only, not on the images that a
process has met before: all ranks, of any number, replace alike, and so does a resumed run. The list
is part of `state_dict` all the same, so that a file that was unreadable for a while stays replaced
and stays counted. A rank knows the failures it met itself and those in the state; the run stops
once they are more than `cfg.tolerate` of the images (and more than one).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastequi.data.channel_views import ChannelPipeline
from fastequi.data.config import DataConfig
from fastequi.data.dali import Feed, ViewPipeline, feed_of
from fastequi.data.decode import require_dali
from fastequi.data.drawn import Drawn
from fastequi.data.fused import FusedPipeline
from fastequi.data.given import Given, usable_threads
from fastequi.data.pixels import Pixels, pixels_of
from fastequi.data.read_ahead import ReadAhead
from fastequi.data.sampler import Sampler, Step
from fastequi.data.sources.images import Source
from fastequi.data.sources.parts import file_of
from fastequi.data.views.batch import Batch, Masks, Overlaps
from fastequi.data.views.masks import block_masks
from fastequi.data.views.overlaps import overlaps_of
from fastequi.data.views.parameters import crop_params, view_params
from fastequi.data.views_choice import chosen
from fastequi.data.windows import members_in
from fastequi.paths import Path
from fastequi.philox import Draws

logger = logging.getLogger(__name__)

_ELSEWHERE = "on another process"


def make_loader(
    source: Source,
    cfg: DataConfig,
    path: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    state: dict[str, Any] | None = None,
    steps: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float32,
    grid: int = 0,
) -> Loader:
    """A loader of views; two with the same arguments give the same bytes.

    Args:
        source: the images.
        cfg: views and batch.
        path: the transformation path whose parameters travel with the batch.
        seed: of every random choice.
        device: "cpu" or a CUDA device, where images are augmented and batches live.
        state: a loader's `state_dict()` to continue from; None starts at epoch 0.
        steps: batches until it ends; None: endless.
        rank, world_size: this process among those that share `cfg.batch_size`.
        dtype: of v1 and the local crops.
        grid: patches along a side of v1; only needed for masks.

    Raises:
        ImportError: DALI is not installed.
        ValueError: the source is too small for a batch, `state` is another source's, or
            `cfg.shuffle=window` without tar shards.
    """
    require_dali()
    pixels = pixels_of(cfg, source)
    cfg = replace(cfg, views=chosen(cfg, torch.device(device)))
    if cfg.mask_share > 0 and grid < 1:
        raise ValueError(f"grid: masks (mask_share={cfg.mask_share}) need it >= 1, got {grid}")
    members = members_in(source) if cfg.shuffle == "window" else None
    return Loader(
        source,
        cfg,
        path,
        Sampler(len(source), cfg, seed, rank, world_size, members),
        torch.device(device),
        state,
        steps,
        dtype,
        grid,
        pixels,
    )


class Loader:
    """An iterator of :class:`fastequi.data.views.batch.Batch`; made by :func:`make_loader`.

    It is its own iterator: a second `for` continues where the first one stopped.

    Attributes:
        epoch: of the last batch returned.
        quarantined: {name: reason} of the images that failed to decode; its length is their count.
    """

    def __init__(
        self,
        source: Source,
        cfg: DataConfig,
        path: Path,
        sampler: Sampler,
        device: torch.device,
        state: dict[str, Any] | None,
        steps: int | None,
        dtype: torch.dtype,
        grid: int,
        pixels: Pixels | None = None,
    ) -> None:
        self.grid, self.pixels = grid, pixels
        self.source, self.cfg, self.path, self.device, self.dtype = source, cfg, path, device, dtype
        self.quarantined: dict[str, str] = {}
        self._bad: set[int] = set()  # their indices in the source
        self._sampler, self._left = sampler, steps
        self._threads = usable_threads(cfg.num_threads)
        self._given = Given(source, self._threads, pixels)
        self._fingerprint = source.fingerprint()
        if state is not None:
            self._go_to(state)
        self._state = sampler.state_dict()
        remote = source.remote
        self._ahead = None if remote is None else ReadAhead(source, remote, sampler)
        self._planned: deque[Step] = deque()  # fed to DALI or about to be, oldest first
        self._fed = 0  # how many of them are in DALI's graph
        self._shown: list[
            Overlaps
        ] = []  # where the views of those overlap, if the config asks for it
        self._pipeline: ViewPipeline | FusedPipeline | ChannelPipeline | None = self._build()

    @property
    def epoch(self) -> int:
        return self._state["epoch"]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._sampler)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch returned and the quarantined images, in JSON types."""
        more = {"source": self._fingerprint, "quarantined": dict(self.quarantined)}
        return {**self._state, **more}

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        if self._pipeline is None or self._left == 0:
            raise StopIteration
        repeated = False
        while True:
            try:
                views = self._pipeline.run()
                break
            except Exception as error:
                self._pipeline, self._fed = None, 0
                if not self._quarantine(error):  # a file that could not be read just then?
                    if repeated:
                        raise
                    repeated = True
                    logger.warning("a batch failed, but all its images decode; trying once more")
                self._pipeline = self._build()
        step = self._planned.popleft()
        self._fed -= 1
        shown = self._shown.pop(0).to(self._to_device) if self.cfg.overlaps else None
        self._state |= {"epoch": step.epoch, "index": step.used}
        if self._left is not None:
            self._left -= 1
        draws = self._draws(step)
        params = self.path.sample(draws, self.cfg.image_size)
        local_crops = views.local_crops
        return Batch(
            v1=views.v1.to(self.dtype),
            u=views.u,
            path=self._to_device(params),
            sample_ids=torch.from_numpy(step.sample_ids),
            epoch=step.epoch,
            local_crops=None if local_crops is None else local_crops.to(self.dtype),
            masks=self._masks(draws),
            overlaps=shown,
        )

    @property
    def left_out(self) -> set[int]:
        """Indices in the source of the images that failed to decode, here or on other processes."""
        return set(self._bad)

    def leave_out(self, places: set[int]) -> None:
        """Adds failures of other processes, which are replaced from the next planned batch on.

        Raises:
            RuntimeError: there are now more than `cfg.tolerate` of all images.
        """
        for i in sorted(places - self._bad):
            self._bad.add(i)
            self.quarantined[self.source.names[i]] = _ELSEWHERE
        self._check_count()

    def close(self) -> None:
        """Ends DALI's work and threads; the loader then returns no more batches."""
        self._pipeline = None
        self._given.close()
        if self.source.remote is not None:
            self.source.remote.ahead([])

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_to(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)
        if state.get("source", self._fingerprint) != self._fingerprint:
            raise ValueError(
                "cannot continue: the number of images is as before, but names or sizes differ"
            )
        known = state.get("quarantined", {})
        for i, name in enumerate(self.source.names if known else ()):
            if name in known:
                self._bad.add(i)
                self.quarantined[name] = known[name]

    def _build(self) -> ViewPipeline | FusedPipeline | ChannelPipeline:
        decodes, encoded = self._sampler.share, self._given.as_bytes
        common = self.cfg, decodes, self._draw, self.device, self._threads, encoded
        if self.cfg.views == "fused":
            return FusedPipeline(*common, self.pixels, self.dtype)
        if self.pixels is not None:
            return ChannelPipeline(*common, self.pixels)
        return ViewPipeline(self.cfg, decodes, self._feed, self.device, self._threads, encoded)

    def _feed(self) -> Feed:
        """DALI's next inputs; called by DALI, ahead of the batches returned."""
        return feed_of(self.cfg, *self._draw())

    def _draw(self) -> Drawn:
        """What the next batch is made of."""
        if self._fed == len(self._planned):
            self._planned.append(next(self._sampler))
            if self._ahead is not None:
                self._ahead.follow(self._planned[-1])
        step = self._planned[self._fed]
        self._fed += 1
        files = [self._readable(int(file)) for file in step.files]
        sizes = self.source.sizes[files].repeat(self.cfg.samples_per_decode, 0)
        common = self.cfg, self._draws(step), sizes, self.source.region
        v1, u = view_params(*common)
        local_crops = crop_params(*common, views=(v1, u))
        if self.cfg.overlaps:
            self._shown[self._fed - 1 :] = [overlaps_of(self.cfg, v1, u, local_crops)]
        return Drawn(self._given.files(files), v1, u, local_crops)

    def _masks(self, draws: Draws) -> Masks | None:
        cfg = self.cfg
        if not cfg.mask_share:
            return None
        views = [
            block_masks(draws, self.grid, cfg.mask_share, cfg.mask_ratio, view)
            for view in ("v1", "u")
        ]
        return Masks.of(torch.from_numpy(np.stack(views))).to(self._to_device)

    def _draws(self, step: Step) -> Draws:
        return Draws.of(self._sampler.seed, step.epoch, step.sample_ids)

    def images_of(self, sample_ids: Tensor) -> Tensor:
        """[N] int64 on the CPU: indices in the source of the images that samples show, which is the
        next one in place of an image that cannot be decoded."""
        files = (sample_ids.cpu() // self.cfg.samples_per_file).tolist()
        return torch.tensor([self._readable(file) for file in files], dtype=torch.int64)

    def photographs_of(self, sample_ids: Tensor) -> Tensor:
        """The same, but of pages of one file the first: they are alike, as windows of one
        photograph are, and no draws of their own."""
        images = self.images_of(sample_ids)
        return images if self._first is None else self._first[images]

    @cached_property
    def _first(self) -> Tensor | None:
        """[n] of every image the first one that is of its file; None where all are files."""
        if not self.source.may_have_pages:
            return None
        seen: dict[str, int] = {}
        names = map(file_of, self.source.names)
        return torch.tensor([seen.setdefault(name, i) for i, name in enumerate(names)])

    def _readable(self, file: int) -> int:
        while file in self._bad:
            file = (file + 1) % len(self.source)
        return file

    def _quarantine(self, error: Exception) -> bool:
        """Whether an image of the planned batches fails to decode; finds all such of one batch."""
        found: dict[int, str] = {}
        changed = False
        for step in self._planned:
            files = list(dict.fromkeys(self._readable(int(file)) for file in step.files))
            found, changed = self._given.examine(files, self.device)
            if found or changed:
                break
        remote, paths = self.source.remote, self.source.paths
        if remote is not None and remote.drop(paths[i] for i in found):
            return True
        lost = self._of_lost_shards(set(found))
        for i in found.keys() - lost.keys():
            told = self.source.names[i], found[i]
            logger.warning("%s cannot be decoded and is left out from now on (%s)", *told)
        found |= lost
        self._bad |= set(found)
        self.quarantined |= {self.source.names[i]: reason for i, reason in found.items()}
        if found:
            self._check_count(error)
        return bool(found) or changed

    def _of_lost_shards(self, failed: set[int]) -> dict[int, str]:
        """{place: reason} of all images in remote shards that are gone or changed; they are left
        out together, since each of them would fail when its turn comes."""
        shards = self.source.remote
        if shards is None or not failed:
            return {}
        paths = self.source.paths
        shards.recheck(paths[i] for i in failed)
        if not any(shards.why_lost(paths[i]) for i in failed):
            return {}
        each = enumerate(map(shards.why_lost, paths))
        found = {i: reason for i, reason in each if reason and i not in self._bad}
        logger.warning("%d images in lost shards are left out from now on", len(found))
        return found

    def _check_count(self, error: Exception | None = None) -> None:
        count, total = len(self.quarantined), len(self.source)
        tolerance = replace(self.source.tolerance, share=self.cfg.tolerate)
        if count == total or count > tolerance.allowed(total):
            named = ", ".join(list(self.quarantined)[:10])
            reasons = Counter(self.quarantined.values())
            others = reasons.pop(_ELSEWHERE, 0)  # says what this one does not
            reason, many = (reasons or Counter({_ELSEWHERE: others})).most_common(1)[0]
            raise RuntimeError(
                f"{count} of {total} images cannot be decoded, more than {tolerance}: "
                f"{named}; the reason of {many}: {reason}"
            ) from error

    def _to_device(self, params: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return params.pin_memory().to(self.device, non_blocking=True)
        return params
