"""KoLeo as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastequi.functional import distributed, koleo_loss


class KoLeoLoss(nn.Module):
    """:func:`fastequi.functional.koleo_loss`.

    Args:
        group: the processes among whose rows neighbours are sought.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        super().__init__()
        distributed.check_group(group)
        self.group = group

    def forward(self, z: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Embeddings [N, D]; sizes: N of every process, where known."""
        return koleo_loss(z, group=self.group, sizes=sizes)
