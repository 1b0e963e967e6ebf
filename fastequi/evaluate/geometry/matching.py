"""`fastequi eval match`: does a token's nearest neighbour lie where the point went?

Every token of the second view looks for its nearest neighbour by cosine among those of the first.
Its true place there is exact (`warped_pairs.py`). Recall: the share of tokens whose match lies
within 0.5, 1 or 2 patches of it, of those whose true place lies within the first view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import for_test
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.figures import Figure, Measured, means, sums_of_values, table
from fastequi.evaluate.geometry.frame import Found, Say, named, without
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.projective import moved, token_centres
from fastequi.evaluate.geometry.warped_pairs import WarpedPairs, warped_pairs
from fastequi.evaluate.photo_windows import images_for, photometric_for
from fastequi.evaluate.results import documented
from fastequi.runtime.devices import expect_memory

WITHIN = (0.5, 1.0, 2.0)  # patches
MEASURE = means(*(Figure(f"recall, {w:g} patch{'es' * (w > 1)}") for w in WITHIN))


def nearest(source: Tensor, target: Tensor) -> Tensor:
    """[B, P] int64: of tokens [B, P, D] the most similar of [B, Q, D] by cosine; the first of
    equal ones."""
    unit = (F.normalize(x.flatten(1, -2), dim=-1) for x in (source, target))
    a, b = unit
    return (a @ b.mT).argmax(-1)


def recalls(second: Tensor, first: Tensor, to_first: Tensor, patch: int) -> Tensor:
    """[B, 3] recall within WITHIN patches, NaN of a pair without a common token.

    Args:
        second, first: [B, h, w, D] maps of both views.
        to_first: [B, 3, 3] from pixels of the second view to those of the first.
        patch: pixels from a token to the next.
    """
    grid = second.shape[1], second.shape[2]
    centres = token_centres(grid, patch)
    truth = moved(centres, to_first)
    sides = truth.new_tensor([grid[1] * patch, grid[0] * patch])
    there = ((truth >= 0) & (truth <= sides)).all(-1)
    found = centres[nearest(second, first).cpu()]
    away = (found - truth).norm(dim=-1) / patch
    hits = torch.stack([(away <= w + 1e-9) & there for w in WITHIN], -1)
    count = there.sum(1, keepdim=True).double()
    return torch.where(count > 0, hits.sum(1) / count, torch.nan)


def evaluate_matches(
    data: Data | None,
    test_data: Data | None,
    families: Sequence[str],
    n: int,
    seed: int,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table for every family, clean and with photometric change, of test photographs."""
    evaluated = encoders[str(grids[-1].encoder)]
    each_pair = (
        2 * 2 * evaluated.in_chans * 2 * evaluated.image_size**2
    )  # two 16-bit images; joined once
    expect_memory("--pairs", n, each_pair, torch.device("cpu"))
    given, asked = test_data or data, images_for(evaluated)
    source = for_test(data, test_data, asked)
    tables, left_out = {}, frozenset[int]()
    for family in families:
        for name, change in (
            (family, None),
            (f"{family}, photometric", photometric_for(evaluated)),
        ):
            say(f"{name}: cutting pairs")
            pairs = warped_pairs(
                source, evaluated, family, n, seed=seed, photometric=change, known=left_out
            )
            rows: list[Measured] = []
            for each in grids:
                say(f"{name}: {each.encoder or each.names[0]}")
                rows += _rows(each, pairs)
            left_out |= pairs.left_out
            tables[name] = table(MEASURE, rows, pairs.photographs, unit="pairs")
    about = {
        **documented(given), "photographs": len(source), "pairs": n, "seed": seed,
        "within_patches": WITHIN, "left_out": named(left_out, source),
    }  # fmt: skip
    return Found(tables, about, without(left_out, source), tested=source if given else None)


def _rows(grids: Grids, pairs: WarpedPairs, batch: int = 64) -> list[Measured]:
    found: dict[str, list[Tensor]] = {name: [] for name in grids.names}
    for start in range(0, len(pairs), batch):
        part = slice(start, start + batch)
        first, second = (grids(x[part].float()) for x in (pairs.first, pairs.second))
        for name in grids.names:
            relation = pairs.to_first[part]
            found[name].append(recalls(second[name], first[name], relation, grids.patch_size))
    return [
        Measured(grids.row(name), sums_of_values(torch.cat(parts))) for name, parts in found.items()
    ]
