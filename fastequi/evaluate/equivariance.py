"""Does a frozen encoder's pair of features tell which transformation lies between two images?

Border-free: both images of a pair are cut from a window with a margin, so that no empty corner
gives the angle away (with zero-filled corners, raw pixels of the turned image alone reach an R² of
0.83). Every table carries its floors: the raw pair by its best probe, the transformed image alone,
the same encoder at random initialisation.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.table import Table
from torch import Tensor

from fastequi.data.batch import Batch, Views
from fastequi.evaluate.probes import (
    Fit,
    bootstrap,
    mlp_probe,
    pooled_r2,
    r2,
    ridge_probe,
    token_probe,
)
from fastequi.functional import warp
from fastequi.paths import Path

# The MLP and ridge get raw pixels averaged to this grid, the strongest floor of those tried: on a
# validation part an MLP on 8x8, 16x16 and all 32x32 pixels read the angle's R² as .83, .77, .73.
_RAW_GRID = 8

Features = Callable[[Tensor], dict[str, Tensor]]
"""Normalised images [B, 3, H, W] to tokens [B, L, D] by name ("patch", "z_inv", "z_equi")."""


@dataclass(frozen=True)
class Pairs:
    """Images and their transformed twins.

    Attributes:
        before, after: [N, 3, H, W], normalised.
        params: [N, P] of the transformation, over their half-ranges: in [-1, 1].
    """

    before: Tensor
    after: Tensor
    params: Tensor

    def __len__(self) -> int:
        return len(self.params)


@dataclass(frozen=True)
class Score:
    """One row: what one probe reads from one kind of features of the test pairs.

    Attributes:
        r2, low, high, error: per parameter: R², its 95 % bootstrap interval, and the median
            absolute error in the parameter's unit; all of them means over the probe's seeds.
        pooled: R² of all parameters as one (SIE's).
        seeds: the mean R² of every seed; ridge has one value.
    """

    features: str
    probe: str
    r2: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    error: tuple[float, ...]
    pooled: float
    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.r2) / len(self.r2)

    @property
    def spread(self) -> float:
        """Standard deviation of the mean R² over the probe's seeds."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else 0.0


@dataclass(frozen=True)
class Report:
    """The table of one encoder.

    Attributes:
        names: of the path's parameters.
        train_pairs, test_pairs: how many the probes were fitted and judged on.
    """

    names: tuple[str, ...]
    train_pairs: int
    test_pairs: int
    scores: tuple[Score, ...]

    def best(self, features: str) -> Score:
        """The row of the probe that reads most, by the mean R²."""
        rows = [score for score in self.scores if score.features == features]
        if not rows:
            raise KeyError(f"features: no row {features!r} in {[s.features for s in self.scores]}")
        return max(rows, key=lambda score: score.mean)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """For the terminal; the first parameter with its interval and its median error.

        Behind ± stands the standard deviation of the mean R² over the probes' seeds.
        """
        seeds = max((len(score.seeds) for score in self.scores), default=1)
        title = (
            f"R² on unseen parts, {self.train_pairs:,} / {self.test_pairs:,} pairs, {seeds} seeds"
        )
        table = Table(title=title, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
        table.add_column("features", no_wrap=True)
        table.add_column("probe", no_wrap=True)
        first, *others = self.names
        for name in (first, "95 %", *others, "mean", "pooled", f"|Δ{first}|"):
            table.add_column(name, justify="right", no_wrap=True)
        previous = ""
        for score in self.scores:
            value, *rest = (f"{v:.2f}" for v in (*score.r2, score.mean, score.pooled))
            rest[-2] += f" ±{score.spread:.2f}"
            interval = f"{score.low[0]:.2f}..{score.high[0]:.2f}"
            label = "" if score.features == previous else score.features
            table.add_row(label, score.probe, value, interval, *rest, f"{score.error[0]:.1f}")
            previous = score.features
        return table


def collect_pairs(batches: Iterable[Batch], path: Path, views: Views, n: int) -> Pairs:
    """The first n border-free pairs of un-augmented batches: u as it is, and u transformed."""
    size = (views.image_size, views.image_size)
    scales = torch.tensor(path.scales(views.image_size))
    before, after, params = [], [], []
    options: dict[str, Any] = {"size": size, "mean": views.mean, "std": views.std}
    options["padding_mode"] = views.padding_mode
    count = 0
    for batch in batches:
        points = path.at(batch.path, (0.0, 1.0), size, views.zoom)
        if points.sigma is not None:
            raise ValueError("path: pairs along the blur path are not border-free windows")
        both = warp(batch.u, points.theta, color=points.color, **options)
        before.append(both[:, 0])
        after.append(both[:, 1])
        params.append(batch.path / scales.to(batch.path.device))
        count += len(batch)
        if count >= n:
            break
    if count < n:
        raise ValueError(f"batches: expected at least {n} images, got {count}")
    return Pairs(*(torch.cat(part)[:n] for part in (before, after, params)))


@torch.no_grad()
def pair_tokens(features: Features, pairs: Pairs, batch: int = 1000) -> dict[str, Tensor]:
    """Tokens of both images side by side: name to [N, L, 2·D]."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(pairs), batch):
        part = slice(start, start + batch)
        first, second = features(pairs.before[part]), features(pairs.after[part])
        for name in first:
            parts.setdefault(name, []).append(torch.cat([first[name], second[name]], -1).float())
    return {name: torch.cat(tokens) for name, tokens in parts.items()}


def evaluate(
    encoders: dict[str, tuple[Features, tuple[str, ...]]],
    train: Pairs,
    test: Pairs,
    path: Path,
    views: Views,
    patch_size: int,
    fit: Fit = Fit(),  # noqa: B008
    on_row: Callable[[str], None] = lambda _: None,
) -> Report:
    """Floors first, then every kind of features of every encoder.

    Args:
        encoders: label ("TIR", "random init") to features, and which of them to judge.
        train, test: pairs of disjoint image regions.
        path: whose parameters are read.
        views: of the pairs.
        patch_size: of the raw pixels' tokens.
        fit: of the MLPs, the same for every row.
        on_row: told what comes next.

    Returns:
        For tokens the token probe, and an MLP and ridge on the mean token; for raw pixels the token
        probe on patches, and an MLP and ridge on pixels averaged to 8x8.
    """
    scales = path.scales(views.image_size)
    scores: list[Score] = []
    for label, pooling, tokens, pooled in _rows(encoders, train, test, patch_size, on_row):
        predictions = {
            "token": token_probe(tokens[0], train.params, tokens[1], fit),
            f"mlp{pooling}": mlp_probe(pooled[0], train.params, pooled[1], fit),
            f"ridge{pooling}": ridge_probe(pooled[0], train.params, pooled[1])[None],
        }
        for probe, pred in predictions.items():
            scores.append(_score(label, probe, pred, test.params, scales))
    return Report(path.names, len(train), len(test), tuple(scores))


_Split = tuple[Tensor, Tensor]  # of the training and of the test pairs


def _rows(
    encoders: dict[str, tuple[Features, tuple[str, ...]]],
    train: Pairs,
    test: Pairs,
    patch_size: int,
    on_row: Callable[[str], None],
) -> Iterator[tuple[str, str, _Split, _Split]]:
    """What is probed: (label, how it was pooled, tokens, pooled features)."""
    raw = {
        "transformed image alone": (train.after, test.after),
        "raw pair": (
            torch.cat([train.before, train.after], 1),
            torch.cat([test.before, test.after], 1),
        ),
    }
    for label, (x, x_test) in raw.items():
        on_row(label)
        patches = _patches(x, patch_size), _patches(x_test, patch_size)
        yield label, "", patches, (_grid(x), _grid(x_test))
    for label, (features, names) in encoders.items():
        on_row(label)
        of_train, of_test = pair_tokens(features, train), pair_tokens(features, test)
        for name in names:
            on_row(f"{label}, {name}")
            x, x_test = of_train[name], of_test[name]
            yield f"{label}, {name}", ", mean token", (x, x_test), (x.mean(1), x_test.mean(1))


def _score(
    features: str, probe: str, pred: Tensor, target: Tensor, scales: tuple[float, ...]
) -> Score:
    pred, target = pred.cpu(), target.cpu()
    low, high = bootstrap(pred, target, 200)
    per_seed = r2(pred, target)
    error = (pred - target).abs().flatten(0, 1).median(0).values * torch.tensor(scales)
    return Score(
        features,
        probe,
        r2=tuple(per_seed.mean(0).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        error=tuple(error.tolist()),
        pooled=statistics.fmean(pooled_r2(seed, target) for seed in pred),
        seeds=tuple(per_seed.mean(1).tolist()),
    )


def _grid(images: Tensor) -> Tensor:
    """[N, C, H, W] averaged to at most 8x8, flattened."""
    return F.adaptive_avg_pool2d(images, min(_RAW_GRID, images.shape[-1])).flatten(1)


def _patches(images: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] to [N, L, p·p·C]."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def psnr(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB of normalised images [..., 3, H, W], each in 0..1 first."""
    mean_t, std_t = (torch.tensor(v, device=pred.device).view(3, 1, 1) for v in (mean, std))
    difference = ((pred * std_t + mean_t).clamp(0, 1) - (target * std_t + mean_t)).square()
    return -10 * difference.mean((-1, -2, -3)).clamp(min=1e-10).log10()


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, 3, H, W]: for every step the view it lies closer to, u itself (v1) for a draw."""
    ahead = [k / (num_steps + 1) > 0.5 for k in range(1, num_steps + 1)]
    return torch.stack([v2 if later else v1 for later in ahead], 1)
