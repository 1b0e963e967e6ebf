"""A linear layer on frozen tokens, fitted on pixels: BatchNorm, linear, upsampled.

As DINOv2's linear heads (arXiv 2304.07193; its configurations for mmsegmentation): AdamW with the
rate rising linearly at first and then falling linearly to 0, on the loss of upsampled outputs.
L-BFGS, which classes of images are fitted with, would need the loss of all pixels of all images at
every step; and a penalty, where AdamW's few steps need none.

It differs from DINOv2's in that features are computed once, so that nothing is augmented; that
BatchNorm has the statistics of all training tokens instead of those of batches, so that it is part
of the linear layer in the end; and that a step takes some pixels of each image, drawn anew, instead
of all. Upsampling is bilinear, its weights sum to 1: a linear layer of upsampled features gives
upsampled outputs, so features are interpolated at those pixels alone, and no gradient passes
through that. Nothing here draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 4  # places of a token's side that pixels are taken from
_WARM = 0.04  # of the steps; DINOv2: 1,500 of 40,000
_EPS = 1e-5  # of BatchNorm

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs [P, outputs] and values [P] at the same places."""


@dataclass(frozen=True)
class Fit:
    """How it is fitted.

    Attributes:
        steps: of AdamW.
        batch: images of a step.
        pixels: of each image in a step, drawn with replacement.
        lr: the highest rate.
        weight_decay: of weights and biases.
        seed: of the weights at the start, and of images and pixels.
    """

    steps: int = 1000
    batch: int = 16
    pixels: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Known:
    """What is known of an image, at the places of a lattice of POINTS x POINTS for each token.

    Attributes:
        places: [n] int32 on the lattice [POINTS · h, POINTS · w], row by row.
        values: [n].
    """

    places: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, target: Tensor, grid: tuple[int, int], is_known: Callable[[Tensor], Tensor]
    ) -> Known:
        """Of values [H, W] of an image with tokens (h, w): at each place the pixel that is there.

        Args:
            target: the values.
            grid: (h, w).
            is_known: which of some values are known.
        """
        rows, columns = (
            ((torch.arange(POINTS * n) + 0.5) * whole / (POINTS * n)).long()
            for n, whole in zip(grid, target.shape, strict=True)
        )
        values = target[rows[:, None], columns].flatten()
        places = is_known(values).nonzero()[:, 0]
        return cls(places.int(), values[places])


@dataclass(frozen=True)
class Linear:
    """A linear layer: weight [D, outputs], bias [outputs]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """[..., outputs] of tokens [..., D]."""
        return tokens.to(self.weight) @ self.weight + self.bias


def fitted(
    maps: Sequence[Tensor],
    known: Sequence[Known],
    outputs: int,
    loss: Loss,
    device: torch.device,
    fit: Fit,
    say: Callable[[str], object] = lambda text: None,
) -> Linear:
    """The layer that was fitted.

    Args:
        maps: [h, w, D] of each image, of any sizes.
        known: of each image; those of which nothing is known are passed over.
        outputs: of the layer.
        loss: of a step's pixels.
        device: where it is fitted.
        fit: steps, batch, rate and seed.
        say: told how far it is.

    Raises:
        FloatingPointError: it diverged: its weights or its loss are not finite.
    """
    mean, scale = (x.to(device) for x in _statistics(maps))
    counts = torch.tensor([len(each.values) for each in known])
    grids = torch.tensor([x.shape[:2] for x in maps])
    usable = counts.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(fit.seed)
    start = torch.randn(len(mean), outputs, generator=generator) * 0.01
    weight = start.to(device).requires_grad_()
    bias = torch.zeros(outputs, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], fit.lr, weight_decay=fit.weight_decay)
    warm, order = max(1, round(_WARM * fit.steps)), usable[:0]
    for step in range(fit.steps):
        if len(order) < min(fit.batch, len(usable)):
            order = usable[torch.randperm(len(usable), generator=generator)]
        picked, order = order[: fit.batch], order[fit.batch :]
        uniform = torch.rand(len(picked), fit.pixels, generator=generator, dtype=torch.float64)
        drawn = [*zip(picked.tolist(), (uniform * counts[picked, None]).long(), strict=True)]
        places = torch.stack([known[i].places[at] for i, at in drawn])
        values = torch.cat([known[i].values[at] for i, at in drawn]).to(device)
        features = interpolated([maps[i] for i, _ in drawn], grids[picked], places)
        x = (features.to(device) - mean) / scale
        say(f"linear head, step {step + 1:,} of {fit.steps:,} (--steps)")
        optimizer.param_groups[0]["lr"] = fit.lr * min((step + 1) / warm, 1 - step / fit.steps)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss(x @ weight + bias, values).backward()
        optimizer.step()
    last = loss(x @ weight.detach() + bias.detach(), values)
    folded = weight.detach() / scale[:, None]
    found = Linear(folded, bias.detach() - mean @ folded)
    if not all(bool(part.isfinite().all()) for part in (last, found.weight, found.bias)):
        raise FloatingPointError(
            f"--lr: expected a rate at which the linear head converges, got {fit.lr:g}: after "
            f"{fit.steps:,} steps its weights or its loss are not finite"
        )
    return found


def interpolated(maps: Sequence[Tensor], grids: Tensor, places: Tensor) -> Tensor:
    """[B · P, D] of maps, bilinear, at places of their lattices, as `upsampled` gives them.

    Args:
        maps: B of [h, w, D].
        grids: [B, 2] their h and w.
        places: [B, P] on the lattice; see :class:`Known`.
    """
    lattice = POINTS * grids[:, 1:]
    corners, weights = [], []
    for axis, at in enumerate((places // lattice, places % lattice)):
        last = grids[:, axis, None] - 1
        exact = ((at + 0.5) / POINTS - 0.5).clamp(min=0).minimum(last)
        low = exact.long()
        corners.append((low, (low + 1).minimum(last)))
        weights.append((1 - exact + low, exact - low))
    index = torch.stack([y * grids[:, 1:] + x for y in corners[0] for x in corners[1]], -1)
    weight = torch.stack([y * x for y in weights[0] for x in weights[1]], -1)
    found = [x.flatten(0, 1)[at.flatten()] for x, at in zip(maps, index, strict=True)]
    of_corners = torch.cat(found).unflatten(0, (-1, 4))
    return (weight.flatten(0, 1)[:, None].to(of_corners) @ of_corners)[:, 0]


def _statistics(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [D] of all tokens, and their deviation as BatchNorm divides by it."""
    count = sum(x.shape[0] * x.shape[1] for x in maps)
    mean = torch.stack([x.double().sum((0, 1)) for x in maps]).sum(0) / count
    squares = [(x.double() - mean).square().sum((0, 1)) for x in maps]
    variance = torch.stack(squares).sum(0) / count
    return mean.float(), (variance + _EPS).sqrt().float()
