"""Homographies: applied to points and images, drawn, and fitted to matches.

A homography is [..., 3, 3] and takes (x, y, 1) of one image to w·(x', y', 1) of another. Points are
in pixels of an image, x to the right, y down, (0, 0) its upper left corner: the middle of the first
pixel is (0.5, 0.5).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_REFITS = 10  # at most


def moved(points: Tensor, homography: Tensor) -> Tensor:
    """Points [..., P, 2] by homographies [..., 3, 3]; NaN beyond the horizon."""
    x = F.pad(points, (0, 1), value=1.0) @ homography.mT
    w = x[..., 2:]
    return torch.where(w > 0, x[..., :2] / w, torch.nan)


def corners(height: int, width: int) -> Tensor:
    """[4, 2] float64 of an image: upper left, upper right, lower right, lower left."""
    h, w = float(height), float(width)
    return torch.tensor([[0, 0], [w, 0], [w, h], [0, h]], dtype=torch.float64)


def token_centres(grid: tuple[int, int], patch: int) -> Tensor:
    """[h·w, 2] float64 of a grid's tokens, row by row."""
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) * patch for n in grid]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def warped(images: Tensor, homography: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies at each pixel's place: bilinear, borders reflected.

    Args:
        images: [B, 3, H, W] floats.
        homography: [B, 3, 3], from pixels of the result to pixels of the images.
        size: (H, W) of the result.
    """
    height, width = images.shape[2:]
    at = moved(token_centres(size, 1).to(homography), homography).to(images)
    at = 2 * at / at.new_tensor([width, height]) - 1
    at = at.nan_to_num(2.0).unflatten(1, size)
    return F.grid_sample(images, at, padding_mode="reflection", align_corners=False)


def fitted(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """The homographies [..., 3, 3] that take points nearest to others, least squares of the direct
    linear transform on normalised points (Hartley and Zisserman, algorithm 4.2).

    Args:
        source, target: [..., P, 2] matches, P >= 4.
        weights: [..., P] of their squares; 0 leaves a match out.
    """
    source, target = source.double(), target.double()
    w = torch.ones_like(source[..., 0]) if weights is None else weights.double()
    (a, to_a), (b, to_b) = _centred(source, w), _centred(target, w)
    (x, y), (u, v) = a.unbind(-1), b.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = torch.cat([
        torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], -1),
        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], -1),
    ], -2) * torch.cat([w, w], -1).sqrt()[..., None]  # fmt: skip
    _, vectors = torch.linalg.eigh(rows.mT @ rows)
    middle = vectors[..., 0].unflatten(-1, (3, 3))
    found = torch.linalg.solve(to_b, middle @ to_a)
    return found / _signed(found, source)


def _signed(homography: Tensor, points: Tensor) -> Tensor:
    """The scale at which w is 1 in the middle of the points, so that it is positive there."""
    middle = F.pad(points.mean(-2), (0, 1), value=1.0)
    scale = (homography[..., 2, :] * middle).sum(-1)
    return torch.where(scale == 0, 1.0, scale)[..., None, None]


def _centred(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Points about 0 at a mean distance of √2, and the [..., 3, 3] that made them so."""
    total = weights.sum(-1, keepdim=True).clamp(min=1e-12)
    middle = (points * weights[..., None]).sum(-2) / total
    away = ((points - middle[..., None, :]).norm(dim=-1) * weights).sum(-1) / total[..., 0]
    scale = 2**0.5 / away.clamp(min=1e-12)
    matrix = torch.zeros(*scale.shape, 3, 3, dtype=points.dtype, device=points.device)
    matrix[..., 0, 0] = matrix[..., 1, 1] = scale
    matrix[..., :2, 2] = -scale[..., None] * middle
    matrix[..., 2, 2] = 1
    return (points - middle[..., None, :]) * scale[..., None, None], matrix


def through_four(source: Tensor, target: Tensor) -> Tensor:
    """The homographies [..., 3, 3] that take four points exactly to four others, without a search:
    each four are the images of the same four under a matrix that can be written down (Heckbert,
    Fundamentals of Texture Mapping and Image Warping, 1989, section 2.2.3).

    Args:
        source, target: [..., 4, 2]. Where three of them lie on a line there is no such homography,
            and what comes is not finite or takes the points elsewhere.
    """
    source, target = source.double(), target.double()
    found = _of_frame(target) @ _adjugate(_of_frame(source))
    return found / _signed(found, source)


def _of_frame(points: Tensor) -> Tensor:
    """[..., 3, 3] that take (1, 0, 0), (0, 1, 0), (0, 0, 1) and (1, 1, 1) to points [..., 4, 2]."""
    x = F.pad(points, (0, 1), value=1.0)
    base = x[..., :3, :].mT
    weights = _adjugate(base) @ x[..., 3, :, None]
    return base * weights.mT


def _adjugate(matrix: Tensor) -> Tensor:
    """The inverse of [..., 3, 3] times its determinant."""
    a, b, c = matrix.unbind(-1)
    return torch.stack([torch.linalg.cross(*pair) for pair in ((b, c), (c, a), (a, b))], -2)


def between_corners(offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 3, 3] that move the corners of an image of (H, W) pixels by offsets [N, 4, 2] exactly."""
    start = corners(*size).to(offsets.device).expand_as(offsets)
    return through_four(start, start + offsets.double())


def distances(found: Tensor, truth: Tensor, points: Tensor) -> Tensor:
    """[...] mean distance between where two homographies [..., 3, 3] take points [P, 2]; NaN where
    one of them lies beyond the horizon."""
    away = moved(points, found.double()) - moved(points, truth.double())
    return away.norm(dim=-1).mean(-1)


def ransac(
    source: Tensor,
    target: Tensor,
    within: float,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The homography of one image's matches that explains most of them (RANSAC, Fischler and
    Bolles, 1981).

    Of those through four matches, the one with the least sum of squared distances, each at most
    within² (MSAC: Torr and Zisserman, 2000), then least squares on the matches that agree with it,
    as long as that lowers the sum.

    Args:
        source, target: [P, 2] matches.
        within: pixels of the target that a match may be away to agree.
        draws: sets of four matches that are tried.
        seed: of the sets.

    Returns:
        ([3, 3] float64, [P] bool, which matches agree); NaN and none of fewer than four matches.
    """
    count = len(source)
    if count < 4:
        nothing = source.new_full((3, 3), torch.nan, dtype=torch.float64)
        return nothing, torch.zeros(count, dtype=torch.bool, device=source.device)
    source, target = source.double(), target.double()
    generator = torch.Generator().manual_seed(seed)
    picked = torch.rand(draws, count, generator=generator).topk(4, 1).indices.to(source.device)
    tried = through_four(source[picked], target[picked])
    cost = _squared(tried.float(), source.float(), target.float()).clamp(max=within**2).sum(1)
    best = tried[cost.argmin()]
    away = _squared(best, source, target)
    for _ in range(_REFITS):
        agree = away <= within**2
        if agree.sum() < 4:
            break
        again = fitted(source, target, agree)
        further = _squared(again, source, target)
        if further.clamp(max=within**2).sum() >= away.clamp(max=within**2).sum():
            break
        best, away = again, further
    return best, away <= within**2


def _squared(homography: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """[..., P] squared distances of matches under [..., 3, 3]; infinite beyond the horizon."""
    u, v, w = (homography @ F.pad(source, (0, 1), value=1.0).mT).unbind(-2)
    away = (u / w - target[:, 0]).square() + (v / w - target[:, 1]).square()
    return torch.where(w > 0, away, torch.inf)
