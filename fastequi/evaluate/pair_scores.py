"""R² of a transformation's parameters, predicted by probes from the features of image pairs.

Pairs are border-free (`fastequi.evaluate.pairs`). Every table has its baselines: a prediction that
is always the mean, the raw pair, the transformed image alone, a few statistics of the pixels (which
alone predict much of colour and blur), and the same encoder at random initialisation.
"""

from __future__ import annotations

import itertools
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastequi.evaluate.baselines import grid, patches, pixel_statistics
from fastequi.evaluate.checked import Features
from fastequi.evaluate.intervals import middle95, resampled_r2
from fastequi.evaluate.pair_reports import Difference, Report, Score
from fastequi.evaluate.pairs import Pairs, joined
from fastequi.evaluate.probes import (
    Fit,
    cosine_probe,
    mlp_probe,
    pooled_r2,
    r2,
    ridge_probe,
    token_probe,
)
from fastequi.evaluate.results import Row
from fastequi.runtime.side_by_side import side_by_side

PROBES = ("token", "cosines", "mlp", "ridge")
OF_TOKENS = ("token", "cosines")  # which need them all, and not their mean
PIXELS = ("transformed image alone", "raw pair", "pixel statistics")

_DRAWS = 1000  # of the bootstrap
_BATCH = 1000  # pairs at a time
_ON_CPU = 64  # 1.3 times as fast at 32 px: what a layer writes is still in the cache


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
        probes: of `PROBES`.
        fewer: numbers of training pairs that the probes are fitted on once more, the first ones.
        pixels: of `PIXELS`, the baselines that need no encoder.
        on_row: called with the label of a row when it begins and after each of its probes, and the
            share that is done; by other threads too.

    Returns:
        By the number of training pairs, all of them first, the reports of every test set. For
        tokens the token probe, the probe of cosines, and an MLP and ridge on the mean token; for
        raw pixels the first two on patches, and an MLP and ridge on pixels averaged to 8x8.
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

    def part_done(label: str, parts: int, ended: int) -> None:
        on_row(label, (count + ended / parts) / total)

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
        say = partial(part_done, found.row.label, len(named))
        jobs = _told([job for *_, job in named], say)
        predicted = side_by_side(jobs, train.params.device)
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
                differences=_differences(_best(scores)),
                differences_by_probe=_by_probe(scores),
            )
            for test, scores in zip(tests, rows[n], strict=True)
        ]
        for n in sizes
    }


class _Drawn(NamedTuple):
    """A row, and its R² [draws, P] on the bootstrap's photographs, which are every row's."""

    score: Score
    r2: Tensor


def _best(rows: Sequence[_Drawn]) -> list[_Drawn]:
    """Of each label the row by its best probe."""
    best: dict[str, _Drawn] = {}
    for row in rows:
        label = row.score.label
        if label not in best or row.score.mean > best[label].score.mean:
            best[label] = row
    return list(best.values())


def _by_probe(rows: Sequence[_Drawn]) -> tuple[Difference, ...]:
    found: list[Difference] = []
    for probe in dict.fromkeys(row.score.probe for row in rows):
        found += _differences([row for row in rows if row.score.probe == probe])
    return tuple(found)


def _differences(rows: Sequence[_Drawn]) -> tuple[Difference, ...]:
    found = []
    encoders = list(dict.fromkeys(row.score.encoder for row in rows))
    for ours in rows:
        if ours.score.is_baseline:
            continue
        place = encoders.index(ours.score.encoder)
        for other in rows:
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
    """Of one row's probes: tokens if there are several, and pooled features with how in words;
    `pair`: of both images, side by side."""

    row: Row
    pooling: str
    tokens: _Split | None
    pooled: _Split
    pair: bool = True


def _fits(
    found: _Inputs, params: Tensor, sizes: Sequence[int], probes: Sequence[str], fit: Fit
) -> Iterator[tuple[int, str, Callable[[], Tensor]]]:
    """(number of training pairs, the probe's name, its fit, which returns predictions)."""
    tokens, (x, x_test) = found.tokens, found.pooled
    for n in sizes:
        y = params[:n]
        if "token" in probes and tokens is not None:
            yield n, "token", partial(token_probe, tokens[0][:n], y, tokens[1], fit)
        if "cosines" in probes and tokens is not None and found.pair:
            yield n, "cosines", partial(cosine_probe, tokens[0][:n], y, tokens[1], fit)
        if "mlp" in probes:
            yield n, f"mlp{found.pooling}", partial(mlp_probe, x[:n], y, x_test, fit)
        if "ridge" in probes:
            yield n, f"ridge{found.pooling}", partial(_ridge, x[:n], y, x_test)


def _told(
    jobs: Sequence[Callable[[], Tensor]], say: Callable[[int], None]
) -> list[Callable[[], Tensor]]:
    """The same jobs, which say how many of them have ended, one after the other."""
    ended, lock = itertools.count(1), threading.Lock()

    def run(job: Callable[[], Tensor]) -> Tensor:
        found = job()
        with lock:
            say(next(ended))
        return found

    return [partial(run, job) for job in jobs]


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
        split, pooled = (tokens[0], tokens[1]), (means[0], means[1])
        yield _Inputs(_baseline(name), "", split, pooled, pair=len(which) > 1)
        del tokens, means, split, pooled
    if PIXELS[2] in pixels:
        on_row(PIXELS[2])
        figures = [_batchwise(pairs, (0, 1), pixel_statistics) for pairs in (train, test)]
        yield _Inputs(_baseline(PIXELS[2]), "", None, (figures[0], figures[1]))
    whole = any(probe in probes for probe in OF_TOKENS)
    for encoder, (features, names, is_baseline) in encoders.items():
        on_row(encoder)
        of_train, of_test = (pair_tokens(features, names, p, not whole) for p in (train, test))
        for name in names:
            row = Row(encoder=encoder, features=name, is_baseline=is_baseline)
            on_row(row.label)
            x, x_test = of_train.pop(name), of_test.pop(name)
            both = (x, x_test) if x.shape[1] > 1 else None
            pooling = "" if both is None and name == "cls" else ", mean token"
            yield _Inputs(row, pooling, both, (x.mean(1), x_test.mean(1)))


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
