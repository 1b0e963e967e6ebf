"""Probes: small regressors on frozen features, the same for every row of a table.

There are four. Ridge regression, exact, its penalty chosen on a validation split. An MLP on pooled
features. A token probe, linear to 64 per token, flattened, then an MLP: the mean of the tokens
keeps less of a transformation than the tokens. An MLP on the cosines between all tokens of one
image and all of the other, the correlation layer of networks that estimate motion (Rocco et al.,
Convolutional neural network architecture for geometric matching, CVPR 2017, section 3.2): it sees
where things went, and not what they are, so it needs fewer pairs. Inputs are standardised by the
training set. Nothing here draws from torch's global generator.

The MLPs are fitted from several initialisations at once: a leading axis holds the seeds, so that
three networks take one pass over the data with three times the arithmetic. Their first layers,
which have the same input, are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.runtime.side_by_side import expect_wanted

_PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@dataclass(frozen=True)
class Fit:
    """How the MLPs are trained: Adam with weight decay 1e-4, the rate falling linearly to 0.

    Attributes:
        width: of the MLP's hidden layers.
        seeds: networks fitted side by side, of different initialisations.
        seed: of the first initialisation and of the order of the pairs.
        dtype: of the multiplications while fitting; bfloat16 where it is fast.
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 1e-3
    width: int = 1024
    seeds: int = 3
    seed: int = 0
    dtype: torch.dtype = torch.float32


def r2(pred: Tensor, target: Tensor) -> Tensor:
    """Coefficient of determination of columns: 1 - SS_res / SS_tot, [..., N, P] to [..., P]."""
    residual = (pred - target).square().sum(-2)
    return 1 - residual / (target - target.mean(-2, keepdim=True)).square().sum(-2)


def pooled_r2(pred: Tensor, target: Tensor) -> float:
    """R² over all columns as one, about one scalar mean, as SIE's protocol computes it."""
    residual = (pred - target).square().sum()
    return (1 - residual / (target - target.mean()).square().sum()).item()


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


def mlp_probe(x: Tensor, y: Tensor, x_test: Tensor, fit: Fit = Fit()) -> Tensor:
    """Predictions [S, M, P] of MLPs width-width on features [N, D], flattened, one per seed."""
    _check(x, y, x_test)
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))
    sizes = (x.shape[1], fit.width, fit.width, y.shape[1])
    return _train(_MLP(sizes, _initial(fit), fit.seeds), x, y, x_test, fit=fit)


def token_probe(x: Tensor, y: Tensor, x_test: Tensor, fit: Fit = Fit()) -> Tensor:
    """Predictions [S, M, P] from tokens [N, L, D]: linear to 64 each, flattened, MLP of 256."""
    _check(x, y, x_test)
    x, x_test = standardise(x, x_test)
    generator = _initial(fit)
    network = nn.Sequential(
        _Linears(x.shape[2], 64, generator, fit.seeds),
        nn.Flatten(2),
        _MLP((64 * x.shape[1], 256, y.shape[1]), generator, fit.seeds),
    )
    return _train(network, x, y, x_test, fit=fit)


