"""`fastequi eval homography`: do tokens say how one view of a photograph went into the other?

Pairs of views under homographies that are drawn as S-COCO draws them (`warped_pairs.py`), clean and
with photometric change. The homography between them is estimated without training, from matches of
tokens (`token_matches.py`), and by a head that is trained on pairs of training photographs
(`corner_head.py`). Each is judged by the mean distance of the four corners from their true places
(MCE), in pixels of a 128 px image. A row "no motion" says what an estimate of nothing costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.corner_head import HeadFit, MapPairs, fitted_head, predicted
from fastequi.evaluate.geometry.figures import (
    Figure,
    Measured,
    Table,
    means,
    sums_of_values,
    table,
)
from fastequi.evaluate.geometry.frame import Found, Say, named, without
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.projective import corners, moved
from fastequi.evaluate.geometry.published_figures import of_homographies
from fastequi.evaluate.geometry.token_matches import (
    FARTHEST,
    METHODS,
    TEMPERATURE,
    WITHIN,
    believed,
    mutual_matches,
)
from fastequi.evaluate.geometry.warped_pairs import WarpedPairs, corner_error, warped_pairs
from fastequi.evaluate.photo_windows import images_for, photometric_for
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.results import Row, documented
from fastequi.runtime.devices import expect_memory

PIXELS = (1.0, 3.0, 5.0)
_SHARES = tuple(Figure(f"within {p:g} px") for p in PIXELS)
_MCE = Figure("MCE, px", "lower", 2)
OF_HEAD = means(_MCE, *_SHARES)
OF_MATCHES = means(_MCE, *_SHARES, Figure("no fit", "lower"))
NO_MOTION = Row(encoder=None, features="no motion", is_baseline=True)
REMARK = (
    "no fit: fewer than four mutual matches, or a homography that cannot be; such a pair counts as "
    '"no motion"'
)
_OFFSET = 0.25  # of a side: the head's targets are in this unit
_BATCH = 64


@dataclass(frozen=True)
class Budget:
    """How many pairs, and how the head is fitted.

    Attributes:
        pairs: that are tested.
        train_pairs: that the head is fitted on; 0: there is no head.
        fit: of the head.
        seed: of windows and homographies.
    """

    pairs: int = 500
    train_pairs: int = 2000
    fit: HeadFit = HeadFit()  # noqa: RUF009
    seed: int = 0


def sums_of_errors(errors: Tensor, lost: Tensor | None = None) -> Tensor:
    """What the measures take, of corner errors [N] in pixels.

    Args:
        errors: of every pair.
        lost: [N] bool, pairs for which there was no fit; None where none is counted.
    """
    values = [errors, *(errors <= p for p in PIXELS), *([] if lost is None else [lost])]
    return sums_of_values(torch.stack([value.double() for value in values], 1))


def evaluate_homographies(
    data: Data | None,
    test_data: Data | None,
    budget: Budget,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """Tables of RANSAC, of least squares and of the head, clean and with photometric change."""
    evaluated = encoders[str(grids[-1].encoder)]
    train, test = photographs(data, test_data, images_for(evaluated))
    _expect_memory(grids, budget, evaluated.in_chans)
    tables: dict[str, Table] = {}
    left_out: tuple[set[int], set[int]] = set(), set()
    for change in (None, photometric_for(evaluated)):
        tables |= _tables(train, test, budget, grids, evaluated, change, left_out, say)
    about = {
        **documented(data),
        "photographs": {"train": len(train), "test": len(test)},
        "pairs": budget.pairs,
        "train_pairs": budget.train_pairs,
        "seed": budget.seed,
        "head": vars(budget.fit),
        "refinement_temperature": TEMPERATURE,
        "ransac_within_patches": WITHIN,
        "farthest_sides": FARTHEST,
        "left_out": {"train": named(left_out[0], train), "test": named(left_out[1], test)},
    }
    tested, fitted = (test, train) if data else (None, None)
    fitted = fitted if budget.train_pairs else None
    remarks = [
        REMARK,
        *(of_homographies(test.names) if budget.train_pairs else []),
        *without(left_out[0], train, "training"),
        *without(left_out[1], test),
    ]
    return Found(tables, about, remarks, tested=tested, fitted=fitted)


def _tables(
    train: Source,
    test: Source,
    budget: Budget,
    grids: list[Grids],
    evaluated: Encoder,
    change: Photometric | None,
    left_out: tuple[set[int], set[int]],
    say: Say,
) -> dict[str, Table]:
    """Training and test photographs that cannot be decoded are added to `left_out`."""
    suffix = "" if change is None else ", photometric"

    def pairs_of(source: Source, n: int, seed: int, known: set[int]) -> WarpedPairs:
        say(f"cutting {n:,} pairs{suffix}")
        found = warped_pairs(
            source, evaluated, "homography", n, seed=seed, photometric=change, known=known
        )
        known |= found.left_out
        return found

    tested = pairs_of(test, budget.pairs, budget.seed, left_out[1])
    fitted = None
    if budget.train_pairs:
        fitted = pairs_of(train, budget.train_pairs, budget.seed + 1, left_out[0])
    rows: dict[str, list[Measured]] = {name: [_no_motion(tested, True)] for name in METHODS}
    if fitted is not None:
        rows["head"] = [_no_motion(tested, False)]
    for each in grids:
        say(f"{each.encoder or each.names[0]}{suffix}")
        maps = maps_of(each, tested)
        for name in each.names:
            for method, sums in _by_matches(maps[name], tested, each.patch_size).items():
                rows[method].append(Measured(each.row(name), sums))
        if fitted is None:
            continue
        to_fit = maps_of(each, fitted)
        for name in each.names:
            say(f"{each.row(name).label}: the head{suffix}")
            found = _by_head(to_fit[name], fitted, maps[name], tested, each.device, budget.fit)
            rows["head"].append(Measured(each.row(name), found))
    measures = {name: OF_HEAD if name == "head" else OF_MATCHES for name in rows}
    return {
        f"{name}{suffix}": table(measures[name], found, tested.photographs, unit="pairs")
        for name, found in rows.items()
    }


def maps_of(grids: Grids, pairs: WarpedPairs) -> dict[str, MapPairs]:
    """The maps of both views by the name of the features, float32 on the CPU."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in grids.names}
    for views in zip(pairs.first.split(_BATCH), pairs.second.split(_BATCH), strict=True):
        first, second = (grids(x.float()) for x in views)
        for name, found in parts.items():
            found.append((first[name].cpu(), second[name].cpu()))
    return {
        name: MapPairs(*(torch.cat(views) for views in zip(*found, strict=True)))
        for name, found in parts.items()
    }


