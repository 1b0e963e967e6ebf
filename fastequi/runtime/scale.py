"""Loss scaling, for gradients too small for float16: multiplied on their way back, then divided.

As torch.amp.GradScaler has it: half the scale after an overflow, twice as much after 2,000 steps
without. Whether a step overflowed is what the guard finds out anyway (`fastequi.runtime.guard`),
and nothing leaves the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_FIRST, _LEAST = 2.0**16, 1.0
_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


class LossScale:
    """One run's.

    Args:
        device: where the loss is.

    Attributes:
        value: [] float32, what the loss is to be multiplied with before its backward.
        clean: [] int32, steps without an overflow since it last changed.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _FIRST, device=device)
        self.clean = torch.zeros((), dtype=torch.int32, device=device)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on with, JSON-ready; waits for the device."""
        return {"loss_scale": self.value.item(), "loss_scale_clean": self.clean.item()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint's state; one of a run that had no scale begins with the first."""
        self.value.fill_(state.get("loss_scale", _FIRST))
        self.clean.fill_(state.get("loss_scale_clean", 0))

    @torch.no_grad()
    def unscale(self, params: Iterable[nn.Parameter]) -> None:
        """Divides all gradients, also where they lie in parts; before they are clipped."""
        grads = [p.grad for p in params if p.grad is not None]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
        torch._foreach_mul_(parts, self.value.reciprocal())

    def update(self, overflow: Tensor) -> Tensor:
        """After a step whose loss was finite and gradient was not, `overflow` [] 1, or was, 0.

        Returns:
            [] 1 if the scale may be to blame; at its least it is not.
        """
        excused = overflow * (self.value > _LEAST)
        torch._amp_update_scale_(self.value, self.clean, overflow, _GROWTH, _BACKOFF, _INTERVAL)
        self.value.clamp_(min=_LEAST)
        return excused
