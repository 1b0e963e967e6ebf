"""KoLeo as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastequi.functional import arguments, distributed, koleo_loss
from fastequi.functional.distributed import Group


class KoLeoLoss(nn.Module):
    """:func:`fastequi.functional.koleo_loss`.

    Args:
        group: the processes among whose rows neighbours are sought, or "world".
        eps: keeps the logarithm finite for rows that coincide.
    """

    def __init__(self, group: Group = None, eps: float = 1e-8) -> None:
        super().__init__()
        distributed.check_group(group)
        self.group = group
        self.eps = arguments.number("eps", eps, least=0)

    def forward(self, z: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Embeddings [N, D]; sizes: N of every process, where known."""
        return koleo_loss(z, eps=self.eps, group=self.group, sizes=sizes)
