"""Probes: small regressors on frozen features, the same for every row of a table.

Three are used. Ridge regression, exact, its penalty chosen on a validation split. An MLP on pooled
features. A token probe, linear to 64 per token, flattened, then an MLP: what a path teaches sits in
the tokens before it reaches their mean. Inputs are standardised by the training set. Nothing here
draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class Fit:
    """How the MLPs are trained: Adam, the rate falling linearly to 0."""

    epochs: int = 15
    batch: int = 256
    lr: float = 1e-3
    seed: int = 0


def r2(pred: Tensor, target: Tensor) -> Tensor:
    """Coefficient of determination of every column: 1 - SS_res / SS_tot, [N, P] to [P]."""
    residual = (pred - target).square().sum(0)
    return 1 - residual / (target - target.mean(0)).square().sum(0)


def pooled_r2(pred: Tensor, target: Tensor) -> float:
    """R² over all columns as one, about one scalar mean, as SIE's protocol computes it."""
    residual = (pred - target).square().sum()
    return (1 - residual / (target - target.mean()).square().sum()).item()


def bootstrap(
    pred: Tensor, target: Tensor, draws: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """95 % interval of :func:`r2` over resampled test pairs: (low [P], high [P])."""
    generator = torch.Generator().manual_seed(seed)
    n = len(target)
    scores = torch.empty(draws, target.shape[1])
    for i in range(draws):
        pick = torch.randint(n, (n,), generator=generator)
        scores[i] = r2(pred[pick], target[pick])
    low, high = scores.quantile(torch.tensor([0.025, 0.975]), 0)
    return low, high


def ridge_probe(
    x: Tensor, y: Tensor, x_test: Tensor, penalties: Sequence[float] = _PENALTIES
) -> Tensor:
    """Predictions [M, P] of ridge regression in float64, from features [N, D] and targets [N, P].

    The penalty is the best on the last fifth of the training set; then all of it is fitted.
    """
    _check(x, y, x_test)
    x, x_test = standardise(x.flatten(1).double(), x_test.flatten(1).double())
    y = y.double()
    kept = len(x) - len(x) // 5
    scores = []
    for penalty in penalties:
        predicted = _solve(x[:kept], y[:kept], penalty)(x[kept:])
        scores.append(r2(predicted, y[kept:]).mean() if kept < len(x) else torch.tensor(0.0))
    best = penalties[int(torch.stack(scores).argmax())]
    return _solve(x, y, best)(x_test).float()


def _solve(x: Tensor, y: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y)
    return lambda new: (new - mean_x) @ weight + mean_y


def mlp_probe(x: Tensor, y: Tensor, x_test: Tensor, fit: Fit = Fit(), width: int = 1024) -> Tensor:
    """Predictions [M, P] of an MLP width-width on features [N, D], flattened."""
    _check(x, y, x_test)
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))

    def network() -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, y.shape[1]),
        )

    return _train(network, x, y, x_test, fit)


def token_probe(x: Tensor, y: Tensor, x_test: Tensor, fit: Fit = Fit()) -> Tensor:
    """Predictions [M, P] from tokens [N, L, D]: linear to 64 each, flattened, MLP of 256."""
    _check(x, y, x_test)
    x, x_test = standardise(x, x_test)

    def network() -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(x.shape[2], 64), nn.Flatten(), nn.ReLU()),
            *(nn.Linear(64 * x.shape[1], 256), nn.ReLU(), nn.Linear(256, y.shape[1])),
        )

    return _train(network, x, y, x_test, fit)


def _train(
    network: Callable[[], nn.Module], x: Tensor, y: Tensor, x_test: Tensor, fit: Fit
) -> Tensor:
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(fit.seed)
        model = network().to(x.device)
    generator = torch.Generator().manual_seed(fit.seed)
    optimizer = torch.optim.Adam(model.parameters(), fit.lr, weight_decay=1e-4, fused=True)
    steps, step = fit.epochs * -(-len(x) // fit.batch), 0
    with torch.enable_grad():
        for _ in range(fit.epochs):
            for pick in torch.randperm(len(x), generator=generator).split(fit.batch):
                optimizer.param_groups[0]["lr"] = fit.lr * (1 - step / steps)
                optimizer.zero_grad()
                F.mse_loss(model(x[pick]), y[pick]).backward()
                optimizer.step()
                step += 1
    with torch.no_grad():
        return torch.cat([model(part) for part in x_test.split(1024)])


def standardise(x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit deviation per channel (last axis), by the training set's figures."""
    axes = tuple(range(x.ndim - 1))
    mean, scale = x.mean(axes), x.std(axes) + 1e-6
    return (x - mean) / scale, (x_test - mean) / scale


def _check(x: Tensor, y: Tensor, x_test: Tensor) -> None:
    if len(x) < 2 or len(x_test) < 1 or len(x) != len(y) or x.shape[1:] != x_test.shape[1:]:
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)}, {tuple(x_test.shape)}"
        raise ValueError(f"x, y, x_test: expected [N, ...], [N, P], [M, ...], N > 1, got {shapes}")
    for name, value in (("x", x), ("y", y), ("x_test", x_test)):
        if not value.isfinite().all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
