"""The first share of a run, in which heads and decoders learn on an encoder that does not change.

Heads that begin at random send their first gradients through the encoder; public weights would be
lost to them. While it is frozen its parameters need no gradient: none is computed, no optimiser
moment begins, no weight decays, and a teacher that follows it stays equal.
"""

from __future__ import annotations

from torch import nn


class Freezing:
    """Freezes an encoder until a share of the training is done.

    Args:
        encoder: `Method.backbone`; what needs no gradient already is left so.
        share: of the training, 0: the encoder is never frozen.
    """

    def __init__(self, encoder: nn.Module, share: float) -> None:
        self.encoder, self.share = encoder, share
        self.params = [p for p in encoder.parameters() if p.requires_grad]
        self.frozen: bool | None = None

    def at(self, progress: float) -> bool:
        """Freezes or thaws; whether anything changed, which the first call always says.

        Args:
            progress: share of the training done, the same on all processes.
        """
        frozen = progress < self.share
        if frozen is self.frozen:
            return False
        self.frozen = frozen
        for param in self.params:
            param.requires_grad_(not frozen)
        for part in self.encoder.modules():
            if hasattr(part, "running_mean"):  # BatchNorm's averages would move without a gradient
                part.train(not frozen)
        return True
