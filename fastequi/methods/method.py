"""What the loop needs of a method, and nothing more."""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.data.views.batch import Batch


class Method(nn.Module):
    """Owns its networks and its loss, a student and a teacher if it has them."""

    @property
    def backbone(self) -> nn.Module:
        """The encoder that learns."""
        raise NotImplementedError

    @property
    def find_unused_parameters(self) -> bool:
        """Whether some learning parameters take no part in the loss of some steps."""
        return False

    @property
    def encoder(self) -> nn.Module:
        """What a run leaves as model.safetensors."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Sets what follows a schedule: called before every step with the share of training done.

        A resumed run calls it as well, so nothing it sets needs to be saved.
        """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The "loss" to minimise, and scalar parts to log."""
        raise NotImplementedError

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Token features [B, L, ·] of normalised images [B, 3, H, W] by name."""
        raise NotImplementedError

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        """The EMA hook: called after every optimiser step with the share of training done.

        `taken`, [] float32 on the device, is 0 where the step was not taken, since something was
        not finite: averages then stay as they are. Buffers need not care, the loop puts them back.
        """
