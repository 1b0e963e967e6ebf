"""`fastequi eval layers`: how equivariant and how invariant are the tokens of every block?

What is exact on a grid of patches: quarter turns, flips and shifts by whole patches g. Of an image
x and its tokens f(x)

equivariance   cos(f(g x), g f(x)), the mean over interior tokens: do tokens go where g takes them?
invariance     cos(f(g x), f(x)) at the same place: do they stay although the image was changed?
pooled         cos of the mean tokens of g x and x, which can be invariant alone

Channels stay as they are under g: features that answer to it by another linear map of their
channels are not seen here (`eval equivariance` reads those). Interior tokens are those whose
neighbours all lie in the image; of a shift, by a quarter of the grid, those that are so in both
crops. Shifted images are crops of one larger window, so nothing is filled in.

Every cosine is given with the mean token of the set taken off, and raw: where tokens share a large
common part, as collapsed ones and those of many ViTs do, raw cosines are near 1 whatever g does.
Where equivariance lives in a network is SER's question (arXiv 2603.06693).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import for_test
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.blocks import place, unknown_blocks, with_blocks
from fastequi.evaluate.geometry.figures import Figure, Measured, Table, means, sums_of_values, table
from fastequi.evaluate.geometry.frame import Found, Say, named, without
from fastequi.evaluate.geometry.grids import Grids
from fastequi.evaluate.geometry.windows import cut_windows, expect_windows
from fastequi.evaluate.photo_windows import images_for
from fastequi.evaluate.results import documented

_WHAT = ("equivariance", "invariance", "pooled invariance")
FIGURES = (*_WHAT, *(f"raw {what}" for what in _WHAT))
MEASURE = means(*(Figure(name, better="") for name in FIGURES))
_BATCH = 16  # images whose tokens of all blocks are held at once
_NOTHING = 1e-5  # of the mean token's norm: what is left of a token by rounding alone

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Action:
    """A transformation that is exact on a grid.

    Attributes:
        name: such as "90°".
        of_windows: windows [B, 3, S + margin, S + margin] to the images g x [B, 3, S, S].
        of_maps: maps [B, h, w, D] of the images x, the windows' upper left, to g f(x).
        rows, columns: of the interior tokens.
    """

    name: str
    of_windows: Move
    of_maps: Move
    rows: slice
    columns: slice


def shift_of(side: int, patch: int) -> int:
    """Patches that images of `side` px are shifted by: a quarter of their grid.

    Raises:
        ValueError: the grid is too small to have interior tokens then, or is none.
    """
    if side % patch:
        raise ValueError(f"images: expected a multiple of the patch size {patch}, got {side} px")
    grid = side // patch
    if grid < 4:
        raise ValueError(
            f"layers: expected a grid of at least 4x4 tokens, of which some are interior, got "
            f"{grid}x{grid}"
        )
    return grid // 4


def actions(side: int, patch: int) -> dict[str, list[Action]]:
    """The turns, flips and shifts of images of `side` px, by group.

    A shift to the left is one to the right with both images exchanged, and has the same cosine.
    """
    grid, shift = side // patch, shift_of(side, patch)
    inner = slice(1, grid - 1)

    def turned(quarters: int) -> Action:
        return Action(
            f"{90 * quarters}°",
            lambda windows: windows[..., :side, :side].rot90(quarters, (2, 3)),
            lambda maps: maps.rot90(quarters, (1, 2)),
            inner,
            inner,
        )

    def flipped(name: str, axis: int) -> Action:
        return Action(
            name,
            lambda windows: windows[..., :side, :side].flip(axis + 1),
            lambda maps: maps.flip(axis),
            inner,
            inner,
        )

    def shifted(name: str, down: int, right: int) -> Action:
        y, x = down * patch, right * patch
        return Action(
            name,
            lambda windows: windows[..., y : y + side, x : x + side],
            lambda maps: maps.roll((-down, -right), (1, 2)),
            slice(1, grid - 1 - down),
            slice(1, grid - 1 - right),
        )

    return {
        "turns": [turned(quarters) for quarters in (1, 2, 3)],
        "flips": [flipped("left to right", 2), flipped("upside down", 1)],
        "shifts": [shifted("up", shift, 0), shifted("to the left", 0, shift)],
    }


def cosines(changed: Tensor, plain: Tensor, action: Action, mean: Tensor) -> Tensor:
    """[B, 6], in the order of FIGURES; NaN where nothing but rounding is left of a token.

    Args:
        changed: [B, h, w, D], f(g x).
        plain: [B, h, w, D], f(x).
        action: g.
        mean: [D], the mean token of the set.
    """
    least = _NOTHING * float(mean.norm())
    inner = _interior(changed, action)
    pooled = [maps.mean((1, 2))[:, None] for maps in (changed, plain)]
    pairs = [
        (inner, _interior(action.of_maps(plain), action)),
        (inner, _interior(plain, action)),
        (pooled[0], pooled[1]),
    ]
    found = [_cosine(a - mean, b - mean, least) for a, b in pairs]
    return torch.stack([*found, *(_cosine(a, b, least) for a, b in pairs)], 1)


def _interior(maps: Tensor, action: Action) -> Tensor:
    return maps[:, action.rows, action.columns].flatten(1, 2)


def _cosine(a: Tensor, b: Tensor, least: float) -> Tensor:
    """[B] mean cosine of tokens [B, P, D], without those that are as good as zero."""
    of_a, of_b = a.norm(dim=-1), b.norm(dim=-1)
    found = (a * b).sum(-1) / (of_a * of_b)
    return torch.where(torch.minimum(of_a, of_b) > least, found, torch.nan).nanmean(1)


def action_cosines(grids: Grids, windows: Tensor, side: int) -> dict[str, dict[str, Tensor]]:
    """[N, 6] of :func:`cosines` by action, then by features.

    Args:
        grids: what is judged.
        windows: [N, 3, S + margin, S + margin] uint8, with room for the shifts.
        side: S.
    """
    every = [action for group in actions(side, grids.patch_size).values() for action in group]
    mean = _mean_tokens(grids, windows[..., :side, :side])
    found: dict[str, dict[str, list[Tensor]]] = {
        action.name: {name: [] for name in grids.names} for action in every
    }
    for start in range(0, len(windows), _BATCH):
        part = windows[start : start + _BATCH]
        plain = grids(part[..., :side, :side])
        for action in every:
            changed = grids(action.of_windows(part))
            for name in grids.names:
                values = cosines(changed[name], plain[name], action, mean[name])
                found[action.name][name].append(values.cpu())
    return {
        action: {name: torch.cat(parts) for name, parts in each.items()}
        for action, each in found.items()
    }


def _mean_tokens(grids: Grids, images: Tensor) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for part in images.split(_BATCH):
        for name, maps in grids(part).items():
            part_sum = maps.double().mean((1, 2)).sum(0)
            total[name] = total[name] + part_sum if name in total else part_sum
    return {name: (each / len(images)).float() for name, each in total.items()}


def evaluate_layers(
    data: Data | None,
    test_data: Data | None,
    n: int,
    each: bool,
    seed: int,
    grids: list[Grids],
    encoders: Mapping[str, Encoder],
    say: Say,
) -> Found:
    """A table for the turns, the flips and the shifts, or for each of them, on test photographs.

    Args:
        data, test_data: see `fastequi.data.sources.splits.for_test`.
        n: windows.
        each: a table for each of them, instead of means over a group.
        seed: of the windows.
        grids, encoders, say: of the frame.

    Raises:
        ValueError: a grid is too small, or an encoder does not take images of the first one's size.
    """
    evaluated = encoders[str(grids[-1].encoder)]
    side = evaluated.image_size
    judged = with_blocks(grids, encoders)
    margin = max(shift_of(side, one.patch_size) * one.patch_size for one in judged)
    expect_windows(evaluated, n, margin=margin)
    given, asked = test_data or data, images_for(evaluated)
    source = for_test(data, test_data, asked)
    say("cutting windows")
    windows = cut_windows(source, evaluated, n, margin=margin, seed=seed)
    groups = {
        group: [action.name for action in members]
        for group, members in actions(side, grids[-1].patch_size).items()
    }
    if each:
        groups = {f"{g}, {name}": [name] for g, names in groups.items() for name in names}
    rows: dict[str, list[Measured]] = {group: [] for group in groups}
    for one in judged:
        say(one.encoder or one.names[0])
        found = action_cosines(one, windows.images, side)
        for group, members in groups.items():
            for name in one.names:
                values = torch.stack([found[member][name] for member in members]).nanmean(0)
                rows[group].append(Measured(one.row(name), sums_of_values(values)))
    tables = {
        group: table(MEASURE, part, windows.photographs, unit="windows")
        for group, part in rows.items()
    }
    about = {
        **documented(given), "photographs": len(source), "windows": n, "seed": seed,
        "shift_px": shift_of(side, grids[-1].patch_size) * grids[-1].patch_size,
        "left_out": named(windows.left_out, source),
    }  # fmt: skip
    remarks = [_highest(group, each, evaluated.name) for group, each in tables.items()]
    remarks += [*unknown_blocks(encoders), *without(windows.left_out, source)]
    return Found(
        tables, about, list(filter(None, remarks)), tested=source if data or test_data else None
    )


def _highest(group: str, found: Table, encoder: str) -> str:
    """Where an encoder is most equivariant; "" where only its last tokens are known."""
    own = [
        score
        for score in found.scores
        if score.encoder == encoder and place(score.features) is not None
    ]
    if not own:
        return ""
    top = max(own, key=lambda score: score.values[0])
    (best, unchanged), last = top.values[:2], own[-1].values[0]
    return (
        f"{group}: of its blocks {encoder} is most equivariant at {top.features} ({best:.3f}, "
        f"invariance {unchanged:.3f}); at its last block {last:.3f}"
    )
