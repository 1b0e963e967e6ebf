"""A linear layer on frozen tokens, fitted on pixels: BatchNorm, linear, upsampled.

As DINOv2's linear heads (arXiv 2304.07193; its configurations for mmsegmentation): AdamW with the
rate rising linearly at first and then falling linearly to 0, the outputs upsampled bilinearly
before the loss. L-BFGS, which classes of images are fitted with, would need the loss of all pixels
of all images at every step; and a penalty, where AdamW's few steps need none.

It differs from DINOv2's in that features are computed once, so that nothing is augmented; that
BatchNorm has the statistics of all training tokens instead of those of batches, so that it is part
of the linear layer in the end; and that the loss is taken at 4x4 points for each token, not at
every pixel. Nothing here draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastequi.evaluate.geometry.dense_maps import upsampled

POINTS = 4  # a token's side, of the loss
_WARM = 0.04  # of the steps; DINOv2: 1,500 of 40,000
_EPS = 1e-5  # of BatchNorm

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of outputs [P, outputs] and targets [P] of points."""


@dataclass(frozen=True)
class Fit:
    """How it is fitted.

    Attributes:
        steps: of AdamW.
        batch: images of a step.
        lr: the highest rate.
        weight_decay: of the weights.
        seed: of the weights at the start and of the order of images.
    """

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


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
    targets: Sequence[Tensor],
    outputs: int,
    loss: Loss,
    device: torch.device,
    fit: Fit,
) -> Linear:
    """The layer that was fitted.

    Args:
        maps: [h, w, D] of each image, of any sizes.
        targets: [POINTS · h, POINTS · w] of each; see `fastequi.evaluate.geometry.dense_maps`.
        outputs: of the layer.
        loss: of a batch's points.
        device: where it is fitted.
        fit: steps, batch, rate and seed.
    """
    mean, scale = _statistics(maps)
    mean, scale = mean.to(device), scale.to(device)
    generator = torch.Generator().manual_seed(fit.seed)
    start = torch.randn(len(mean), outputs, generator=generator) * 0.01
    weight = start.to(device).requires_grad_()
    bias = torch.zeros(outputs, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], fit.lr, weight_decay=fit.weight_decay)
    warm, order = max(1, round(_WARM * fit.steps)), torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for step in range(fit.steps):
            if len(order) < min(fit.batch, len(maps)):
                order = torch.randperm(len(maps), generator=generator)
            picked, order = order[: fit.batch].tolist(), order[fit.batch :]
            rate = min((step + 1) / warm, 1 - step / fit.steps)
            optimizer.param_groups[0]["lr"] = fit.lr * rate
            found, wanted = [], []
            for i in picked:
                values = ((maps[i].to(device) - mean) / scale) @ weight + bias
                points = upsampled(values, targets[i].shape)
                found.append(points.flatten(1).mT)
                wanted.append(targets[i].flatten().to(device))
            optimizer.zero_grad()
            loss(torch.cat(found), torch.cat(wanted)).backward()
            optimizer.step()
    with torch.no_grad():
        folded = weight / scale[:, None]
        return Linear(folded, bias - mean @ folded)


def _statistics(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [D] of all tokens, and their deviation as BatchNorm divides by it."""
    count = sum(x.shape[0] * x.shape[1] for x in maps)
    mean = torch.stack([x.double().sum((0, 1)) for x in maps]).sum(0) / count
    squares = [(x.double() - mean).square().sum((0, 1)) for x in maps]
    variance = torch.stack(squares).sum(0) / count
    return mean.float(), (variance + _EPS).sqrt().float()
