"""The interface between the training loop and a method."""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.data.views.batch import Batch
from fastequi.models.encoder import TokenEncoder
from fastequi.models.foreign import ForeignEncoder


class Method(nn.Module):
    """Owns its networks (also a student and a teacher) and its loss."""

    @property
    def backbone(self) -> nn.Module:
        """The encoder that is trained."""
        raise NotImplementedError

    @property
    def find_unused_parameters(self) -> bool:
        """Whether in some steps a trainable parameter has no gradient; as DDP's option."""
        return False

    @property
    def encoder(self) -> nn.Module:
        """The encoder whose features are used: the teacher's, if there is one."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called once in a run's life: its first weights are there, no step was taken.

        A resumed run does not call it, so what it sets has to be part of the state dict.
        """

    @property
    def saved(self) -> nn.Module:
        """What of the encoder a run saves as model.safetensors, under its own parameter names."""
        return self.encoder.network if isinstance(self.encoder, TokenEncoder) else self.encoder

    def about_encoder(self) -> str:
        """What was found out about another package's network, as a line; "" of others."""
        return self.backbone.described() if isinstance(self.backbone, ForeignEncoder) else ""

    def before_step(self, progress: float) -> None:
        """Applies schedules; called before every step with the share of training done.

        A resumed run calls it as well, so what it sets need not be saved.
        """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The "loss" to minimise, and other scalars to log."""
        raise NotImplementedError

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Token features [B, L, ·] of normalised images [B, C, H, W] by name."""
        raise NotImplementedError

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        """The hook for EMA updates; called after every optimiser step.

        Args:
            progress: share of the training done.
            taken: [] float32 on the device, 0 if the step was skipped because of a non-finite
                value: EMAs must then stay unchanged. The loop restores buffers itself.
        """
