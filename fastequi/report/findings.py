"""What result files hold, which of it are floors, and what of it comes first on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastequi.evaluate.pair_scores import is_beyond
from fastequi.report.markup import table, tag, text, two
from fastequi.report.runs import Run

Result = dict[str, Any]

_FLOORS = {
    *("mean predictor", "raw pair", "raw pixels", "transformed image alone"),
    *("pixel statistics", "pixels", "random init"),
}
# what files that are not as expected raise
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def is_floor(features: str) -> bool:
    """Whether a row says what anyone reads without training."""
    return features in _FLOORS or features.startswith("random init, ")


def is_equivariance(result: Result) -> bool:
    """The demo's table, or those of every task of `fastequi eval equivariance`."""
    return {"names", "scores"} <= set(result) or isinstance(result.get("tasks"), dict)


def is_zero_filled(result: Result) -> bool:
    """R² of pairs whose borders give the transformation away, to compare with published tables."""
    budget = result.get("budget")
    return isinstance(budget, dict) and bool(budget.get("zero_fill"))


def seen_note(result: Result) -> str:
    """Which encoders may have seen test images in training; "" if none is known to."""
    seen = result.get("test_seen_in_training")
    told = [f"{n:,} that {spec} trained on" for spec, n in seen.items() if n] if seen else []
    return f"Test images with the name and the size of one: {'; '.join(told)}." if told else ""


def is_classes(result: Result) -> bool:
    """`fastequi eval knn`, `linear` or `rotnet`."""
    scores = result.get("scores") or result.get("classes")
    return isinstance(scores, list) and all("accuracy" in row for row in scores)


def is_reconstruction(result: Result) -> bool:
    """`fastequi eval reconstruct`."""
    return isinstance(result.get("spectra"), dict)


def reports(result: Result) -> dict[str, Result]:
    """R² tables by their tasks; the demo's one is of its path."""
    tasks = result.get("tasks")
    return tasks if isinstance(tasks, dict) else {", ".join(result["names"]): result}


def best_rows(report: Result) -> list[Result]:
    """Of every kind of features the row of the probe that reads most, by the mean R²."""
    best: dict[str, Result] = {}
    for row in report["scores"]:
        if row["features"] not in best or mean(row) > mean(best[row["features"]]):
            best[row["features"]] = row
    return list(best.values())


def mean(row: Result) -> float:
    return sum(row["r2"]) / len(row["r2"])


def is_own(row: Result, result: Result) -> bool:
    """Whether a row is of the run itself, not of a floor or another encoder."""
    encoder = result.get("encoder")
    own = not encoder or row["features"].startswith(f"{encoder}, ")
    return own and not is_floor(row["features"])


def own_name(features: str, result: Result) -> str:
    """Without the run's name, which its heading says."""
    return features.removeprefix(f"{result.get('encoder')}, ")


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, what to hold against it) for the run's card, at most one of each kind."""
    found: dict[str, tuple[str, str, str]] = {}
    for result in run.results.values():
        if is_equivariance(result) and not is_zero_filled(result) and "R²" not in found:
            every = reports(result)
            task = str(run.flat().get("path.family"))
            task = task if task in every else next(iter(every))
            ours, floor = _against_floor(every[task], result)
            if ours:
                top = max(ours, key=mean)
                whose = own_name(top["features"], result)
                against = f"{whose}; strongest floor {two(floor)}"
                found["R²"] = (f"mean R² of {task}", two(mean(top)), against)
        elif is_classes(result) and "scores" in result:
            ours = [row for row in result["scores"] if is_own(row, result)]
            pixels = [row["accuracy"] for row in result["scores"] if is_floor(row["features"])]
            top = max(ours, key=lambda row: row["accuracy"])
            whose = own_name(top["features"], result)
            against = f"{whose}, {top['probe']}; strongest floor {max(pixels):.3f}"
            found.setdefault("accuracy", ("accuracy", f"{top['accuracy']:.3f}", against))
        psnr = result.get("psnr")
        if isinstance(psnr, dict) and {"predicted", "nearer_view"} <= set(psnr):
            pred, copied = (_over_steps(psnr[name]) for name in ("predicted", "nearer_view"))
            against = f"nearer view in its place: {copied:.2f}"
            found.setdefault("PSNR", ("PSNR, dB", f"{pred:.2f}", against))
        turns = result.get("rotation_accuracy")
        if isinstance(turns, dict) and "all" in turns:
            found["turns"] = ("turns told right", f"{turns['all']:.3f}", "chance 0.250")
    return list(found.values())


def _over_steps(value: float | list[float]) -> float:
    """The demo gives a mean over steps, `fastequi eval reconstruct` every step's."""
    return sum(value) / len(value) if isinstance(value, list) else value


def _against_floor(report: Result, result: Result) -> tuple[list[Result], float]:
    """The best rows of the run's own features, and the strongest floor's mean R² (0 at least)."""
    rows = best_rows(report)
    floors = [mean(row) for row in rows if is_floor(row["features"])]
    return [row for row in rows if is_own(row, result)], max([0.0, *floors])


def overview(runs: Sequence[Run], badges: Sequence[str]) -> str:
    """The mean R² of every run's features in every task, its strongest floor below them.

    Args:
        badges: of the runs, as markup.
    """
    tasks: dict[str, None] = {}
    cells: dict[tuple[int, str], dict[str, str]] = {}
    for i, run in enumerate(runs):
        floors: dict[str, str] = {}
        for result in run.results.values():
            try:
                honest = is_equivariance(result) and not is_zero_filled(result)
                for task, report in reports(result).items() if honest else ():
                    ours, floor = _against_floor(report, result)
                    tasks[task] = None
                    floors[task] = "–" if is_beyond(task) else two(floor)
                    for row in ours:
                        of = row["features"].rsplit(", ", 1)[-1]
                        shown = tag("b", two(mean(row))) if mean(row) > floor else two(mean(row))
                        if is_beyond(task):
                            shown = f"{row['error'][0]:.1f}°"
                        cells.setdefault((i, of), {})[task] = shown
            except DAMAGED:
                continue  # its own section says so
        cells[i, "strongest floor"] = floors
    rows = [
        [f"{badges[i]} {kind(of)}", *(found.get(task, "–") for task in tasks)]
        for (i, of), found in cells.items()
        if found
    ]
    if len(rows) * len(tasks) < 5:
        return ""
    caption = "Mean R² by the probe that reads most; bold where it is above the strongest floor"
    return table(caption, ["features", *map(text, tasks)], rows)


def kind(features: str) -> str:
    """Its name as markup, marked where it is a floor."""
    mark = f" {tag('i', 'floor')}" if is_floor(features) else ""
    return text(features) + mark
