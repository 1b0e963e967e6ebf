"""Tables of R²: rows of features and probes, differences between them, and a summary of tasks."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from fastequi.evaluate.results import Row

_COLUMNS = 8  # parameters beside each other in a table


@dataclass(frozen=True, kw_only=True)
class Score(Row):
    """One row: how well one probe predicts the test pairs' parameters from one kind of features.

    Attributes:
        probe: "constant", or of "token", "cosines", "mlp", "ridge"; with ", mean token" where
            tokens were averaged first.
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
    """R² of a row less that of another one, on the same test pairs.

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
            after it, all by their best probes.
        differences_by_probe: the same, both by one probe, for every probe.
    """

    names: tuple[str, ...]
    train_pairs: int
    test_pairs: int
    photographs: int
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    differences_by_probe: tuple[Difference, ...] = ()

    def best(self, label: str) -> Score:
        """Of the rows with a label ("tir, z_equi", "raw pair") the one with the largest mean R²."""
        rows = [score for score in self.scores if score.label == label]
        if not rows:
            raise KeyError(f"label: no row {label!r} in {[s.label for s in self.scores]}")
        return max(rows, key=lambda score: score.mean)

    def best_baseline(self) -> Score:
        """Of the baselines' rows the one with the largest mean R²."""
        return max((s for s in self.scores if s.is_baseline), key=lambda score: score.mean)

    def difference(self, label: str, against: str, probe: str | None = None) -> Difference:
        """Between the best rows with these labels, or between those by one probe."""
        among = self.differences_by_probe if probe else self.differences
        wanted = label, against, probe
        found = [d for d in among if (d.label, d.against, probe and d.probe) == wanted]
        if not found:
            known = [(d.label, d.against, d.probe) for d in among]
            raise KeyError(f"label, against, probe: no difference {wanted} in {known}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """Its fields; every row also with its "mean" R²."""
        scores = [score.to_json() for score in self.scores]
        return {**dataclasses.asdict(self), "scores": scores}

    def table(self, title: str = "R² on unseen parts") -> Table:
        """For the terminal; the first parameter with its interval and its median error, the others
        if they fit beside each other.

        Without an interval where there is one test photograph: it would say nothing of others.
        Behind ± stands the standard deviation of the mean R² over the probes' seeds.
        """
        seeds = max((len(score.seeds) for score in self.scores), default=1)
        single = self.photographs == 1
        tested = "1 test image, so no interval" if single else f"{self.photographs} test images"
        pairs = f"{self.train_pairs:,} / {self.test_pairs:,} pairs, {tested}"
        title = f"{title}, {pairs}, {seeds} seeds"
        first, *others = self.names
        if len(others) >= _COLUMNS:
            title += f"; the mean is over {len(self.names)} parameters"
            others = []
        table = Table(title=title, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
        table.add_column("features", no_wrap=True)
        table.add_column("probe", no_wrap=True)
        for name in (first, "95 %", *others, "mean", "pooled", f"|Δ{first}|"):
            table.add_column(name, justify="right", no_wrap=True)
        previous = ""
        for score in self.scores:
            shown = *score.r2[: 1 + len(others)], score.mean, score.pooled
            value, *rest = (f"{v:.2f}" for v in shown)
            rest[-2] += f" ±{score.spread:.2f}"
            interval = "–" if single else f"{score.low[0]:.2f}..{score.high[0]:.2f}"
            label = "" if score.label == previous else score.label
            table.add_row(label, score.probe, value, interval, *rest, f"{score.error[0]:.3g}")
            previous = score.label
        return table


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
