"""Muon: a momentum whose matrix is made orthogonal, for the weights of transformer blocks.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): all directions of a weight matrix move
alike, also those that gradients seldom point to. Updates are scaled to the size of AdamW's (Liu et
al., arXiv 2502.16982), so that both take one learning rate and weight decay. The orthogonal matrix
comes from polynomials of the matrix (Amsel et al., arXiv 2505.16932), in float32, on the CPU too:
`torch.optim.Muon` multiplies in bfloat16, which most CPUs emulate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastequi.functional import arguments
from fastequi.sharded import is_sharded, parted, whole

# a, b, c of a·x + b·x³ + c·x⁵, one after the other: what is best for singular values from 10⁻³ to 1
_POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


_AT_ONCE = 1 << 24  # values of the matrices that are in memory as float32 at a time, 64 MB


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups with "orthogonal": n, fused AdamW for the others.

    A parameter of such a group, [n · rows, columns], is n matrices below one another: 3 of a layer
    that gives queries, keys and values, 2 of one that gives SwiGLU's gate and value. Of sharded
    weights (FSDP) every process gathers the gradients of some at a time, and computes their whole
    update.

    Args:
        groups: of :func:`fastequi.optim.param_groups`.
        lr: η, of both.
        betas: AdamW's.
        momentum: μ: with m ← μ m + (1 - μ) g, the matrix μ m + (1 - μ) g is made orthogonal.

    Raises:
        ValueError: a group without "orthogonal", or a parameter that is not n matrices.
    """

    _step_supports_amp_scaling = True  # as fused AdamW: the step obeys grad_scale and found_inf

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
    ) -> None:
        arguments.number("momentum", momentum, least=0, below=1)
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": 0.0}
        super().__init__(groups, defaults)
        self._link()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()

    def _link(self) -> None:
        """AdamW shares the groups that are its own, and the state."""
        others = [group for group in self.param_groups if not group["orthogonal"]]
        empty = [torch.zeros(0, requires_grad=True)]  # AdamW takes no empty list
        first = self.param_groups[0]
        options: dict[str, Any] = {"lr": first["lr"], "betas": first["betas"], "fused": True}
        self._adamw = torch.optim.AdamW(others or empty, **options)
        self._adamw.state = self.state
        if not others:
            self._adamw.param_groups = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "orthogonal" not in param_group:
            raise ValueError('groups: expected dicts with "orthogonal": n or 0')
        super().add_param_group(param_group)
        number = self.param_groups[-1]["orthogonal"]
        for param in self.param_groups[-1]["params"] if number else ():
            if param.ndim != 2 or len(param) % number:
                raise ValueError(
                    f"groups: expected {number} matrices below one another, got a parameter of "
                    f"shape {tuple(param.shape)}"
                )
        if hasattr(self, "_adamw"):
            self._link()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates all parameters that have gradients.

        Raises:
            ValueError: a closure was given.
        """
        if closure is not None:
            raise ValueError("closure: expected None, gradients are computed before the step")
        alike: dict[tuple[int, int], list[tuple[Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                if group["orthogonal"] and param.grad is not None:
                    rows, columns = len(param) // group["orthogonal"], param.shape[1]
                    shape = min(rows, columns), max(rows, columns)
                    alike.setdefault(shape, []).append((param, group))
        for params in alike.values():
            for few in _in_parts(params):
                self._step_orthogonal(few)
        for name in ("grad_scale", "found_inf"):  # of `fastequi.optim.take_step` and GradScaler
            setattr(self._adamw, name, getattr(self, name, None))
        self._adamw.step()

    def _step_orthogonal(self, params: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """p ← (1 - η λ) p - 0.2 √max(rows, columns) η · the orthogonal matrix of each of its n."""
        found_inf, grad_scale = (getattr(self, n, None) for n in ("found_inf", "grad_scale"))
        taken = None if found_inf is None else found_inf == 0
        matrices: list[Tensor] = []
        for param, group in params:
            state, mu = self.state[param], group["momentum"]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(param)
            assert param.grad is not None
            grad = param.grad if grad_scale is None else param.grad / grad_scale
            moved = torch.lerp(state["momentum_buffer"], grad, 1 - mu)
            nesterov = torch.lerp(grad, moved, mu)
            _set(state["momentum_buffer"], moved, taken)
            matrices += whole(nesterov).chunk(group["orthogonal"])
        found = iter(orthogonal(matrices))
        for param, group in params:
            each = [next(found) for _ in range(group["orthogonal"])]
            scale = 0.2 * max(each[0].shape) ** 0.5 * group["lr"]
            change = parted(torch.cat(each).to(param.dtype), param)
            kept = 1 - group["lr"] * group["weight_decay"]
            _set(param, torch.add(kept * param, change, alpha=-scale), taken)


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Nearly orthogonal matrices with the singular vectors of the given ones, as float32.

    Args:
        matrices: [rows, columns] or [columns, rows], of one size.

    Returns:
        Matrices of the same shapes, whose singular values are those of the given ones divided by
        their norm, and moved to 0.13 .. 1.87 if they were above 10⁻³.
    """
    if not matrices:
        return []
    short = min(matrices[0].shape)
    tall = [len(matrix) != short for matrix in matrices]
    x = torch.stack([m.mT if t else m for m, t in zip(matrices, tall, strict=True)]).float()
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((1, 2), keepdim=True).clamp(min=tiny)  # so that no square overflows
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=tiny)
    with torch.autocast(x.device.type, enabled=False):
        for a, b, c in _POLYNOMIALS:
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return [one.mT if t else one for one, t in zip(x, tall, strict=True)]


def _in_parts(
    params: list[tuple[Tensor, dict[str, Any]]],
) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """As many at a time as memory is meant for."""
    at_once = max(_AT_ONCE // max(params[0][0].numel(), 1), 1)
    for start in range(0, len(params), at_once):
        yield params[start : start + at_once]


def _set(old: Tensor, new: Tensor, taken: Tensor | None) -> None:
    """old ← new, unless `taken`, [1] or [], is there and false."""
    if is_sharded(old) and is_sharded(new):
        old, new = old.to_local(), new.to_local()
    old.copy_(new if taken is None else torch.where(taken, new, old))
