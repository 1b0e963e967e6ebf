"""Pairs of views of one photograph whose exact relation is known: truth that is made.

Both views are cut from a window with a margin, so that no border is empty and gives the relation
away. Families of relations:

homography   the four corners moved by up to a quarter of the side each, in x and in y (S-COCO:
             32 of 128 px; DeTone et al., arXiv 1606.03798)
rotation, translation, se2   the project's own paths at t = 1, in the ranges of `eval equivariance`
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastequi import paths
from fastequi.config import PathConfig
from fastequi.data.sources.images import Source
from fastequi.data.views.batch import Views
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.projective import between_corners, corners, distances, warped
from fastequi.evaluate.photo_windows import windows_for
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.tasks import Task, views_for
from fastequi.functional.normalise import in_unit

FAMILIES = ("rotation", "translation", "se2", "homography")
_OFFSET = 0.25  # of a side


@dataclass(frozen=True)
class WarpedPairs:
    """N pairs on the CPU.

    Attributes:
        first, second: [N, C, S, S] float16 in 0..1.
        to_first: [N, 3, 3] float64, from pixels of the second view to those of the first.
        photographs: [N] int64, which one each pair is of.
        left_out: places of photographs that cannot be decoded, of those that were drawn.
    """

    first: Tensor
    second: Tensor
    to_first: Tensor
    photographs: Tensor
    left_out: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.first)


def warped_pairs(
    source: Source,
    encoder: Encoder,
    family: str,
    n: int,
    *,
    seed: int = 0,
    photometric: Photometric | None = None,
    known: Set[int] = frozenset(),
    ranges: PathConfig = PathConfig(),  # noqa: B008
) -> WarpedPairs:
    """Cuts them from photographs, at the size of the encoder's images.

    Args:
        source: the photographs.
        encoder: whose image size they have, on whose device they are made.
        family: of FAMILIES.
        n: how many.
        seed: of windows and relations.
        photometric: changes both views of a pair, independently; the pairs are the same with it.
        known: places of photographs that cannot be decoded, which need not be found out again.
        ranges: of rotation and translation.

    Raises:
        ValueError: no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
    size = encoder.image_size
    path = replace(ranges, family="se2" if family == "homography" else family).build()  # type: ignore[arg-type]
    views = _views(encoder, family, path)
    generator, light = (torch.Generator().manual_seed(seed) for _ in range(2))
    first, second, relations, photographs = [], [], [], []
    count = 0
    with windows_for(encoder, source, path, views, seed=seed, count=n) as loader:
        loader.leave_out(set(known))
        for batch in loader:
            windows = in_unit(batch.u)
            relation = _relation(family, path, batch.path.cpu().double(), size, generator)
            margin = (windows.shape[-1] - size) / 2
            in_window = torch.eye(3, dtype=torch.float64)
            in_window[:2, 2] = margin
            ones = in_window.expand(len(windows), 3, 3)
            both = [
                warped(windows, h.to(windows.device), (size, size))
                for h in (ones, in_window @ relation)
            ]
            if photometric is not None:
                both = [photometric.change(x.clamp(0, 1), light) for x in both]
            first.append(both[0].half().cpu())
            second.append(both[1].half().cpu())
            relations.append(relation)
            photographs.append(loader.photographs_of(batch.sample_ids))
            count += len(windows)
            if count >= n:
                break
        left_out = frozenset(loader.left_out)
    views_1, views_2, to_first, of = (
        torch.cat(part)[:n].cpu() for part in (first, second, relations, photographs)
    )
    return WarpedPairs(views_1, views_2, to_first, of, left_out)


def _views(encoder: Encoder, family: str, path: paths.Path) -> Views:
    if family != "homography":
        return views_for(encoder, {family: Task(path, path)})
    views = views_for(encoder, {})
    margin = math.ceil(_OFFSET * encoder.image_size)
    return replace(views, source_size=encoder.image_size + 2 * margin)


def _relation(
    family: str, path: paths.Path, params: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """[B, 3, 3], from pixels of the second view to those of the first."""
    if family == "homography":
        offsets = torch.rand(len(params), 4, 2, generator=generator, dtype=torch.float64)
        return between_corners((2 * offsets - 1) * _OFFSET * size, (size, size))
    theta = path.at(params, (1.0,), (size, size)).theta
    assert theta is not None
    return of_theta(theta[:, 0].double(), size)


def of_theta(theta: Tensor, size: int) -> Tensor:
    """Homographies [B, 3, 3] between pixels of squares, of [B, 2, 3] as `affine_grid` takes them:
    from the result's places in -1..1 to the input's."""
    full = torch.eye(3, dtype=theta.dtype).repeat(len(theta), 1, 1)
    full[:, :2] = theta
    to_unit = torch.tensor([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]], dtype=theta.dtype)
    return torch.linalg.inv(to_unit) @ full @ to_unit


def corner_error(found: Tensor, truth: Tensor, size: int) -> Tensor:
    """[N] mean distance of the four corners, where a homography moves them and where they go, as
    pixels of a 128 px image (S-COCO's)."""
    return distances(found, truth, corners(size, size)) * 128 / size
