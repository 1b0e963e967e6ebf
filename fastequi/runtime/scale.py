"""Loss scaling for float16: the loss is multiplied, its gradients are divided before the step.

As in torch.amp.GradScaler, the scale is halved after an overflow and doubled after 2,000 steps
without one. The guard (`fastequi.runtime.guard`) finds the overflows; there is no host sync.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastequi.sharded import is_sharded

_FIRST, _LEAST = 2.0**16, 1.0
_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """The loss scale of one run.

    Args:
        device: where the loss is.

    Attributes:
        value: [] float32, factor on the loss before its backward.
        clean: [] int32, steps without an overflow since it last changed.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _FIRST, device=device)
        self.clean = torch.zeros((), dtype=torch.int32, device=device)

    def state_dict(self) -> dict[str, float]:
        """The state for a checkpoint, in JSON types; waits for the device."""
        return {"loss_scale": self.value.item(), "loss_scale_clean": self.clean.item()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint's state; the initial scale if the run had none."""
        self.value.fill_(state.get("loss_scale", _FIRST))
        self.clean.fill_(state.get("loss_scale_clean", 0))

    @torch.no_grad()
    def unscale(self, params: Iterable[nn.Parameter]) -> None:
        """Divides all gradients, sharded ones too; called before they are clipped."""
        grads = [p.grad for p in params if p.grad is not None]
        parts = [g.to_local() if is_sharded(g) else g for g in grads]
        torch._foreach_mul_(parts, self.value.reciprocal())

    def update(self, overflow: Tensor) -> Tensor:
        """Updates the scale after a step.

        Args:
            overflow: [] 1 if the loss was finite but a gradient was not, else 0.

        Returns:
            [] 1 if the scale may have caused it; 0 at the smallest scale.
        """
        excused = overflow * (self.value > _LEAST)
        torch._amp_update_scale_(self.value, self.clean, overflow, _GROWTH, _BACKOFF, _INTERVAL)
        self.value.clamp_(min=_LEAST)
        return excused
