"""Figures over images, their 95 % intervals, and what two encoders differ by on the same images.

An evaluation leaves sums for each image ([N, S], such as the corner error and 1, or a confusion
matrix); figures follow from the sums over all images. So one bootstrap over images, or over the
photographs that they are from, serves means, shares and mean IoU alike, and the difference of two
encoders is paired: in each draw both are judged on the same images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table as Drawn
from torch import Tensor

from fastequi.evaluate.intervals import middle95, resampled_sums
from fastequi.evaluate.results import Row

_DRAWS = 1000


@dataclass(frozen=True)
class Figure:
    """What a column holds.

    Attributes:
        name: with its unit, such as "corner error, px".
        better: "higher", "lower", or "" where neither is.
        digits: behind the point.
    """

    name: str
    better: str = "higher"
    digits: int = 3


@dataclass(frozen=True)
class Measure:
    """Figures, and how they follow from sums over images.

    Attributes:
        figures: M of them.
        of_sums: [..., S] float64 to [..., M]; NaN where a figure is not defined.
    """

    figures: tuple[Figure, ...]
    of_sums: Callable[[Tensor], Tensor]


def means(*figures: Figure) -> Measure:
    """The means of M values; sums of an image are [2, M], flat: of the values, and how many."""

    def of_sums(sums: Tensor) -> Tensor:
        total, count = sums.unflatten(-1, (2, len(figures))).unbind(-2)
        return total / count

    return Measure(figures, of_sums)


def sums_of_values(values: Tensor) -> Tensor:
    """Values [N, M] of every image, NaN where it has none, as :func:`means` takes them."""
    there = ~values.isnan()
    return torch.cat([values.double().nan_to_num(0), there.double()], 1)


@dataclass(frozen=True)
class Measured:
    """What an evaluation found for one kind of features.

    Attributes:
        row: whose features.
        sums: [N, S] float64 on the CPU, of every image; the same images for all rows of a table.
    """

    row: Row
    sums: Tensor


@dataclass(frozen=True, kw_only=True)
class Score(Row):
    """One row: its figures, and their 95 % intervals over photographs."""

    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Figures of a row less those of another, with paired 95 % intervals."""

    label: str
    against: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one question.

    Attributes:
        figures: the columns.
        images: how many were given; photographs: how many these are from.
        empty: images of which nothing is known, so that they count in no figure of any row.
        scores: baselines first.
        differences: of every trained row from each baseline and from trained rows after it.
        unit: what an image is called in the title.
    """

    figures: tuple[Figure, ...]
    images: int
    photographs: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    unit: str = "images"
    empty: int = 0

    def score(self, label: str) -> Score:
        """The row with a label ("tir, patch", "raw patches")."""
        found = [score for score in self.scores if score.label == label]
        if not found:
            raise KeyError(f"label: no row {label!r} in {[s.label for s in self.scores]}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dataclasses.asdict(self)

    def drawn(self, title: str) -> Drawn:
        """For the terminal; no intervals where there is one photograph."""
        of = f"{self.images:,} {self.unit}"
        if self.photographs != self.images:
            of += f" of {self.photographs:,} photograph{'s' * (self.photographs != 1)}"
        if self.empty:
            of += f", {self.empty:,} of them with nothing to judge"
        if self.photographs == 1:
            of += ", so no interval"
        drawn = Drawn(title=f"{title}, {of}", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        drawn.add_column("features", no_wrap=True)
        for figure in self.figures:
            drawn.add_column(figure.name, justify="right")
        for score in self.scores:
            cells = zip(self.figures, score.values, score.low, score.high, strict=True)
            drawn.add_row(score.label, *(_cell(*cell, self.photographs > 1) for cell in cells))
        return drawn

    def sentences(self) -> list[str]:
        """What differences are, with their intervals; none of one photograph.

        Of the evaluated encoder, the last one, its best row less the best one of every other
        encoder, figure by figure; and every trained row less the best baseline.
        """
        trained = [score for score in self.scores if not score.is_baseline]
        if self.photographs < 2 or not trained:
            return []
        baselines = [score for score in self.scores if score.is_baseline]
        evaluated = [score for score in trained if score.encoder == trained[-1].encoder]
        others = dict.fromkeys(score.encoder for score in trained)
        lines = [
            self._less(evaluated, [s for s in trained if s.encoder == other], str(other))
            for other in others
            if other != trained[-1].encoder
        ]
        lines += [self._less([score], baselines, "the best baseline") for score in trained]
        return [line for line in lines if line]

    def _less(self, rows: Sequence[Score], others: Sequence[Score], name: str) -> str:
        """The best of some rows less the best of others, figure by figure; "" where all are
        undefined."""
        parts = []
        for i, figure in enumerate(self.figures):
            ours, theirs = (self._best(some, i) for some in (rows, others))
            found = ours and theirs and self._difference(ours.label, theirs.label)
            if not ours or not theirs or not found:
                continue
            value, low, high = (f"{v[i]:+.{figure.digits}f}" for v in found)
            of = theirs.features if theirs.encoder == name else theirs.label
            if len(rows) > 1:
                of = f"{ours.features} less {of}"
            lower = ", lower is better" if figure.better == "lower" else ""
            parts.append(f"{figure.name} {value} [{low}, {high}] ({of}{lower})")
        who = str(rows[0].encoder) if len(rows) > 1 else rows[0].label
        return f"{who} less {name}: {'; '.join(parts)}" if parts else ""

    def _best(self, rows: Sequence[Score], i: int) -> Score | None:
        better = self.figures[i].better
        known = [score for score in rows if score.values[i] == score.values[i]]
        if not better or not known:
            return None
        return (max if better == "higher" else min)(known, key=lambda score: score.values[i])

    def _difference(self, label: str, against: str) -> tuple[tuple[float, ...], ...] | None:
        """(values, low, high) of one row less another, whichever of both was taken first."""
        for d in self.differences:
            if (d.label, d.against) == (label, against):
                return d.values, d.low, d.high
            if (d.label, d.against) == (against, label):
                return tuple(tuple(-v for v in part) for part in (d.values, d.high, d.low))
        return None


def _cell(figure: Figure, value: float, low: float, high: float, interval: bool) -> str:
    if value != value:  # NaN
        return "–"
    shown = f"{value:.{figure.digits}f}"
    if not interval or low == high:  # a count, the same in all draws
        return shown
    return f"{shown} {low:.{figure.digits}f}..{high:.{figure.digits}f}"


def table(
    measure: Measure,
    rows: Sequence[Measured],
    photographs: Tensor | None = None,
    seed: int = 0,
    unit: str = "images",
) -> Table:
    """The table of rows that were measured on the same images.

    Args:
        measure: what their sums mean.
        rows: in any order; baselines are put first.
        photographs: [N] int64, the photograph of each image; None: each is one.
        seed: of the bootstrap.
        unit: what an image is called in the title, such as "clips".

    Raises:
        ValueError: rows of different images.
    """
    count = len(rows[0].sums)
    for each in rows:
        if each.sums.shape != rows[0].sums.shape:
            raise ValueError(
                f"rows: expected sums {list(rows[0].sums.shape)} as of {rows[0].row.label}, got "
                f"{list(each.sums.shape)} of {each.row.label}"
            )
    rows = sorted(rows, key=lambda each: not each.row.is_baseline)
    found = [measure.of_sums(each.sums.sum(0)) for each in rows]
    draws = [measure.of_sums(resampled_sums(each.sums, photographs, _DRAWS, seed)) for each in rows]
    scores, differences = [], []
    for i, each in enumerate(rows):
        values, low, high = _with_interval(found[i], draws[i])
        baseline = each.row.is_baseline
        scores.append(Score(**vars(each.row), values=values, low=low, high=high))
        for j, other in enumerate(rows):
            if baseline or not (other.row.is_baseline or j > i):
                continue
            values, low, high = _with_interval(found[i] - found[j], draws[i] - draws[j])
            pair = {"label": each.row.label, "against": other.row.label}
            differences.append(Difference(**pair, values=values, low=low, high=high))
    return Table(
        figures=measure.figures,
        images=count,
        photographs=count if photographs is None else len(photographs.unique()),
        scores=tuple(scores),
        differences=tuple(differences),
        unit=unit,
        empty=int(torch.stack([(each.sums == 0).all(1) for each in rows]).all(0).sum()),
    )


def _with_interval(value: Tensor, draws: Tensor) -> tuple[tuple[float, ...], ...]:
    """(values, low, high); draws in which a figure is not defined are left out."""
    lows, highs = [], []
    for column in draws.unbind(1):
        defined = column[~column.isnan()]
        low, high = middle95(defined) if len(defined) else (value.new_tensor(torch.nan),) * 2
        lows.append(float(low))
        highs.append(float(high))
    return tuple(value.tolist()), tuple(lows), tuple(highs)
