"""What the loop needs of a method, and nothing more."""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.data.batch import Batch


class Method(nn.Module):
    """Owns its networks and its loss, a student and a teacher if it has them.

    Attributes:
        encoder: what a run leaves as model.safetensors.
    """

    encoder: nn.Module

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The "loss" to minimise, and scalar parts to log."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """The EMA hook: called after every optimiser step with the share of training done."""
