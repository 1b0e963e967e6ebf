"""k-means: k-means++ (Arthur and Vassilvitskii, 2007), Lloyd's iterations, the best of some starts.

Distances are made for some points at a time. Nothing here draws from torch's global generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

_VALUES = 1 << 25  # distances at a time, 128 MB


def kmeans(
    points: Tensor, clusters: int, *, starts: int = 5, iterations: int = 50, seed: int = 0
) -> Tensor:
    """Centres [K, D] with the smallest sum of squared distances among some starts.

    Args:
        points: [N, D] floats, N >= K.
        clusters: K.
        starts: runs, of different centres at the beginning.
        iterations: at most, of each run; it ends where no point changes its cluster.
        seed: of the centres at the beginning.

    Raises:
        ValueError: fewer points than clusters.
    """
    if not 1 <= clusters <= len(points):
        raise ValueError(f"clusters: expected 1 .. {len(points)}, the points, got {clusters}")
    generator = torch.Generator().manual_seed(seed)
    runs = [lloyd(points, spread(points, clusters, generator), iterations) for _ in range(starts)]
    return min(runs, key=lambda run: run[1])[0]


def spread(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centres [K, D] of k-means++: each a point, drawn by its squared distance from others."""
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64)
    chosen = [int(draws[0] * len(points))]
    away = _squares(points, points[chosen[0]])
    for draw in draws[1:].tolist():
        reach = away.cumsum(0)
        last = int(torch.searchsorted(reach, reach[-1] * draw, right=True))
        chosen.append(min(last, len(points) - 1))
        away = torch.minimum(away, _squares(points, points[chosen[-1]]))
    return points[chosen]


def lloyd(points: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, float]:
    """Centres after Lloyd's iterations, and the sum of squared distances to them.

    A cluster that lost all its points starts again at the point that is farthest from its centre.
    """
    before = None
    for _ in range(iterations):
        label, away = assigned(points, centres)
        if before is not None and torch.equal(label, before):
            break
        before = label
        count = torch.bincount(label, minlength=len(centres))
        total = torch.zeros_like(centres).index_add_(0, label, points)
        centres = total / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        if len(empty):
            centres[empty] = points[away.topk(len(empty)).indices]
    return centres, float(assigned(points, centres)[1].double().sum())


def assigned(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Of every point [N, D] its nearest centre [N] and the squared distance to it [N]."""
    size = centres.square().sum(1)
    labels, away = [], []
    for part in points.split(max(1, _VALUES // len(centres))):
        least = torch.addmm(size, part, centres.T, alpha=-2).min(1)
        labels.append(least.indices)
        away.append((least.values + part.square().sum(1)).clamp(min=0))
    return torch.cat(labels), torch.cat(away)


def _squares(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).square().sum(1).double()
