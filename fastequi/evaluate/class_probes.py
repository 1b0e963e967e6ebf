"""Classification probes on frozen features: nearest neighbours, linear, non-linear, few labels.

Nearest neighbours vote by their cosine (Wu et al., CVPR 2018, as in DINO's protocol). The linear
probe is multinomial logistic regression by L-BFGS, its penalty chosen on a random fifth of the
training set, then refitted on all of it.

RotNet's evaluation has three of its own, by Adam in batches, the rate falling linearly to 0:
logistic regression, its penalty chosen on the last fifth; two hidden layers of 200 with BatchNorm
and ReLU; a block of three convolutions on maps. Inputs of all but neighbours are standardised by
the training set. Nothing here draws from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.evaluate.probes import standardise

_PENALTIES = (1e-3, 1e-2, 1e-1)
_SWEEP, _SWEEP_STEPS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5), 50
_HIDDEN = 200
_CHANNELS = 192


def knn_classes(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    ks: Sequence[int] = (5, 10, 20, 200),
    *,
    temperature: float = 0.07,
    chunk: int = 512,
) -> dict[int, Tensor]:
    """Predicted classes [M] for every k: the k nearest by cosine vote with exp(cosine / T).

    Args:
        x, y, x_test: features [N, D], labels [N], features [M, D].
        ks: numbers of neighbours, at most N.
        temperature: T.
        chunk: test features at a time, which bounds the memory to [chunk, N].

    Raises:
        ValueError: a k outside 1 .. N.
    """
    wrong = [k for k in ks if not 1 <= k <= len(x)]
    if wrong or not ks:
        raise ValueError(f"ks: expected 1 .. {len(x)}, the training images, got {list(ks)}")
    x, classes = F.normalize(x.flatten(1), dim=1), int(y.max()) + 1
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in x_test.split(chunk):
        cosine, places = (F.normalize(part.flatten(1), dim=1) @ x.T).topk(max(ks))
        weight, label = ((cosine - 1) / temperature).exp(), y[places]
        for k in ks:
            votes = torch.zeros(len(part), classes, dtype=weight.dtype, device=x.device)
            found[k].append(votes.scatter_add_(1, label[:, :k], weight[:, :k]).argmax(1))
    return {k: torch.cat(parts) for k, parts in found.items()}


def linear_probe(
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    penalties: Sequence[float] = _SWEEP,
    seeds: Sequence[int] = (0,),
) -> list[tuple[Tensor, float]]:
    """For every seed, predicted classes [M] from features [N, D] and the penalty chosen.

    Args:
        x, y, x_test: features, labels [N], features [M, D].
        penalties: of mean cross-entropy + penalty / 2 · ‖weight‖²; the first of the best is taken.
        seeds: each draws the fifth that chooses.
    """
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))
    classes = int(y.max()) + 1
    chosen = [_choose(x, y, classes, penalties=penalties, seed=seed) for seed in seeds]
    pred = {}
    for penalty in set(chosen):
        weight, bias = fit_logistic(x, y, classes, penalty)
        pred[penalty] = (x_test @ weight + bias).argmax(1)
    return [(pred[penalty], penalty) for penalty in chosen]


def _choose(x: Tensor, y: Tensor, classes: int, *, penalties: Sequence[float], seed: int) -> float:
    if len(penalties) == 1:
        return penalties[0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    kept, held = order[len(x) // 5 :], order[: len(x) // 5]
    start, scores = None, []
    for penalty in penalties:  # neighbouring penalties have similar solutions
        start = fit_logistic(x[kept], y[kept], classes, penalty, start=start, steps=_SWEEP_STEPS)
        scores.append(accuracy((x[held] @ start[0] + start[1]).argmax(1), y[held]))
    return penalties[max(range(len(scores)), key=scores.__getitem__)]


def fit_logistic(
    x: Tensor,
    y: Tensor,
    classes: int,
    penalty: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 200,
) -> tuple[Tensor, Tensor]:
    """Weight [D, classes] and bias of logistic regression by L-BFGS, from `start` or zeros."""
    weight, bias = start or (x.new_zeros(x.shape[1], classes), x.new_zeros(classes))
    params = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(
        params,
        max_iter=steps,
        tolerance_grad=1e-5,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _objective(params[0], params[1], x, y, penalty=penalty)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return params[0].detach(), params[1].detach()


def _objective(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, *, penalty: float) -> Tensor:
    return F.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()


def linear_classes(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    """Predicted classes [M] from features [N, D] and labels [N]."""
    x, x_test = standardise(x.flatten(1), x_test.flatten(1))
    classes, kept = int(y.max()) + 1, len(x) - len(x) // 5
    scores = []
    for penalty in _PENALTIES:
        weight, bias = _logistic(x[:kept], y[:kept], classes, penalty, steps=300)
        scores.append(accuracy((x[kept:] @ weight + bias).argmax(1), y[kept:]))
    best = _PENALTIES[max(range(len(scores)), key=scores.__getitem__)]
    weight, bias = _logistic(x, y, classes, best)
    return (x_test @ weight + bias).argmax(1)


def _logistic(
    x: Tensor, y: Tensor, classes: int, penalty: float, *, steps: int = 600, lr: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy + penalty / 2 · ‖weight‖², from zeros."""
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)

    def loss(pick: Tensor) -> Tensor:
        return _objective(weight, bias, x[pick], y[pick], penalty=penalty)

    generator = torch.Generator().manual_seed(0)
    _descend([weight, bias], loss, len(x), steps=steps, lr=lr, generator=generator)
    return weight.detach(), bias.detach()


def _descend(
    params: list[Tensor],
    loss: Callable[[Tensor], Tensor],
    samples: int,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> None:
    """Adam on `loss` of indices into the training set, 256 at a time."""
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

    _descend(list(model.parameters()), loss, len(x), steps=steps, lr=1e-3, generator=generator)
    with torch.no_grad():
        return model.eval()(x_test).argmax(1)


def conv_classes(x: Tensor, y: Tensor, x_test: Tensor, steps: int = 600, seed: int = 0) -> Tensor:
    """Predicted classes [M] of three convolutions of 192 channels on maps [N, C, h, w]."""
    classes, channels = int(y.max()) + 1, x.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
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
    _descend(list(model.parameters()), loss, len(x), steps=steps, lr=1e-3, generator=generator)
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
    """Indices of `per_class` samples of every class, [classes · per_class].

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
    """Share of correct predictions."""
    return (pred == y).float().mean().item()


def interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n samples (Wilson's)."""
    z = 1.96
    middle, half = (
        share + z * z / (2 * n),
        z * math.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4),
    )
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)