def cosine_probe(x: Tensor, y: Tensor, x_test: Tensor, fit: Fit = Fit()) -> Tensor:
    """Predictions [S, M, P] of MLPs on the cosines of tokens [N, L, 2 D] of both images side by
    side, see :func:`token_cosines`; half as wide as the MLP on means."""
    if x.ndim != 3 or x.shape[2] % 2 or not x.shape[2]:
        raise ValueError(f"x: expected tokens of two images [N, L, 2 D], got {tuple(x.shape)}")
    _check(x, y, x_test)
    cosines, cosines_test = token_cosines(x, x_test)
    return mlp_probe(cosines, y, cosines_test, replace(fit, width=max(fit.width // 2, 1)))


_SIDE = 8  # places along a side at most: 4096 cosines of a pair


def token_cosines(x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of tokens, [N, M M], from tokens [N, L, 2 D] of two images side by side.

    Tokens of more than 8x8 places are averaged to as many. What training images have in common
    at a place is taken from its tokens, and every channel is divided by its deviation.
    """
    common = _mean([_places(part).sum((0, 1)) for part in _both(x)], 2 * len(x))
    squares = [(_places(part) - common).square().sum((0, 1, 2)) for part in _both(x)]
    scale = _mean(squares, 2 * len(x) * len(common)).sqrt()
    scale = torch.where(scale > _constant(common.abs().amax(0)), scale, 1.0)

    def cosines(tokens: Tensor) -> Tensor:
        found = []
        for part in _both(tokens):
            first, second = F.normalize((_places(part) - common) / scale, dim=-1)
            found.append((first @ second.transpose(1, 2)).flatten(1))
        return torch.cat(found)

    return cosines(x), cosines(x_test)


def _both(x: Tensor) -> Iterator[Tensor]:
    """[N, L, 2 D] as [2, n, L, D], some pairs at a time."""
    for part in x.split(256):
        yield torch.stack(part.chunk(2, -1))


def _places(x: Tensor) -> Tensor:
    """[..., L, D] to at most 64 places."""
    if x.shape[-2] <= _SIDE * _SIDE:
        return x
    side = math.isqrt(x.shape[-2])
    maps = x.flatten(0, -3).transpose(1, 2)
    if side * side == x.shape[-2]:
        maps = F.adaptive_avg_pool2d(maps.unflatten(2, (side, side)), _SIDE).flatten(2)
    else:
        maps = F.adaptive_avg_pool1d(maps, _SIDE * _SIDE)
    return maps.transpose(1, 2).unflatten(0, x.shape[:-2])


def _mean(sums: Sequence[Tensor], count: int) -> Tensor:
    return torch.stack(list(sums)).sum(0) / count


class _Linears(nn.Module):
    """A linear layer per seed, initialised as nn.Linear is: [S or 1, N, ..., in] to [S, N, ...]."""

    def __init__(self, dim: int, out: int, generator: torch.Generator, seeds: int) -> None:
        super().__init__()
        weight = 2 * torch.rand(seeds, dim, out, generator=generator) - 1
        bias = 2 * torch.rand(seeds, 1, out, generator=generator) - 1
        self.weight, self.bias = (nn.Parameter(v * dim**-0.5) for v in (weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, -2)
        if len(rows) < len(self.weight):  # the same input for all
            each = F.linear(rows[0], self.weight.transpose(1, 2).flatten(0, 1), self.bias.flatten())
            out = each.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        else:
            out = torch.baddbmm(self.bias, rows, self.weight)
        return out.unflatten(1, x.shape[1:-1])


class _MLP(nn.Sequential):
    def __init__(self, sizes: Sequence[int], generator: torch.Generator, seeds: int) -> None:
        super().__init__()
        for dim, out in pairwise(sizes):
            self.append(_Linears(dim, out, generator, seeds))
            self.append(nn.ReLU())
        del self[-1]


def _initial(fit: Fit) -> torch.Generator:
    return torch.Generator().manual_seed(fit.seed)


def _train(model: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, *, fit: Fit) -> Tensor:
    model.to(x.device)
    generator = _initial(fit)
    optimizer = torch.optim.Adam(model.parameters(), fit.lr, weight_decay=1e-4, fused=True)
    steps, step = fit.epochs * -(-len(x) // fit.batch), 0
    half = fit.dtype != torch.float32
    x, y = x.to(fit.dtype), y.expand(fit.seeds, *y.shape)
    with torch.enable_grad():
        for _ in range(fit.epochs):
            for pick in torch.randperm(len(x), generator=generator).split(fit.batch):
                expect_wanted()
                optimizer.param_groups[0]["lr"] = fit.lr * (1 - step / steps)
                optimizer.zero_grad()
                with torch.autocast(x.device.type, dtype=fit.dtype, enabled=half):
                    pred = model(x[pick][None])
                # a mean over the batch, a sum over the seeds: each learns as if alone
                (F.mse_loss(pred.float(), y[:, pick]) * fit.seeds).backward()
                optimizer.step()
                step += 1
    with torch.no_grad():
        return torch.cat([model(part[None]) for part in x_test.split(500)], 1)


def standardise(x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit deviation per channel (last axis), with the training set's statistics.

    A channel that is constant on the training set is only centred, as dividing by its deviation
    would blow up the test set's values.
    """
    rows = x.flatten(0, -2)
    mean = rows.mean(0)
    squares = torch.stack([(part - mean).square().sum(0) for part in rows.split(8192)])
    scale = (squares.sum(0) / (len(rows) - 1)).sqrt()  # x.std takes more than twice as long
    scale = torch.where(scale > _constant(mean.abs()), scale, 1.0)
    return (x - mean) / scale, (x_test - mean) / scale


def _constant(size: Tensor) -> Tensor:
    """The deviation of a constant channel of that size, at most: the rounding of its mean."""
    return 1e-6 * size.clamp(min=1)


def _check(x: Tensor, y: Tensor, x_test: Tensor) -> None:
    if len(x) < 2 or len(x_test) < 1 or len(x) != len(y) or x.shape[1:] != x_test.shape[1:]:
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)}, {tuple(x_test.shape)}"
        raise ValueError(f"x, y, x_test: expected [N, ...], [N, P], [M, ...], N > 1, got {shapes}")
    for name, value in (("x", x), ("y", y), ("x_test", x_test)):
        if not torch.stack(value.aminmax()).isfinite().all():  # one pass; NaN goes through
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