def _no_motion(pairs: WarpedPairs, by_matches: bool) -> Measured:
    still = torch.eye(3, dtype=torch.float64).expand_as(pairs.to_first)
    errors = corner_error(still, pairs.to_first, pairs.first.shape[-1])
    lost = torch.zeros(len(pairs), dtype=torch.bool) if by_matches else None
    return Measured(NO_MOTION, sums_of_errors(errors, lost))


def _by_matches(maps: MapPairs, pairs: WarpedPairs, patch: int) -> dict[str, Tensor]:
    """Sums of every method without training."""
    size = pairs.first.shape[-1]
    found: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    for first, second in zip(maps.first.split(_BATCH), maps.second.split(_BATCH), strict=True):
        for matches in mutual_matches(second, first, patch):
            for name, method in METHODS.items():
                found[name].append(method(matches))
    sums = {}
    for name, each in found.items():
        to_first, lost = believed(torch.stack(each), size, size)
        sums[name] = sums_of_errors(corner_error(to_first, pairs.to_first, size), lost)
    return sums


def _by_head(
    train: MapPairs,
    train_pairs: WarpedPairs,
    test: MapPairs,
    test_pairs: WarpedPairs,
    device: torch.device,
    fit: HeadFit,
) -> Tensor:
    """Sums of a head that is trained on some pairs and tested on others."""
    size = test_pairs.first.shape[-1]
    unit = _OFFSET * size
    head = fitted_head(train, corner_offsets(train_pairs) / unit, device, fit)
    found = predicted(head, test, device) * unit
    away = (found - corner_offsets(test_pairs)).norm(dim=-1).mean(-1)
    return sums_of_errors(away * 128 / size)


def corner_offsets(pairs: WarpedPairs) -> Tensor:
    """[N, 4, 2] float64: by how much each corner of the second view moves to its place in the
    first, in pixels."""
    size = pairs.first.shape[-1]
    start = corners(size, size)
    return moved(start, pairs.to_first) - start


def _expect_memory(grids: list[Grids], budget: Budget, channels: int) -> None:
    """Raises ValueError if the maps of all pairs do not fit into the free memory."""
    most = 0
    for each in grids:
        image = torch.zeros(1, channels, each.image_size, each.image_size)
        most = max(most, sum(4 * x.numel() for x in each(image).values()))
    side = grids[-1].image_size
    of_each = 2 * (
        2 * most + 2 * channels * side**2
    )  # both views; joined once, and as 16-bit images
    cpu = torch.device("cpu")
    expect_memory("--pairs", budget.pairs, of_each, cpu)
    tested = budget.pairs * of_each
    expect_memory("--train-pairs", budget.train_pairs, of_each, cpu, reserved=tested)
