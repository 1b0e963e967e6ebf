"""NT-Xent as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastequi.functional import arguments, distributed, nt_xent_loss
from fastequi.functional.distributed import Group


class NTXentLoss(nn.Module):
    """:func:`fastequi.functional.nt_xent_loss`.

    Args:
        temperature: of the cosines.
        group: the processes whose images are each other's negatives, or "world".
    """

    def __init__(self, temperature: float = 0.1, group: Group = None) -> None:
        super().__init__()
        distributed.check_group(group)
        self.temperature = arguments.number("temperature", temperature, above=0)
        self.group = group

    def forward(self, z1: Tensor, z2: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Embeddings [N, D] of two views; sizes: N of every process, where known."""
        return nt_xent_loss(z1, z2, temperature=self.temperature, group=self.group, sizes=sizes)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
