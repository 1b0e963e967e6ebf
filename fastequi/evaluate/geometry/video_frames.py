"""Clips of videos: frames as encoders see them, maps of tokens, a row for each encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.geometry.figures import Measured
from fastequi.evaluate.geometry.frame import Say
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.reading import Reading


def frame_of(file: Path, size: tuple[int, int], read: Reading) -> Tensor:
    """[3, H, W] uint8 RGB, or [C, H, W] float32 in 0..1, resized bilinearly, without antialiasing.

    Raises:
        ValueError: it cannot be decoded; names it.
    """
    frame = F.interpolate(read(file)[None].float(), size, mode="bilinear")[0]
    return frame.round().byte() if read.is_rgb else frame


class Named(Protocol):
    """A clip, as far as it is named here."""

    @property
    def name(self) -> str: ...


Clip = TypeVar("Clip", bound=Named)
Judge = Callable[[Grids], dict[str, Tensor]]
"""Sums [S] of one clip by the name of the features."""


def judged_clips(
    clips: Sequence[Clip], grids: Sequence[Grids], judge_of: Callable[[Clip], Judge], say: Say
) -> list[Measured]:
    """A row for each kind of features, of all clips.

    Args:
        clips: one after the other.
        grids: what gives tokens, baselines first.
        judge_of: reads a clip's truth, once for all grids.
        say: told how far it is.
    """
    sums: dict[tuple[int, str], list[Tensor]] = {}
    for number, clip in enumerate(clips, 1):
        judge = judge_of(clip)
        for k, each in enumerate(grids):
            say(f"clip {number} of {len(clips)}, {clip.name}: {each.encoder or each.names[0]}")
            for name, found in judge(each).items():
                sums.setdefault((k, name), []).append(found)
    return [Measured(grids[k].row(name), torch.stack(each)) for (k, name), each in sums.items()]


def maps_of(
    grids: Grids, frames: Sequence[Path], size: tuple[int, int], read: Reading
) -> Iterator[dict[str, Tensor]]:
    """Tokens [h, w, D] of frame after frame at (H, W) pixels, by the name of the features."""
    for file in frames:
        maps = grids(frame_of(file, size, read)[None])
        yield {name: tokens[0] for name, tokens in maps.items()}
