"""`fastequi eval homography --data HPATCHES`: pairs of photographs whose homography is known.

Estimates without training, as of views that are made (`homography.py`). What is counted is
SuperPoint's quantity (DeTone et al., arXiv 1712.07629, section 7.3): the share of pairs for which
the mean distance of the four corners of the first image, moved by the estimate and by the truth, is
at most 1, 3 or 5 px. Their pixels are those of an image of 480x640; of images of other shapes, as
in LoFTR's evaluation, of one whose shorter side has 480. Encoders see images at a size of their own
(`--side`), and distances are scaled. Every sequence in the folder is used; published figures often
leave out the eight with the largest images.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.figures import Figure, Measured, means, table
from fastequi.evaluate.geometry.frame import Found, Say
from fastequi.evaluate.geometry.grids import Grids, Maps
from fastequi.evaluate.geometry.homography import NO_MOTION, PIXELS, REMARK, sums_of_errors
from fastequi.evaluate.geometry.homography_pairs import (
    HomographyPair,
    homography_pairs,
    passed_over,
)
from fastequi.evaluate.geometry.image_files import Size, fitting
from fastequi.evaluate.geometry.projective import corners, distances
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.sides import expect_side
from fastequi.evaluate.geometry.token_matches import METHODS, believed, mutual_matches
from fastequi.runtime.devices import expect_size

SHORTER_SIDE = 480  # of an image in whose pixels errors are
MEASURE = means(
    Figure("corner error, px", "lower", 1),
    *(Figure(f"within {p:g} px") for p in PIXELS),
    Figure("no fit", "lower"),
)


def evaluate_sequences(
    folder: Path,
    side: int | None,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """Tables of every method, over all pairs, and over those of viewpoint and of illumination.

    Args:
        folder: see `homography_pairs.py`.
        side: shorter side of the images that encoders see, in pixels, rounded to a multiple of the
            patch size; None: each encoder's own.
    """
    for each in grids:
        shorter = side or each.image_size
        expect_side(shorter, each, patches=2)
        expect_size("--side", shorter, partial(_bytes_of_cosines, each.patch_size), each.device)
    read = Reading.of(encoders)
    pairs = homography_pairs(folder, read)
    names = sorted({pair.sequence for pair in pairs})
    sequence = torch.tensor([names.index(pair.sequence) for pair in pairs])
    parts = {"": torch.arange(len(pairs))}
    for part in sorted({pair.part for pair in pairs} - {""}):
        parts[f", {part}"] = torch.tensor([i for i, p in enumerate(pairs) if p.part == part])
    still = torch.eye(3, dtype=torch.float64).expand(len(pairs), 3, 3)
    rows = {method: [Measured(NO_MOTION, judged(pairs, still))] for method in METHODS}
    for each in grids:
        for name, found in estimates(each, pairs, side or each.image_size, read, say).items():
            for method, homographies in found.items():
                rows[method].append(Measured(each.row(name), judged(pairs, homographies)))
    tables = {
        f"{method}{part}": table(
            MEASURE, [Measured(row.row, row.sums[chosen]) for row in found], sequence[chosen]
        )
        for method, found in rows.items()
        for part, chosen in parts.items()
        if not part or len(parts) > 2
    }
    others = passed_over(folder)
    remarks = [REMARK, *([f"not used: {', '.join(others)}"] if others else [])]
    about = {
        "data": str(folder),
        "sequences": len(names),
        "pairs": len(pairs),
        "side": side,
        "errors_at_shorter_side": SHORTER_SIDE,
        "not_used": others,
    }
    return Found(tables, about, remarks)


def estimates(
    grids: Grids, pairs: list[HomographyPair], side: int, read: Reading, say: Say
) -> dict[str, dict[str, Tensor]]:
    """[N, 3, 3] of each kind of features and method, between places in the files' pixels."""
    found: dict[str, dict[str, list[Tensor]]] = {
        name: {method: [] for method in METHODS} for name in grids.names
    }
    patch = grids.patch_size
    first: Path | None = None
    maps: Maps = {}
    for number, pair in enumerate(pairs):
        say(f"{grids.encoder or grids.names[0]}: pair {number + 1} of {len(pairs)}")
        sizes = [fitting(size, side, patch) for size in pair.sizes]
        if pair.first != first:
            first, maps = pair.first, grids(read.at(pair.first, sizes[0])[None])
        others = grids(read.at(pair.second, sizes[1])[None])
        to_file = [scaling(small, size) for small, size in zip(sizes, pair.sizes, strict=True)]
        for name, by_method in found.items():
            [matches] = mutual_matches(maps[name], others[name], patch)
            for method, each in by_method.items():
                seen = METHODS[method](matches)
                each.append(to_file[1] @ seen @ torch.linalg.inv(to_file[0]))
    return {
        name: {method: torch.stack(each) for method, each in by_method.items()}
        for name, by_method in found.items()
    }


def _bytes_of_cosines(patch: int, side: float) -> float:
    """Of every token of a square and every one of another."""
    return 4 * (side / patch) ** 4


def scaling(start: Size, end: Size) -> Tensor:
    """[3, 3] between places in an image and in the same image at another size, exactly."""
    return torch.diag(
        torch.tensor([end[1] / start[1], end[0] / start[0], 1.0], dtype=torch.float64)
    )


def judged(pairs: list[HomographyPair], found: Tensor) -> Tensor:
    """Sums of estimates [N, 3, 3]: the corners are the middles of the corner pixels, as published,
    and their places in the second image are at its size."""
    errors, lost = [], []
    for pair, each in zip(pairs, found, strict=True):
        (height, width), second = pair.sizes
        estimate, without = believed(each[None], height, width)
        points = corners(height - 1, width - 1) + 0.5
        away = distances(estimate, pair.homography[None], points)
        errors.append(away * SHORTER_SIDE / min(second))
        lost.append(without)
    return sums_of_errors(torch.cat(errors), torch.cat(lost))
