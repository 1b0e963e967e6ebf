"""VICReg as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastequi.functional import distributed
from fastequi.functional.distributed import Group
from fastequi.functional.vicreg import checked_weights, vicreg_terms


class VICRegLoss(nn.Module):
    """:func:`fastequi.functional.vicreg_loss` as a module, its options fixed.

    Args:
        inv_weight, var_weight, cov_weight: 25, 25, 1 (SIE uses 10, 10, 1).
        group: the processes whose images make up the batch, or "world"; None: this one alone.
    """

    def __init__(
        self,
        inv_weight: float = 25.0,
        var_weight: float = 25.0,
        cov_weight: float = 1.0,
        group: Group = None,
    ) -> None:
        super().__init__()
        distributed.check_group(group)
        self.group = group
        weights = checked_weights(inv_weight, var_weight, cov_weight)
        self.inv_weight, self.var_weight, self.cov_weight = weights

    def forward(self, z1: Tensor, z2: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The loss, a scalar, of embeddings [N, D] of two views, N >= 2.

        Args:
            z1, z2: of two views.
            sizes: N of every process, where known; else they are gathered, with a host sync.
        """
        return self.with_terms(z1, z2, sizes)[0]

    def with_terms(
        self, z1: Tensor, z2: Tensor, sizes: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its unweighted terms "inv", "var" and "cov" for logging, from one pass.

        The terms have no gradient.
        """
        weights = self.inv_weight, self.var_weight, self.cov_weight
        loss, terms = vicreg_terms(z1, z2, weights, self.group, sizes)
        return loss, dict(zip(("inv", "var", "cov"), terms.unbind(), strict=True))

    def extra_repr(self) -> str:
        return f"{self.inv_weight}, {self.var_weight}, {self.cov_weight}"
