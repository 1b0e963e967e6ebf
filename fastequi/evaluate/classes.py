"""Classification probes on frozen features: linear and non-linear, with all labels or a few.

Linear: multinomial logistic regression, its penalty chosen on the last fifth of the training set,
then refitted on all of it. Non-linear: two hidden layers of 200 with BatchNorm and ReLU; on maps a
block of three convolutions and their mean: RotNet's evaluation. All by Adam in batches, the rate
falling linearly to 0. Inputs are standardised by the training set. Nothing here draws from torch's
global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.evaluate.probes import standardise

_PENALTIES = (1e-3, 1e-2, 1e-1)
_HIDDEN = 200
_CHANNELS = 192


def linear_classes(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Predicted classes [M] from features [N, D] and labels [N]."""
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))
    classes, kept = int(y.max()) + 1, len(x) - len(x) // 5
    scores = []
    for penalty in _PENALTIES:
        weight, bias = _logistic(x[:kept], y[:kept], classes, penalty, 300)
        scores.append(accuracy((x[kept:] @ weight + bias).argmax(1), y[kept:]))
    best = _PENALTIES[max(range(len(scores)), key=scores.__getitem__)]
    weight, bias = _logistic(x, y, classes, best)
    return (x_test @ weight + bias).argmax(1)


def _logistic(
    x: Tensor, y: Tensor, classes: int, penalty: float, steps: int = 600, lr: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy + penalty / 2 · ‖weight‖², from zeros."""
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)

    def loss(pick: Tensor) -> Tensor:
        fit = F.cross_entropy(x[pick] @ weight + bias, y[pick])
        return fit + penalty / 2 * weight.square().sum()

    _descend([weight, bias], loss, len(x), steps, lr, torch.Generator().manual_seed(0))
    return weight.detach(), bias.detach()


def _descend(
    params: list[Tensor], loss: Callable[[Tensor], Tensor], samples: int, steps: int, lr: float,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Adam on `loss` of places in the training set, 256 at a time."""
    optimizer = torch.optim.Adam(params, lr, fused=True)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for step in range(steps):
            if len(order) < min(256, samples):
                order = torch.randperm(samples, generator=generator)
            pick, order = order[:256], order[256:]
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            loss(pick).backward()
            optimizer.step()


def nonlinear_classes(
    x: Tensor, y: Tensor, x_test: Tensor, steps: int = 600, seed: int = 0
) -> Tensor:
    """Predicted classes [M] of an MLP 200-200 with BatchNorm on features [N, D]."""
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    width = x.shape[1]
    for _ in range(2):
        layers += [_linear(width, _HIDDEN, generator), nn.BatchNorm1d(_HIDDEN), nn.ReLU()]
        width = _HIDDEN
    model = nn.Sequential(*layers, _linear(width, int(y.max()) + 1, generator)).to(x.device)

    def loss(pick: Tensor) -> Tensor:
        return F.cross_entropy(model(x[pick]), y[pick])

    _descend(list(model.parameters()), loss, len(x), steps, 1e-3, generator)
    with torch.no_grad():
        return model.eval()(x_test).argmax(1)


def conv_classes(x: Tensor, y: Tensor, x_test: Tensor, steps: int = 600, seed: int = 0) -> Tensor:
    """Predicted classes [M] of three convolutions of 192 channels on maps [N, C, h, w]."""
    classes, channels = int(y.max()) + 1, x.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for size in (3, 1, 1):
            conv = nn.Conv2d(channels, _CHANNELS, size, padding=size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(_CHANNELS), nn.ReLU()]
            channels = _CHANNELS
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model.append(nn.Linear(channels, classes))
    mean, scale = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True) + 1e-6
    model.to(x.device)

    def logits(maps: Tensor) -> Tensor:
        return model(((maps - mean) / scale).contiguous(memory_format=torch.channels_last))

    def loss(pick: Tensor) -> Tensor:
        return F.cross_entropy(logits(x[pick]), y[pick])

    generator = torch.Generator().manual_seed(seed)
    _descend(list(model.parameters()), loss, len(x), steps, 1e-3, generator)
    model.eval()
    with torch.no_grad():
        return torch.cat([logits(part).argmax(1) for part in x_test.split(500)])


def _linear(dim: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, dim, out)
    with torch.no_grad():
        for param in (layer.weight, layer.bias):
            param.copy_((2 * torch.rand(param.shape, generator=generator) - 1) * dim**-0.5)
    return layer


def few_labels(y: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """Places of `per_class` samples of every class, [classes · per_class].

    Raises:
        ValueError: a class has fewer.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    picks = []
    for label in y.unique().tolist():
        found = order[y[order] == label]
        if len(found) < per_class:
            raise ValueError(
                f"per_class: expected at most {len(found)}, as class {label} has, got {per_class}"
            )
        picks.append(found[:per_class])
    return torch.cat(picks)


def accuracy(pred: Tensor, y: Tensor) -> float:
    """Share of predictions that are right."""
    return (pred == y).float().mean().item()


def interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n samples (Wilson's)."""
    z = 1.96
    middle, half = (
        share + z * z / (2 * n),
        z * math.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4),
    )
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
