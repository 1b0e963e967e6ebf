"""Optimiser, schedule and weight average: each a pure function of the model or of progress."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Learned offsets, as norms and biases are: decay would pull them to a value that means nothing.
_NO_DECAY = ("pos_embed", "cls_token", "reg_token")


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices and filters decay, biases, norms, gains and embeddings do not."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        still = param.ndim < 2 or name.rsplit(".", 1)[-1] in _NO_DECAY
        (rest if still else decay).append(param)
    return [
        {"params": decay, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW over :func:`param_groups`; one fused update for all parameters."""
    return torch.optim.AdamW(param_groups(model, weight_decay), lr=lr, betas=betas, fused=True)


def warmup_cosine(progress: float, base: float, final: float = 0.0, warmup: float = 0.0) -> float:
    """Linear warm-up from 0, then half a cosine from `base` to `final`.

    Args:
        progress: share of the training done, clipped to [0, 1].
        warmup: share of the training spent warming up.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return base * progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-12)))
    return final + (base - final) * cosine


class WeightAverage:
    """Exponential moving average of a model's parameters and float buffers (Polyak averaging).

    The effective momentum warms up, min(momentum, (1 + n)/(10 + n)), so that early weights are
    forgotten. Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f"momentum: expected 0 < momentum < 1, got {momentum}")
        self.momentum, self.updates = momentum, 0
        self.average = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        keep = min(self.momentum, (1 + self.updates) / (10 + self.updates))
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ours.append(self.average[name])
                theirs.append(value)
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average
