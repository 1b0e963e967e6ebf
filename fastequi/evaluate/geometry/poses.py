"""`fastequi eval propagate --data JHMDB`: joints of people, carried from the first frame.

Labels and figures are those of UVC's evaluation (Li et al., NeurIPS 2019; Jabri et al., 2020):
frames become squares of 320 px, a joint is a Gaussian of half a token about the token that it lies
in, and what is no joint is one more label. Labels are carried as masks are (`propagate.py`, with
DINO's constants). A joint is found at the mean place of the three tokens where its label is
largest, weighted by it. PCK@a is the share of joints found within a · 0.6 · the diagonal of the box
around the person's joints, for each of the 15 joints over all frames but the first, then the mean
of these. What differs: places are tokens' middles, not their upper left corners.

A joint whose label is lost is not judged, as in UVC's evaluation; how many, the table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.figures import Figure, Measure, table
from fastequi.evaluate.geometry.frame import Found, Say
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.jhmdb import JOINTS, PoseClip, open_poses
from fastequi.evaluate.geometry.label_propagation import DINO, Propagation
from fastequi.evaluate.geometry.projective import token_centres
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.sides import expect_side
from fastequi.evaluate.geometry.video_frames import Judge, judged_clips, maps_of

SIDE = 320
WITHIN = (0.1, 0.2)
_BOX = 0.6
_SIGMA = 0.5  # tokens
_REACH = 2  # tokens that a joint's label has on each side
_TOKENS = 3


def _of_sums(sums: Tensor) -> Tensor:
    """Of [..., 4 · 15] to [..., 3]: hits within each of WITHIN, joints judged, joints in all."""
    *hits, judged, there = sums.unflatten(-1, (len(WITHIN) + 2, JOINTS)).unbind(-2)
    lost = 1 - judged.sum(-1) / there.sum(-1)
    return torch.stack([*((each / judged).nanmean(-1) for each in hits), lost], -1)


MEASURE = Measure(
    (*(Figure(f"PCK@{w:g}") for w in WITHIN), Figure("joints lost", "lower")), _of_sums
)


def evaluate_poses(
    root: Path,
    patterns: Patterns,
    side: int,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table of PCK over all clips.

    Args:
        root, patterns: see `jhmdb.open_poses`.
        side: of the squares that encoders see, pixels.
    """
    for each in grids:
        expect_side(side, each)
    read = Reading.of(encoders)
    clips = open_poses(root, patterns, read)

    def judge_of(clip: PoseClip) -> Judge:
        return lambda each: {
            name: judged(clip.joints, found)
            for name, found in tracked(each, clip, side, read).items()
        }

    rows = judged_clips(clips, grids, judge_of, say)
    frames = sum(len(clip.frames) for clip in clips)
    about = {
        "data": str(root),
        "clips": [clip.name for clip in clips],
        "frames": frames,
        "side": side,
        "propagation": DINO,
    }
    split = "split 1" if (root / "splits").is_dir() else "no splits/, so of all videos"
    remarks = [f"{frames} frames, {split}; the first frame of each clip is not judged"]
    return Found({"propagate": table(MEASURE, rows, unit="clips")}, about, remarks)


def tracked(grids: Grids, clip: PoseClip, side: int, read: Reading) -> dict[str, Tensor]:
    """[T, 15, 2] places in the files' pixels, NaN where a joint is lost, by name of the features.

    Args:
        grids: what gives tokens.
        clip: the video, of whose joints the first frame's alone are seen.
        side: of the squares that encoders see, pixels.
        read: how frames are read.
    """
    patch = grids.patch_size
    grid = side // patch
    to_tokens = torch.tensor([grid / clip.size[1], grid / clip.size[0]], dtype=torch.float64)
    maps = maps_of(grids, clip.frames, (grid * patch, grid * patch), read)
    labels = joint_labels(clip.joints[0] * to_tokens, grid)
    started = next(maps)
    propagations = {name: Propagation(started[name], labels) for name in grids.names}
    found = {name: [places_of(labels)] for name in grids.names}
    for each in maps:
        for name, propagation in propagations.items():
            found[name].append(places_of(propagation(each[name]).cpu()))
    return {name: torch.stack(places) / to_tokens for name, places in found.items()}


def joint_labels(joints: Tensor, grid: int) -> Tensor:
    """[1 + 15, grid, grid] float32: what is no joint, and each joint.

    Args:
        joints: [15, 2] places (x, y) in tokens.
        grid: tokens a side.
    """
    axis = torch.arange(grid, dtype=torch.float64)
    dx, dy = (axis - joints.floor()[:, i : i + 1] for i in (0, 1))
    x, y = (
        torch.where(d.abs() <= _REACH, (-d.square() / (2 * _SIGMA**2)).exp(), 0) for d in (dx, dy)
    )
    each = y[:, :, None] * x[:, None]
    rest = (each.sum(0, keepdim=True) == 0).double()
    return torch.cat([rest, each]).float()


def places_of(labels: Tensor) -> Tensor:
    """[15, 2] float64 places (x, y) in tokens, of labels [1 + 15, grid, grid]; NaN of lost ones."""
    grid = labels.shape[1], labels.shape[2]
    values, tokens = labels[1:].flatten(1).double().topk(min(_TOKENS, grid[0] * grid[1]))
    weights = values / values.sum(1, keepdim=True)
    return (token_centres(grid, 1)[tokens] * weights[..., None]).sum(1)


def judged(truth: Tensor, found: Tensor) -> Tensor:
    """[4 · 15] sums of a clip as MEASURE takes them, of places [T, 15, 2]."""
    there = ~found.isnan().any(-1)
    low = truth.where(there[..., None], torch.inf).amin(1)
    high = truth.where(there[..., None], -torch.inf).amax(1)
    reach = _BOX * (high - low).norm(dim=-1)[:, None]
    away = (found - truth).norm(dim=-1)
    hits = [(away <= w * reach)[1:].sum(0) for w in WITHIN]
    count = torch.full((JOINTS,), len(truth) - 1)
    return torch.cat([*hits, there[1:].sum(0), count]).double()
