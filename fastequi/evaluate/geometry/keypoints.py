"""`fastequi eval match --data SPAIR-71K`: keypoints of one image found in another of its kind.

The source's token at a keypoint, sampled bilinearly between the centres of tokens, looks for its
nearest neighbour by cosine among the target's tokens; the point that is found is that token's
centre. Both images are squares to the encoder, each axis resized alone; distances are in pixels of
the target's file. A keypoint is correct within .1 or .05 of the longer side of the target's
bounding box (PCK), as in the official code (juhongm999/hpf, `model/evaluation.py`). "Per image" is
the mean over pairs of the share of correct keypoints, "per point" the share over all keypoints:
papers report either. Intervals are over source images.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.figures import (
    Figure,
    Measure,
    Measured,
    means,
    sums_of_values,
    table,
)
from fastequi.evaluate.geometry.frame import Found, Say
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.image_files import Size, size_of
from fastequi.evaluate.geometry.projective import token_centres
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.sides import expect_side
from fastequi.evaluate.geometry.spair import KeypointPair, keypoint_pairs

WITHIN = (0.1, 0.05)  # of the longer side of the target's bounding box
_BATCH = 32


def _of_sums(sums: Tensor) -> Tensor:
    """Of [..., shares 2, pairs 1, correct 2, keypoints 1]."""
    return torch.cat([sums[..., :2] / sums[..., 2:3], sums[..., 3:5] / sums[..., 5:6]], -1)


MEASURE = Measure(
    tuple(Figure(f"PCK@{a:g} {of}") for of in ("per image", "per point") for a in WITHIN), _of_sums
)


def evaluate_keypoints(
    folder: Path,
    side: int | None,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table of PCK, and one of PCK@.1 per image by category.

    Args:
        folder: SPair-71k; see `spair.py`.
        side: of the squares that encoders see, in pixels, a multiple of the patch size; None: each
            encoder's own.
    """
    for each in grids:
        if side is not None and side % each.patch_size:
            raise ValueError(
                f"--side: expected a multiple of the patch size {each.patch_size}, got {side}"
            )
        expect_side(side or each.image_size, each, images=_BATCH)
    read = Reading.of(encoders)
    pairs = keypoint_pairs(folder, read)
    categories = sorted({pair.category for pair in pairs})
    of_category = torch.tensor([categories.index(pair.category) for pair in pairs])
    sources = sorted({pair.source for pair in pairs})
    source = torch.tensor([sources.index(pair.source) for pair in pairs])
    rows, by_category = [], []
    for each in grids:
        for name, correct in _correct(each, pairs, side or each.image_size, read, say).items():
            row = each.row(name)
            rows.append(Measured(row, sums_of_pairs(correct)))
            share = torch.stack([hits[:, 0].double().mean() for hits in correct])
            values = torch.full((len(pairs), len(categories)), torch.nan, dtype=torch.float64)
            values[torch.arange(len(pairs)), of_category] = share
            by_category.append(Measured(row, sums_of_values(values)))
    measure = means(*(Figure(category) for category in categories))
    tables = {
        "keypoints": table(MEASURE, rows, source),
        f"PCK@{WITHIN[0]:g} per image": table(measure, by_category, source),
    }
    about = {
        "data": str(folder),
        "pairs": len(pairs),
        "keypoints": sum(len(pair.points) for pair in pairs),
        "side": side,
        "within_boxes": WITHIN,
    }
    return Found(tables, about)


def sums_of_pairs(correct: list[Tensor]) -> Tensor:
    """[N, 6] of the correct keypoints [K, 2] bool of every pair, within each of WITHIN."""
    sums = []
    for hits in correct:
        count = hits.double().sum(0)
        one, keypoints = count.new_ones(1), count.new_full((1,), len(hits))
        sums.append(torch.cat([count / keypoints, one, count, keypoints]))
    return torch.stack(sums)


def found_points(
    source: Tensor, target: Tensor, points: Tensor, sizes: tuple[Size, Size]
) -> Tensor:
    """Where keypoints are found in the target, [K, 2] float64 in pixels counted from 0.

    Args:
        source, target: [h, w, D] maps of whole images.
        points: [K, 2] in the source's file, in pixels counted from 0.
        sizes: of both files.
    """
    tokens = sampled(source, points + 0.5, sizes[0])
    cosine = F.normalize(tokens, dim=-1) @ F.normalize(target.flatten(0, 1), dim=-1).mT
    grid = target.shape[0], target.shape[1]
    height, width = sizes[1]
    centres = token_centres(grid, 1)[cosine.argmax(1).cpu()]
    return centres * torch.tensor([width / grid[1], height / grid[0]], dtype=torch.float64) - 0.5


def sampled(tokens: Tensor, places: Tensor, size: Size) -> Tensor:
    """[K, D] of a map [h, w, D], bilinearly between the centres of its tokens, beyond the outermost
    as there; at places [K, 2] in an image of `size`."""
    sides = places.new_tensor([size[1], size[0]])
    at = (2 * places / sides - 1).to(tokens)
    found = F.grid_sample(
        tokens.movedim(-1, 0)[None], at[None, None], padding_mode="border", align_corners=False
    )
    return found[0, :, 0].mT


def _correct(
    grids: Grids, pairs: list[KeypointPair], side: int, read: Reading, say: Say
) -> dict[str, list[Tensor]]:
    """The correct keypoints [K, 2] of every pair, by the name of the features.

    The maps of one category at a time are in memory.
    """
    found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(pairs) for name in grids.names}
    for category in sorted({pair.category for pair in pairs}):
        say(f"{grids.encoder or grids.names[0]}: {category}")
        chosen = [i for i, pair in enumerate(pairs) if pair.category == category]
        files = sorted({file for i in chosen for file in (pairs[i].source, pairs[i].target)})
        places = {file: place for place, file in enumerate(files)}
        sizes = [size_of(file) for file in files]
        maps = _maps(grids, files, side, read)
        for i in chosen:
            pair = pairs[i]
            a, b = places[pair.source], places[pair.target]
            for name, hits in found.items():
                both = maps[name][a], maps[name][b]
                at = found_points(*both, pair.points, (sizes[a], sizes[b]))
                away = (at - pair.truth).norm(dim=1)
                hits[i] = torch.stack([away <= within * pair.box for within in WITHIN], 1)
    return found


def _maps(grids: Grids, files: list[Path], side: int, read: Reading) -> dict[str, Tensor]:
    parts = []
    for start in range(0, len(files), _BATCH):
        images = [read.at(file, (side, side)) for file in files[start : start + _BATCH]]
        parts.append(grids(torch.stack(images)))
    return {name: torch.cat([part[name] for part in parts]) for name in grids.names}
