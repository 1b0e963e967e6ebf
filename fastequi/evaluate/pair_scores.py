"""R² of a transformation's parameters, predicted by probes from the features of image pairs.

Pairs are border-free (`fastequi.evaluate.pairs`). Every table has its baselines: a prediction that
is always the mean, the raw pair, the transformed image alone, a few statistics of the pixels (which
alone predict much of colour and blur), and the same encoder at random initialisation.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from fastequi.evaluate.baselines import grid, patches, pixel_statistics
from fastequi.evaluate.encoders import Features
from fastequi.evaluate.intervals import middle95, resampled_r2
from fastequi.evaluate.pairs import Pairs, joined
from fastequi.evaluate.probes import Fit, mlp_probe, pooled_r2, r2, ridge_probe, token_probe
from fastequi.evaluate.results import Row
from fastequi.runtime.side_by_side import side_by_side

PROBES = ("token", "mlp", "ridge")
PIXELS = ("transformed image alone", "raw pair", "pixel statistics")

_DRAWS = 1000  # of the bootstrap
_BATCH = 1000  # pairs at a time
_ON_CPU = 64  # 1.3 times as fast at 32 px: what a layer writes is still in the cache


@dataclass(frozen=True, kw_only=True)
class Score(Row):
    """One row: how well one probe predicts the test pairs' parameters from one kind of features.

    Attributes:
        probe: "constant", or of "token", "mlp", "ridge", with ", mean token" where tokens were
            averaged first.
        r2, low, high: per parameter: R², a mean over the probe's seeds, and its 95 % interval over
            photographs, see `fastequi.evaluate.intervals`.
        error: the median absolute error of all seeds, in the parameter's unit.
        mean_low, mean_high: 95 % interval of the mean R².
        pooled: R² of all parameters as one (SIE's).
        seeds: the mean R² of every seed; ridge has one value.
    """

    probe: str
    r2: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    error: tuple[float, ...]
    mean_low: float
    mean_high: float
    pooled: float
    seeds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.r2) / len(self.r2)

    @property
    def spread(self) -> float:
        """Standard deviation of the mean R² over the probe's seeds."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Its fields and its "mean" R²."""
        return {**super().to_json(), "mean": self.mean}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """R² of a row less that of another one, both by their best probes, on the same test pairs.

    Attributes:
        label, probe: of the row.
        against, against_probe: of the other one.
        r2, low, high: per parameter: the difference and its paired 95 % interval: in every draw of
            the bootstrap both rows are scored on the same photographs.
        mean, mean_low, mean_high: of the mean over parameters.
    """

    label: str
    probe: str
    against: str
    against_probe: str
    r2: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: float
    mean_low: float
    mean_high: float

    def sentence(self, names: Sequence[str]) -> str:
        """ "angle +0.07 [0.03, 0.11], tx ...": of parameters of these names, and their mean."""
        parts = zip((*names, "mean"), (*self.r2, self.mean), (*self.low, self.mean_low),
                    (*self.high, self.mean_high), strict=True)  # fmt: skip
        return ", ".join(f"{n} {v:+.2f} [{low:.2f}, {high:.2f}]" for n, v, low, high in parts)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The table of one set of test pairs.

    Attributes:
        names: of the path's parameters.
        train_pairs, test_pairs: how many the probes were fitted and tested on.
        photographs: that the test pairs are from.
        differences: of every trained encoder's features from every baseline, and from the encoders
            after it.
    """

    names: tuple[str, ...]
    train_pairs: int
    test_pairs: int
    photographs: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]

    def best(self, label: str) -> Score:
        """Of the rows with a label ("tir, z_equi", "raw pair") the one with the largest mean R²."""
        rows = [score for score in self.scores if score.label == label]
        if not rows:
            raise KeyError(f"label: no row {label!r} in {[s.label for s in self.scores]}")
        return max(rows, key=lambda score: score.mean)

    def best_baseline(self) -> Score:
        """Of the baselines' rows the one with the largest mean R²."""
        return max((s for s in self.scores if s.is_baseline), key=lambda score: score.mean)

    def difference(self, label: str, against: str) -> Difference:
        """Between the best rows with these labels."""
        found = [d for d in self.differences if (d.label, d.against) == (label, against)]
        if not found:
            known = [(d.label, d.against) for d in self.differences]
            raise KeyError(f"label, against: no difference {(label, against)} in {known}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """Its fields; every row also with its "mean" R²."""
        scores = [score.to_json() for score in self.scores]
        return {**dataclasses.asdict(self), "scores": scores}

    def table(self, title: str = "R² on unseen parts") -> Table:
        """For the terminal; the first parameter with its interval and its median error.

        Without an interval where there is one test photograph: it would say nothing of others.
        Behind ± stands the standard deviation of the mean R² over the probes' seeds.
        """
        seeds = max((len(score.seeds) for score in self.scores), default=1)
        single = self.photographs == 1
        tested = "1 test image, so no interval" if single else f"{self.photographs} test images"
        pairs = f"{self.train_pairs:,} / {self.test_pairs:,} pairs, {tested}"
        title = f"{title}, {pairs}, {seeds} seeds"
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
            interval = "–" if single else f"{score.low[0]:.2f}..{score.high[0]:.2f}"
            label = "" if score.label == previous else score.label
            table.add_row(label, score.probe, value, interval, *rest, f"{score.error[0]:.3g}")
            previous = score.label
        return table


@torch.no_grad()
def pair_tokens(
    features: Features,
    names: Sequence[str],
    pairs: Pairs,
    pooled: bool = False,
) -> dict[str, Tensor]:
    """Tokens of both images side by side: name to [N, L, 2·D], [N, 1, 2·D] if `pooled`."""
    parts: dict[str, list[Tensor]] = {}
    batch = _ON_CPU if pairs.before.device.type == "cpu" else _BATCH
    for start in range(0, len(pairs), batch):
        part = slice(start, start + batch)
        first, second = (features(x[part].float()) for x in (pairs.before, pairs.after))
        for name in names:
            both = torch.cat([first[name], second[name]], -1).float()
            parts.setdefault(name, []).append(both.mean(1, keepdim=True) if pooled else both)
    return {name: torch.cat(tokens) for name, tokens in parts.items()}


class Probed(NamedTuple):
    """An encoder as :func:`score_pairs` takes it: which of its features get rows."""

    features: Features
    names: tuple[str, ...]
    is_baseline: bool = False


def score_pairs(
    encoders: Mapping[str, Probed],
    train: Pairs,
    tests: Sequence[Pairs],
    *,
    patch_size: int,
    fit: Fit = Fit(),  # noqa: B008
    probes: Sequence[str] = PROBES,
    fewer: Sequence[int] = (),
    pixels: Sequence[str] = PIXELS,
    on_row: Callable[[str, float], None] = lambda label, share: None,
) -> dict[int, list[Report]]:
    """Baselines first, then every kind of features of every encoder; a report for each test set.

    Args:
        encoders: by the names that rows have ("tir", "random init").
        train, tests: pairs of disjoint image regions; every probe is fitted once.
        patch_size: of the raw pixels' tokens.
        fit: of the MLPs, the same for every row.
        probes: of "token", "mlp", "ridge".
        fewer: numbers of training pairs that the probes are fitted on once more, the first ones.
        pixels: of `PIXELS`, the baselines that need no encoder.
        on_row: called with the label of the row that comes next, and the share of rows done.

    Returns:
        By the number of training pairs, all of them first, the reports of every test set. For
        tokens the token probe, and an MLP and ridge on the mean token; for raw pixels the token
        probe on patches, and an MLP and ridge on pixels averaged to 8x8.
    """
    for what, chosen, known in (("probes", probes, PROBES), ("pixels", pixels, PIXELS)):
        if not chosen or set(chosen) - set(known):
            raise ValueError(f"{what}: expected some of {', '.join(known)}, got {list(chosen)}")
    sizes = len(train), *fewer
    if not all(2 <= n <= len(train) for n in sizes) or len(set(sizes)) < len(sizes):
        raise ValueError(f"fewer: expected different numbers of 2..{len(train) - 1}, got {fewer}")
    rows: dict[int, list[list[_Drawn]]] = {n: [[] for _ in tests] for n in sizes}

    def add(n: int, row: Row, probe: str, pred: Tensor) -> None:
        parts = pred.split([len(test) for test in tests], 1)
        for test, part, scores in zip(tests, parts, rows[n], strict=True):
            scores.append(_score(row, probe, part, test))

    for n in sizes:
        mean = train.params[:n].mean(0).expand(1, sum(map(len, tests)), -1)
        add(n, _baseline("mean predictor"), "constant", mean)
    count, total = 0, len(pixels) + sum(len(each.names) for each in encoders.values())

    def begun(label: str) -> None:
        on_row(label, count / total)

    inputs = _inputs(
        encoders,
        train,
        joined(tests),
        patch_size=patch_size,
        probes=probes,
        pixels=pixels,
        on_row=begun,
    )
    for found in inputs:
        named = list(_fits(found, train.params, sizes, probes, fit))
        predicted = side_by_side([job for *_, job in named], train.params.device)
        for (n, probe, _), pred in zip(named, predicted, strict=True):
            add(n, found.row, probe, pred)
        del named
        count += 1
    return {
        n: [
            Report(
                names=train.names,
                train_pairs=n,
                test_pairs=len(test),
                photographs=len(test.photographs.unique()),
                scores=tuple(drawn.score for drawn in scores),
                differences=_differences(scores),
            )
            for test, scores in zip(tests, rows[n], strict=True)
        ]
        for n in sizes
    }


class _Drawn(NamedTuple):
    """A row, and its R² [draws, P] on the bootstrap's photographs, which are every row's."""

    score: Score
    r2: Tensor


def _differences(rows: Sequence[_Drawn]) -> tuple[Difference, ...]:
    best: dict[str, _Drawn] = {}
    for row in rows:
        label = row.score.label
        if label not in best or row.score.mean > best[label].score.mean:
            best[label] = row
    found = []
    encoders = list(dict.fromkeys(row.score.encoder for row in best.values()))
    for ours in best.values():
        if ours.score.is_baseline:
            continue
        place = encoders.index(ours.score.encoder)
        for other in best.values():
            if other.score.is_baseline or encoders.index(other.score.encoder) > place:
                found.append(_difference(ours, other))
    return tuple(found)


def _difference(ours: _Drawn, other: _Drawn) -> Difference:
    drawn = ours.r2 - other.r2
    low, high = middle95(drawn)
    mean_low, mean_high = middle95(drawn.mean(1))
    return Difference(
        label=ours.score.label,
        probe=ours.score.probe,
        against=other.score.label,
        against_probe=other.score.probe,
        r2=tuple(a - b for a, b in zip(ours.score.r2, other.score.r2, strict=True)),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        mean=ours.score.mean - other.score.mean,
        mean_low=mean_low.item(),
        mean_high=mean_high.item(),
    )


_Split = tuple[Tensor, Tensor]  # of the training and of the test pairs


class _Inputs(NamedTuple):
    """Of one row's probes: tokens if there are several, and pooled features with how in words."""

    row: Row
    pooling: str
    tokens: _Split | None
    pooled: _Split


def _fits(
    found: _Inputs, params: Tensor, sizes: Sequence[int], probes: Sequence[str], fit: Fit
) -> Iterator[tuple[int, str, Callable[[], Tensor]]]:
    """(number of training pairs, the probe's name, its fit, which returns predictions)."""
    tokens, (x, x_test) = found.tokens, found.pooled
    for n in sizes:
        y = params[:n]
        if "token" in probes and tokens is not None:
            yield n, "token", partial(token_probe, tokens[0][:n], y, tokens[1], fit)
        if "mlp" in probes:
            yield n, f"mlp{found.pooling}", partial(mlp_probe, x[:n], y, x_test, fit)
        if "ridge" in probes:
            yield n, f"ridge{found.pooling}", partial(_ridge, x[:n], y, x_test)


def _ridge(x: Tensor, y: Tensor, x_test: Tensor) -> Tensor:
    return ridge_probe(x, y, x_test)[None]


def _baseline(features: str) -> Row:
    return Row(encoder=None, features=features, is_baseline=True)


def _inputs(
    encoders: Mapping[str, Probed],
    train: Pairs,
    test: Pairs,
    *,
    patch_size: int,
    probes: Sequence[str],
    pixels: Sequence[str],
    on_row: Callable[[str], None],
) -> Iterator[_Inputs]:
    for name, which in ((PIXELS[0], (1,)), (PIXELS[1], (0, 1))):
        if name not in pixels:
            continue
        on_row(name)
        tokens = [_batchwise(pairs, which, patches, patch_size) for pairs in (train, test)]
        means = [_batchwise(pairs, which, grid) for pairs in (train, test)]
        yield _Inputs(_baseline(name), "", (tokens[0], tokens[1]), (means[0], means[1]))
        del tokens, means
    if PIXELS[2] in pixels:
        on_row(PIXELS[2])
        figures = [_batchwise(pairs, (0, 1), pixel_statistics) for pairs in (train, test)]
        yield _Inputs(_baseline(PIXELS[2]), "", None, (figures[0], figures[1]))
    pooled = "token" not in probes
    for encoder, (features, names, is_baseline) in encoders.items():
        on_row(encoder)
        of_train, of_test = (pair_tokens(features, names, p, pooled) for p in (train, test))
        for name in names:
            row = Row(encoder=encoder, features=name, is_baseline=is_baseline)
            on_row(row.label)
            x, x_test = of_train.pop(name), of_test.pop(name)
            both = (x, x_test) if x.shape[1] > 1 else None
            pooling = "" if both is None and name == "cls" else ", mean token"
            yield _Inputs(row, pooling, both, (x.mean(1), x_test.mean(1)))


def summary(reports: Mapping[str, Report]) -> Table:
    """The mean R² of every kind of features in every task, by its best probe there.

    Of angles beyond the range (:func:`is_beyond`) the median error.
    """
    table = Table(title="mean R² by each row's best probe", box=box.SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    for name in reports:
        table.add_column(name, justify="right", no_wrap=True)
    first = next(iter(reports.values()))
    for label in dict.fromkeys(score.label for score in first.scores):
        best = {name: report.best(label) for name, report in reports.items()}
        cells = (f"{s.error[0]:.1f}°" if is_beyond(n) else f"{s.mean:.2f}" for n, s in best.items())
        table.add_row(label, *cells)
    return table


def is_beyond(task: str) -> bool:
    """Whether a task's test lies outside the range its probes were fitted on ("rotation 45..60").

    R² says little there: the right sign with the range's end as size already gives .97. The median
    error says how far off the angles are.
    """
    return ".." in task


def _score(row: Row, probe: str, pred: Tensor, test: Pairs) -> _Drawn:
    """Of predictions [S, N, P] for a test set's pairs."""
    pred, target = pred.cpu(), test.params.cpu()
    drawn = resampled_r2(pred, target, test.photographs, _DRAWS)
    low, high = middle95(drawn)
    mean_low, mean_high = middle95(drawn.mean(1))
    per_seed = r2(pred, target)
    error = (pred - target).abs().flatten(0, 1).median(0).values * torch.tensor(test.scales)
    score = Score(
        encoder=row.encoder,
        features=row.features,
        is_baseline=row.is_baseline,
        probe=probe,
        r2=tuple(per_seed.mean(0).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        error=tuple(error.tolist()),
        mean_low=mean_low.item(),
        mean_high=mean_high.item(),
        pooled=statistics.fmean(pooled_r2(seed, target) for seed in pred),
        seeds=tuple(per_seed.mean(1).tolist()),
    )
    return _Drawn(score, drawn)


def _batchwise(
    pairs: Pairs, which: Sequence[int], read: Callable[..., Tensor], *options: Any
) -> Tensor:
    """[N, ...] of `read`, which gets some pairs at a time, their images stacked as channels."""
    both = pairs.before, pairs.after
    batches = zip(*(both[i].split(_BATCH) for i in which), strict=True)
    return torch.cat([read(torch.cat(images, 1).float(), *options) for images in batches])
