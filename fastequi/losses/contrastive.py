"""NT-Xent and KoLeo as modules: they hold the options, `fastequi.functional` does the work."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastequi.functional import koleo_loss, nt_xent_loss


class NTXentLoss(nn.Module):
    """:func:`fastequi.functional.nt_xent_loss`.

    Args:
        temperature: of the cosines.
        group: the processes whose images are each other's negatives.
    """

    def __init__(self, temperature: float = 0.1, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.temperature, self.group = temperature, group

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Embeddings [N, D] of two views."""
        return nt_xent_loss(z1, z2, temperature=self.temperature, group=self.group)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class KoLeoLoss(nn.Module):
    """:func:`fastequi.functional.koleo_loss`.

    Args:
        group: the processes among whose rows neighbours are sought.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__()
        self.group = group

    def forward(self, z: Tensor) -> Tensor:
        """Embeddings [N, D]."""
        return koleo_loss(z, group=self.group)
