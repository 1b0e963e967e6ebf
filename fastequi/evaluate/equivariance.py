"""Does a frozen encoder's pair of features tell which transformation lies between two images?

Border-free: both images of a pair are cut from a window with a margin, so that no empty corner
gives the angle away (with zero-filled corners, raw pixels of the turned image alone reach an R² of
0.83). Every table carries its floors: the raw pair by its best probe, the transformed image alone,
the same encoder at random initialisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
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
            absolute error in the parameter's unit.
        pooled: R² of all parameters as one (SIE's).
    """

    features: str
    probe: str
    r2: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    error: tuple[float, ...]
    pooled: float

    @property
    def mean(self) -> float:
        return sum(self.r2) / len(self.r2)


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
        """For the terminal; the first parameter with its interval and its median error."""
        title = f"R² on unseen parts, {self.train_pairs:,} / {self.test_pairs:,} pairs"
        table = Table(title=title, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
        table.add_column("features", no_wrap=True)
        table.add_column("probe", no_wrap=True)
        first, *others = self.names
        for name in (first, "95 %", *others, "mean", "pooled", f"|Δ{first}|"):
            table.add_column(name, justify="right", no_wrap=True)
        previous = ""
        for score in self.scores:
            value, *rest = (f"{v:.2f}" for v in (*score.r2, score.mean, score.pooled))
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
        For tokens the token probe, an MLP on the mean token and ridge on the mean token; for raw
        pixels the token probe on patches and an MLP on all pixels at half resolution. The MLPs
        are 512 wide.
    """
    scales = path.scales(views.image_size)
    scores: list[Score] = []

    def score(features: str, probe: str, pred: Tensor) -> None:
        scores.append(_score(features, probe, pred, test.params, scales))

    raw = {
        "transformed image alone": (train.after, test.after),
        "raw pair": (
            torch.cat([train.before, train.after], 1),
            torch.cat([test.before, test.after], 1),
        ),
    }
    for label, (x, x_test) in raw.items():
        on_row(label)
        small, small_test = (F.avg_pool2d(v, 2).flatten(1) for v in (x, x_test))
        score(label, "mlp", mlp_probe(small, train.params, small_test, fit, width=512))
        tokens, tokens_test = (_patches(v, patch_size) for v in (x, x_test))
        score(label, "token", token_probe(tokens, train.params, tokens_test, fit))
    for label, (features, names) in encoders.items():
        on_row(label)
        tokens_of, tokens_of_test = pair_tokens(features, train), pair_tokens(features, test)
        for name in names:
            row = f"{label}, {name}"
            on_row(row)
            x, x_test = tokens_of[name], tokens_of_test[name]
            score(row, "token", token_probe(x, train.params, x_test, fit))
            x, x_test = x.mean(1), x_test.mean(1)
            score(row, "mlp, mean token", mlp_probe(x, train.params, x_test, fit, width=512))
            score(row, "ridge, mean token", ridge_probe(x, train.params, x_test))
    return Report(path.names, len(train), len(test), tuple(scores))


def _score(
    features: str, probe: str, pred: Tensor, target: Tensor, scales: tuple[float, ...]
) -> Score:
    pred, target = pred.cpu(), target.cpu()
    low, high = bootstrap(pred, target, 200)
    error = (pred - target).abs().median(0).values * torch.tensor(scales)
    return Score(
        features,
        probe,
        r2=tuple(r2(pred, target).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        error=tuple(error.tolist()),
        pooled=pooled_r2(pred, target),
    )


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
