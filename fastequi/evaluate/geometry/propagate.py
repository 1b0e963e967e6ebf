"""`fastequi eval propagate`: how well do tokens carry the labels of a video's first frame?

DAVIS 2017's semi-supervised task without training, as DINO's eval_video_segmentation.py does it:
masks of the first frame are given, and carried to the others by the similarity of tokens
(`label_propagation.py`, which states its constants). J, F and their statistics are those of the
official davis2017-evaluation (`region_contour.py`), over objects; the first and the last frame of a
clip are not judged. Intervals are over clips.

Frames: the shorter side becomes 480 px, the longer the largest multiple of 64 that keeps the shape
(of the patch size, where that does not divide 64, and then the shorter side too), bilinear without
antialiasing. Ids become one label each for a token, by nearest neighbour. Labels are upsampled to
pixels bilinearly, each is stretched to 0..1 over the frame, the largest wins, and the result is
brought to the file's size by nearest neighbour. What differs from DINO's script: images are
normalised by the encoder's own mean and deviation, and Pillow decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.davis import Clip, Ids, ids_of, open_clips
from fastequi.evaluate.geometry.figures import Figure, means, table
from fastequi.evaluate.geometry.frame import Found, Say
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.label_propagation import DINO, Propagation
from fastequi.evaluate.geometry.published_figures import of_davis
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.region_contour import (
    contour_accuracy,
    region_similarity,
    statistics,
)
from fastequi.evaluate.geometry.sides import expect_side
from fastequi.evaluate.geometry.video_frames import Judge, judged_clips, maps_of

SHORTER_SIDE = 480
MEASURE = means(
    Figure("J&F"),
    *(
        Figure(f"{name} {what}", "lower" if what == "decay" else "higher")
        for name in "JF"
        for what in ("mean", "recall", "decay")
    ),
)
_CPU = torch.device("cpu")
_STEP = 64  # pixels, of the longer side
_NOTE = "the first and the last frame of each clip are not judged, as by the official evaluation"


def evaluate_clips(
    root: Path,
    patterns: Patterns,
    side: int,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table of J and F over the objects of all clips.

    Args:
        root, patterns: see `davis.open_clips`.
        side: the shorter one of frames as encoders see them, pixels.
    """
    for each in grids:
        expect_side(side, each)
    read = Reading.of(encoders)
    clips = open_clips(root, patterns, read)
    late = [f"{clip.name} ({clip.others})" for clip in clips if clip.others]

    def judge_of(clip: Clip) -> Judge:
        truth = np.stack([ids_of(file) for file in clip.masks])

        def judge(each: Grids) -> dict[str, Tensor]:
            carried = segmented(each, clip, truth[0], side, read)
            return {
                name: over_objects(judged(truth[1:-1], ids[1:-1], clip.objects, each.device))
                for name, ids in carried.items()
            }

        return judge

    rows = judged_clips(clips, grids, judge_of, say)
    objects = sum(clip.objects for clip in clips)
    frames = sum(len(clip.frames) for clip in clips)
    remarks = [f"{objects} objects, {frames} frames; {_NOTE}"]
    if late:
        remarks.append(f"objects that are not in the first frame are not judged: {', '.join(late)}")
    remarks += of_davis([clip.name for clip in clips])
    about = {
        "data": str(root),
        "clips": [clip.name for clip in clips],
        "objects": objects,
        "frames": frames,
        "side": side,
        "propagation": DINO,
        "not_judged": late,
    }
    return Found({"propagate": table(MEASURE, rows, unit="clips")}, about, remarks)


def frame_size(size: tuple[int, int], side: int, patch: int) -> tuple[int, int]:
    """(H, W) of a frame of `size` as an encoder sees it; see the module."""
    step = _STEP if _STEP % patch == 0 else patch
    short = side // patch * patch
    long = max(short * max(size) // min(size) // step * step, short)
    return (long, short) if size[0] > size[1] else (short, long)


def resized_ids(ids: Ids, size: tuple[int, int]) -> Ids:
    """[H, W] by nearest neighbour."""
    image = Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.array(image)


def segmented(grids: Grids, clip: Clip, first: Ids, side: int, read: Reading) -> dict[str, Ids]:
    """[T, H, W] ids of all frames, the first as given, by the name of the features.

    Args:
        grids: what gives tokens.
        clip: the video.
        first: [H, W] ids of its first frame.
        side: the shorter one of frames as encoders see them, pixels.
        read: how frames are read.
    """
    patch = grids.patch_size
    size = frame_size(clip.size, side, patch)
    ids = torch.from_numpy(resized_ids(first, (size[0] // patch, size[1] // patch))).long()
    labels = F.one_hot(ids, clip.objects + 1).permute(2, 0, 1).float()
    maps = maps_of(grids, clip.frames, size, read)
    started = next(maps)
    propagations = {name: Propagation(started[name], labels) for name in grids.names}
    found = {name: [first] for name in grids.names}
    for each in maps:
        for name, propagation in propagations.items():
            carried = propagation(each[name])
            found[name].append(resized_ids(winners(carried, patch), clip.size))
    return {name: np.stack(frames) for name, frames in found.items()}


def winners(labels: Tensor, patch: int) -> Ids:
    """[h·patch, w·patch] the label [C, h, w] that is largest once each is stretched to 0..1.

    One that is the same everywhere, and not 0, wins: DINO's script divides 0 by 0 there, and a NaN
    is the largest to `torch.max`.
    """
    scaled = F.interpolate(labels[None], scale_factor=patch, mode="bilinear")[0]
    low, high = scaled.amin((1, 2), keepdim=True), scaled.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (scaled - low) / (high - low), torch.inf)
    return torch.where(high > 0, stretched, scaled).argmax(0).byte().cpu().numpy()


def judged(truth: Ids, found: Ids, objects: int, device: torch.device = _CPU) -> Tensor:
    """[objects, 7] float64, the figures of MEASURE, of ids [T, H, W]."""
    rows = []
    for label in range(1, objects + 1):
        masks = [torch.from_numpy(ids == label).to(device) for ids in (truth, found)]
        region, contour = (
            statistics(figure(*masks).cpu()) for figure in (region_similarity, contour_accuracy)
        )
        rows.append([(region[0] + contour[0]) / 2, *region, *contour])
    return torch.tensor(rows, dtype=torch.float64)


def over_objects(values: Tensor) -> Tensor:
    """[14] of one clip, as `figures.means` takes them: sums [7] over objects, and how many."""
    return torch.cat([values.sum(0), torch.full_like(values[0], len(values))])
