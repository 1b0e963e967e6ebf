"""What result files hold, and which of it comes first on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastequi.evaluate.geometry.kinds import KINDS as GEOMETRY
from fastequi.evaluate.pair_reports import is_beyond
from fastequi.evaluate.results import Result, label
from fastequi.report.markup import table, tag, text, two
from fastequi.report.runs import Run

Row = dict[str, Any]
"""A row of a result file; see `fastequi.evaluate.results`."""

CLASSES = ("knn", "linear", "rotnet")  # kinds with accuracies of classes
# what files that are not as expected raise
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def is_zero_filled(result: Result) -> bool:
    """R² of pairs whose borders reveal the transformation, to compare with published tables."""
    return bool(result.document["budget"]["zero_fill"])


def seen_note(result: Result) -> str:
    """Which encoders may have seen test images in training, and whether probes have; or ""."""
    seen = result.document.get("test_seen_in_training") or {}
    counts = [f"{n:,} that {spec} trained on" for spec, n in seen.items() if n]
    said = "; ".join(counts)
    notes = [f"Test images with the name and the size of one: {said}."] if counts else []
    if fitted := result.document.get("test_used_for_fitting"):
        notes.append(f"Test images among those that probes were fitted on: {fitted:,}.")
    return " ".join(notes)


def best_rows(report: dict[str, Any]) -> list[Row]:
    """Of every kind of features the row of its best probe, by the mean R²."""
    best: dict[tuple[str | None, str], Row] = {}
    for row in report["scores"]:
        which = row["encoder"], row["features"]
        if which not in best or row["mean"] > best[which]["mean"]:
            best[which] = row
    return list(best.values())


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, what to compare it with) for the run's card, at most one of each kind."""
    found: dict[str, tuple[str, str, str]] = {}
    for result in run.results.values():
        if one := headline_of(result, str(run.flat().get("path.family"))):
            found.setdefault(*one)
    return list(found.values())


def headline_of(result: Result, family: str = "") -> tuple[str, tuple[str, str, str]] | None:
    """What the first figure of a result is, and (what, figure, what to compare it with).

    None where a file has none: R² of pairs that give the transformation away, say.

    Args:
        result: a file.
        family: of the run's path, whose R² is taken where it is there.
    """
    document = result.document
    if result.kind == "equivariance" and not is_zero_filled(result):
        every = document["tasks"]
        task = family if family in every else next(iter(every))
        ours, baseline = strongest(every[task], result)
        if ours:
            top = max(ours, key=lambda row: row["mean"])
            against = f"{result.name(top)}; strongest baseline {two(baseline)}"
            return "R²", (f"mean R² of {task}", two(top["mean"]), against)
    elif result.kind in ("knn", "linear"):
        ours = [row for row in document["scores"] if result.is_own(row)]
        others = [row["accuracy"] for row in document["scores"] if row["is_baseline"]]
        top = max(ours, key=lambda row: row["accuracy"])
        against = f"{result.name(top)}, {top['probe']}; strongest baseline {max(others):.3f}"
        return "accuracy", ("accuracy", f"{top['accuracy']:.3f}", against)
    elif result.kind == "reconstruct" and "pooled" in document:
        pooled, mean = document["pooled"], document["psnr"]["gain"]
        against = f"over the nearer view in its place; mean over images {mean:+.1f}"
        figure = f"{pooled['gain']:+.1f}".replace("-", "−")
        return "gain", ("gain of predicted pixels, dB", figure, against)
    elif result.kind == "rotnet":
        (chance,) = (r for r in document["rotation_accuracy"] if r["is_baseline"])
        (own,) = (r for r in document["rotation_accuracy"] if result.is_own(r))
        figure, against = f"{own['accuracy']:.3f}", f"chance {chance['accuracy']:.3f}"
        return "rotations", ("rotation accuracy", figure, against)
    elif result.kind in GEOMETRY:
        return result.kind, _of_geometry(result)
    return None


def _of_geometry(result: Result) -> tuple[str, str, str]:
    """The first figure of the first table: the best row and the strongest baseline.

    Where neither more nor less is better, the last row of each: the output's, and the random
    init's.
    """
    title, found = next(iter(result.document["tables"].items()))
    figure = found["figures"][0]
    rows = [row for row in found["scores"] if row["values"][0] == row["values"][0]]
    sign = {"higher": 1.0, "lower": -1.0}.get(figure["better"], 0.0)

    def best(rows: list[Row]) -> Row:  # of equal ones the last
        return max(reversed(rows), key=lambda row: sign * row["values"][0])

    def shown(value: float) -> str:
        return f"{value:.{figure['digits']}f}".replace("-", "−")

    top = best([row for row in rows if result.is_own(row)])
    against = result.name(top)
    if found["photographs"] > 1:
        against += f", 95 % {shown(top['low'][0])} to {shown(top['high'][0])}"
    if baselines := [row for row in rows if row["is_baseline"]]:
        other = best(baselines)
        which = "strongest baseline" if sign else result.name(other)
        against += f"; {which} {shown(other['values'][0])}"
    return f"{figure['name']}, {title}", shown(top["values"][0]), against


def strongest(report: dict[str, Any], result: Result) -> tuple[list[Row], float]:
    """The best rows of the run's own features, and the strongest baseline's mean R²."""
    rows = best_rows(report)
    baselines = [row["mean"] for row in rows if row["is_baseline"]]
    return [row for row in rows if result.is_own(row)], max(baselines, default=0.0)


def overview(runs: Sequence[Run], badges: Sequence[str]) -> str:
    """The mean R² of every run's features in every task, its strongest baseline below them.

    Args:
        runs: of the page.
        badges: of the runs, as markup.
    """
    tasks: dict[str, None] = {}
    cells: dict[tuple[int, str], dict[str, str]] = {}
    for i, run in enumerate(runs):
        baselines: dict[str, str] = {}
        for result in run.results.values():
            try:
                honest = result.kind == "equivariance" and not is_zero_filled(result)
                for task, report in result.document["tasks"].items() if honest else ():
                    ours, baseline = strongest(report, result)
                    tasks[task] = None
                    baselines[task] = "–" if is_beyond(task) else two(baseline)
                    for row in ours:
                        shown = two(row["mean"])
                        if is_beyond(task):
                            shown = f"{row['error'][0]:.1f}°"
                        elif row["mean"] > max(baseline, 0.0):
                            shown = tag("b", shown)
                        cells.setdefault((i, text(row["features"])), {})[task] = shown
            except DAMAGED:
                continue  # its own section says so
        cells[i, "strongest baseline"] = baselines
    rows = [
        [f"{badges[i]} {of}", *(found.get(task, "–") for task in tasks)]
        for (i, of), found in cells.items()
        if found
    ]
    if len(rows) * len(tasks) < 5:
        return ""
    caption = "Mean R² by the best probe; bold where it is above the strongest baseline and above 0"
    return table(caption, ["features", *map(text, tasks)], rows)


def marked(row: Row) -> str:
    """A row's label as markup, marked where it is a baseline."""
    mark = f" {tag('i', 'baseline')}" if row["is_baseline"] else ""
    return text(label(row["encoder"], row["features"])) + mark
