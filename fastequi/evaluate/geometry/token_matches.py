"""Homographies from tokens without training: mutual nearest neighbours, and a fit to them.

A match is a pair of tokens of two images, each of which is the most similar one to the other by
cosine. Two fits stand side by side: least squares on the tokens' centres, which takes every match
at its word; and RANSAC on refined places, which leaves out matches that disagree. A match is
refined within its patch: the place is the mean of the 3x3 centres around it, weighed by a softmax
of their cosines / `TEMPERATURE`. Beyond the border of a map lie its own tokens, reflected, so that
a match there moves along the border alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.geometry.projective import corners, fitted, moved, ransac, token_centres

TEMPERATURE = 0.05
WITHIN = 1.0  # patches that a match may be away from RANSAC's homography
FARTHEST = 2.0  # longer sides of an image that a homography may move its corners by


@dataclass(frozen=True)
class Matches:
    """P matches between two images, in pixels, float64 on the CPU.

    Attributes:
        source: [P, 2] centres of tokens of the one.
        target: [P, 2] centres of their matches in the other.
        refined: [P, 2] the same, within the patch.
        patch: pixels from a token to the next.
    """

    source: Tensor
    target: Tensor
    refined: Tensor
    patch: int


def mutual_matches(source: Tensor, target: Tensor, patch: int) -> list[Matches]:
    """The matches of each of B pairs of maps, in the order of the source's tokens.

    Args:
        source, target: [B, h, w, D], of any two grids.
        patch: pixels from a token to the next.

    Raises:
        ValueError: a grid has fewer than two tokens along a side.
    """
    for name, grid in (("source", source.shape[1:3]), ("target", target.shape[1:3])):
        if min(grid) < 2:
            raise ValueError(f"{name}: expected 2x2 tokens or more, got {grid[0]}x{grid[1]}")
    a, b = (F.normalize(x.float().flatten(1, 2), dim=-1) for x in (source, target))
    places = [token_centres((x.shape[1], x.shape[2]), patch) for x in (source, target)]
    return [_matches(x @ y.mT, target.shape[1:3], places, patch) for x, y in zip(a, b, strict=True)]


def _matches(cosine: Tensor, grid: torch.Size, places: list[Tensor], patch: int) -> Matches:
    """Of cosines [P, Q] between tokens at places [P, 2] and those of a grid, at [Q, 2]."""
    forth, back = cosine.argmax(1), cosine.argmax(0)
    own = torch.arange(len(cosine), device=cosine.device)
    mutual = (back[forth] == own).nonzero()[:, 0]
    at = forth[mutual]
    shift = _shift(cosine[mutual].unflatten(1, grid), at).cpu()
    source, target = places[0][mutual.cpu()], places[1][at.cpu()]
    return Matches(source, target, target + shift * patch, patch)


def _shift(cosine: Tensor, at: Tensor) -> Tensor:
    """[M, 2] float64, in tokens along x and y, of maps of cosines [M, h, w] with matches at [M]."""
    width = cosine.shape[2]
    around = F.pad(cosine[None], (1, 1, 1, 1), mode="reflect")[0]
    steps = torch.arange(3, device=at.device)
    rows, columns = at[:, None] // width + steps, at[:, None] % width + steps
    each = torch.arange(len(at), device=at.device)[:, None, None]
    near = around[each, rows[:, :, None], columns[:, None, :]]
    weight = (near.double() / TEMPERATURE).flatten(1).softmax(1).view_as(near)
    along = torch.stack([weight.sum(1), weight.sum(2)], 1)  # [M, 2, 3], of x and of y
    return (along * (steps - 1)).sum(2)


def least_squares(matches: Matches) -> Tensor:
    """[3, 3] fitted to the centres of all matches; NaN of fewer than four."""
    if len(matches.source) < 4:
        return torch.full((3, 3), torch.nan, dtype=torch.float64)
    return fitted(matches.source, matches.target)


def robust(matches: Matches) -> Tensor:
    """[3, 3] by RANSAC on the refined matches; NaN of fewer than four."""
    return ransac(matches.source, matches.refined, WITHIN * matches.patch)[0]


METHODS: dict[str, Callable[[Matches], Tensor]] = {
    "RANSAC": robust,
    "least squares": least_squares,
}


def believed(found: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Homographies [N, 3, 3], with "no motion" in the place of those that cannot be: there were too
    few matches, or a corner of the image of height x width pixels moves beyond the horizon or by
    more than FARTHEST longer sides.

    Returns:
        ([N, 3, 3], [N] bool, which were replaced).
    """
    start = corners(height, width)
    far = (moved(start, found) - start).norm(dim=-1).amax(-1)
    lost = ~(far <= FARTHEST * max(height, width))  # NaN is lost
    return torch.where(lost[:, None, None], torch.eye(3, dtype=found.dtype), found), lost
