"""Muon: a momentum whose matrix is made orthogonal, for the weights of transformer blocks.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): all directions of a weight matrix move
alike, also those that gradients seldom point to. Updates are scaled to the size of AdamW's (Liu et
al., arXiv 2502.16982), so that both take one learning rate and weight decay. The orthogonal matrix
comes from polynomials of the matrix (Amsel et al., arXiv 2505.16932), in float32, on the CPU too:
`torch.optim.Muon` multiplies in bfloat16, which most CPUs emulate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastequi.sharded import parted, whole

# a, b, c of a·x + b·x³ + c·x⁵, one after the other: what is best for singular values from 10⁻³ to 1
_POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups with "orthogonal": n, fused AdamW for the others.

    A parameter of such a group, [n · rows, columns], is n matrices below one another: 3 of a layer
    that gives queries, keys and values. Sharded weights (FSDP) are gathered for their update.

    Args:
        groups: of :func:`fastequi.optim.param_groups`.
        lr: η, of both.
        betas: AdamW's.
        momentum: μ: with m ← μ m + (1 - μ) g, the matrix μ m + (1 - μ) g is made orthogonal.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates all parameters that have gradients.

        Raises:
            ValueError: a closure was given.
        """
        if closure is not None:
            raise ValueError("closure: expected None, gradients are computed before the step")
        groups = self.param_groups
        self._step_orthogonal([group for group in groups if group["orthogonal"]])
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            return super().step()
        finally:
            self.param_groups = groups

    def _step_orthogonal(self, groups: list[dict[str, Any]]) -> None:
        """p ← (1 - η λ) p - 0.2 √max(rows, columns) η · the orthogonal matrix of each of its n."""
        found_inf = getattr(self, "found_inf", None)  # of `fastequi.optim.take_step`
        taken = None if found_inf is None else found_inf == 0
        params = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
        matrices: list[Tensor] = []
        for param, group in params:
            state = self.state[param]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param)
            buffer = state["momentum_buffer"]
            moved = self.momentum * buffer + (1 - self.momentum) * param.grad
            nesterov = self.momentum * moved + (1 - self.momentum) * param.grad
            _set(buffer, moved, taken)
            matrices += whole(nesterov).chunk(group["orthogonal"])
        found = iter(orthogonal(matrices))
        for param, group in params:
            each = [next(found) for _ in range(group["orthogonal"])]
            scale = 0.2 * max(each[0].shape) ** 0.5 * group["lr"]
            change = parted(torch.cat(each).to(param.dtype), param)
            kept = 1 - group["lr"] * group["weight_decay"]
            _set(param, kept * param - scale * change, taken)


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Nearly orthogonal matrices with the singular vectors of the given ones, as float32.

    Args:
        matrices: [rows, columns] each; those of one shape are multiplied together.

    Returns:
        Matrices of the same shapes, whose singular values are those of the given ones divided by
        their norm, and moved to 0.13 .. 1.9 if they were above 10⁻³.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        alike.setdefault((min(rows, columns), max(rows, columns)), []).append(i)
    found = list(matrices)
    for (short, _), where in alike.items():
        wide = [matrices[i] if len(matrices[i]) == short else matrices[i].mT for i in where]
        x = torch.stack(wide).float()
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-12)
        for a, b, c in _POLYNOMIALS:
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
        for i, one in zip(where, x, strict=True):
            found[i] = one if len(matrices[i]) == short else one.mT
    return found


def _set(old: Tensor, new: Tensor, taken: Tensor | None) -> None:
    """old ← new, unless `taken`, [1] or [], is there and false."""
    if isinstance(old, DTensor) and isinstance(new, DTensor):
        old, new = old.to_local(), new.to_local()
    old.copy_(new if taken is None else torch.where(taken, new, old))
