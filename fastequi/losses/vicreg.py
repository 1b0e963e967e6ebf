"""VICReg: variance, invariance and covariance of two views' embeddings (Bardes et al., ICLR 2022).

The covariance term needs ‖ZᵀZ‖²_F, which equals ‖ZZᵀ‖²_F: the smaller of the two Gram matrices is
formed, N²D operations instead of ND² for a batch smaller than the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fastequi.distributed import gather

_EPS = 1e-4  # inside the square root, as in the paper's code


def invariance(z1: Tensor, z2: Tensor) -> Tensor:
    """Mean squared distance of two views' embeddings [N, D]."""
    return F.mse_loss(z1, z2)


def variance(z: Tensor) -> Tensor:
    """Hinge on the standard deviation of every dimension: mean_d max(0, 1 - std_d), z [N, D]."""
    return F.relu(1 - (z.var(0) + _EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances over D, z [N, D]."""
    n, dim = z.shape
    z = z - z.mean(0)
    gram = z @ z.T if n < dim else z.T @ z
    diagonal = z.square().sum(0)
    return (gram.square().sum() - diagonal.square().sum()) / ((n - 1) ** 2 * dim)


class VICRegLoss(nn.Module):
    """Weighted sum of the three terms, in float32 whatever autocast says.

    The variance term is the mean over the two views and the covariance term their sum, as in the
    paper's code.

    Args:
        inv_weight, var_weight, cov_weight: 25, 25, 1 (SIE uses 10, 10, 1).
        group: the processes whose images make up the batch; None: this one alone. Value and
            gradients are as `fastequi.distributed` says.
        sizes: images of every process, where known; finding them out stalls a GPU.
    """

    def __init__(
        self,
        inv_weight: float = 25.0,
        var_weight: float = 25.0,
        cov_weight: float = 1.0,
        group: ProcessGroup | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.group, self.sizes = group, sizes
        self.inv_weight, self.var_weight, self.cov_weight = inv_weight, var_weight, cov_weight

    def forward(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """The loss and its unweighted terms for embeddings [N, D], N >= 2.

        Raises:
            ValueError: if the shapes differ or N < 2, for which no variance exists.
        """
        if z1.shape != z2.shape or z1.ndim != 2:
            shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
            raise ValueError(f"z1, z2: expected two [N, D] of one shape, got {shapes}")
        with torch.autocast(z1.device.type, enabled=False):
            z1, z2 = (gather(z.float(), self.group, self.sizes) for z in (z1, z2))
            if len(z1) < 2:
                raise ValueError(f"z1: VICReg needs at least 2 images in a batch, got {len(z1)}")
            inv = invariance(z1, z2)
            var = 0.5 * (variance(z1) + variance(z2))
            cov = covariance(z1) + covariance(z2)
            loss = self.inv_weight * inv + self.var_weight * var + self.cov_weight * cov
        return {"loss": loss, "inv": inv, "var": var, "cov": cov}

    def extra_repr(self) -> str:
        return f"{self.inv_weight}, {self.var_weight}, {self.cov_weight}"
