"""What was found out about runs, as sections of the report: R² and classes beside their floors.

A result file that is not as expected becomes a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastequi.evaluate.charts import Bar, bars
from fastequi.evaluate.markup import number, table, tag, text, two
from fastequi.evaluate.runs import Run, flatten

Result = dict[str, Any]

_FLOORS = ("mean predictor", "raw", "transformed image alone", "random init", "pixels")
_OTHERS_COLOR = 7  # of encoders that are not the run's own
_UNITS = {"angle": "°", "tx": " px", "ty": " px", "sigma": " px", "hue": " turns"}
_ANGLES = ("0", "90", "180", "270")
# what files that are not as expected raise
DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def is_floor(features: str) -> bool:
    """Whether a row says what anyone reads without training."""
    return features.startswith(_FLOORS)


def is_equivariance(result: Result) -> bool:
    """The demo's table, or those of every task of `fastequi eval equivariance`."""
    return {"names", "scores"} <= set(result) or isinstance(result.get("tasks"), dict)


def is_classes(result: Result) -> bool:
    """`fastequi eval knn`, `linear` or `rotnet`."""
    scores = result.get("scores") or result.get("classes")
    return isinstance(scores, list) and all("accuracy" in row for row in scores)


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


def _is_own(row: Result, result: Result) -> bool:
    """Whether a row is of the run itself, not of a floor or another encoder."""
    encoder = result.get("encoder")
    return not is_floor(row["features"]) and (not encoder or row["features"].startswith(encoder))


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, what to hold against it) for the run's card, at most one of each kind."""
    found: dict[str, tuple[str, str, str]] = {}
    for result in run.results.values():
        if is_equivariance(result) and "R²" not in found:
            every = reports(result)
            task = str(run.flat().get("path.family"))
            task = task if task in every else next(iter(every))
            ours, floor = _against_floor(every[task], result)
            if ours:
                top = max(ours, key=mean)
                against = f"{top['features']}; strongest floor {two(floor)}"
                found["R²"] = (f"mean R² of {task}", two(mean(top)), against)
        elif is_classes(result) and "scores" in result:
            ours = [row for row in result["scores"] if _is_own(row, result)]
            pixels = [row["accuracy"] for row in result["scores"] if is_floor(row["features"])]
            top = max(ours, key=lambda row: row["accuracy"])
            against = f"{top['features']}, {top['probe']}; strongest floor {max(pixels):.3f}"
            found.setdefault("accuracy", ("accuracy", f"{top['accuracy']:.3f}", against))
        psnr = result.get("psnr")
        if isinstance(psnr, dict) and {"predicted", "nearer_view"} <= set(psnr):
            against = f"nearer view in its place: {psnr['nearer_view']:.2f}"
            found.setdefault("PSNR", ("PSNR, dB", f"{psnr['predicted']:.2f}", against))
        turns = result.get("rotation_accuracy")
        if isinstance(turns, dict) and "all" in turns:
            found["turns"] = ("turns told right", f"{turns['all']:.3f}", "chance 0.250")
    return list(found.values())


def _against_floor(report: Result, result: Result) -> tuple[list[Result], float]:
    """The best rows of the run's own features, and the strongest floor's mean R² (0 at least)."""
    rows = best_rows(report)
    floors = [mean(row) for row in rows if is_floor(row["features"])]
    return [row for row in rows if _is_own(row, result)], max([0.0, *floors])


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
                for task, report in reports(result).items() if is_equivariance(result) else ():
                    ours, floor = _against_floor(report, result)
                    tasks[task], floors[task] = None, two(floor)
                    for row in ours:
                        kind = row["features"].rsplit(", ", 1)[-1]
                        shown = tag("b", two(mean(row))) if mean(row) > floor else two(mean(row))
                        cells.setdefault((i, kind), {})[task] = shown
            except DAMAGED:
                continue  # its own section says so
        cells[i, "strongest floor"] = floors
    rows = [
        [f"{badges[i]} {_kind(kind)}", *(found.get(task, "–") for task in tasks)]
        for (i, kind), found in cells.items()
        if found
    ]
    if len(rows) * len(tasks) < 5:
        return ""
    caption = "Mean R² by the probe that reads most; bold where it is above the strongest floor"
    return table(caption, ["features", *map(text, tasks)], rows)


def _kind(features: str) -> str:
    mark = f" {tag('i', 'floor')}" if is_floor(features) else ""
    return text(features) + mark


def equivariance(run: Run, color: int) -> list[str]:
    """Charts and the whole table of every task in a run's files of R²."""

    def show(file: str, result: Result) -> str:
        every = reports(result)
        drawn = {task: _panels(run, task, report, result, color) for task, report in every.items()}
        if "tasks" in result:  # of each the first in sight, the mean's where there is one
            parts = [tag("div", *(panels[0] for panels in drawn.values()), class_="panels")]
        else:
            parts = [tag("div", *panels, class_="panels") for panels in drawn.values()]
        for task, report in every.items():
            rest = drawn[task][1:] if "tasks" in result else []
            what = f"{task}: every probe" + (" and every parameter" if rest else "")
            inner = [tag("div", *rest, class_="panels")] if rest else []
            inner.append(_table(run, task, report))
            parts.append(tag("details", tag("summary", text(what)), *inner))
        first = next(iter(reports(result).values()))
        seeds = max((len(row.get("seeds", [])) for row in first["scores"]), default=1)
        how = (
            f"From {file}: probes fitted on {first.get('train_pairs', 0):,} pairs and judged on "
            f"{first.get('test_pairs', 0):,}, {seeds} seeds."
        )
        return tag("p", text(how), class_="note") + "".join(parts)

    return _each(run, is_equivariance, show)


def _panels(run: Run, task: str, report: Result, result: Result, color: int) -> list[str]:
    """A chart for the mean, where its interval is known, and one for each parameter."""
    rows, names = best_rows(report), report["names"]
    shown = {
        name: [(row["r2"][i], row["low"][i], row["high"][i]) for row in rows]
        for i, name in enumerate(names)
    }
    if len(names) > 1 and all("mean_low" in row for row in rows):
        means = [(mean(row), row["mean_low"], row["mean_high"]) for row in rows]
        shown = {"mean": means, **shown}
    panels = []
    for what, figures in shown.items():
        lines = [
            Bar(
                f"{row['features']} · {row['probe']}" if row["probe"] else row["features"],
                *values,
                is_floor(row["features"]),
                color if _is_own(row, result) else _OTHERS_COLOR,
            )
            for row, values in zip(rows, figures, strict=True)
        ]
        chart = bars(lines, f"{run.name}, {task}, R² of {what}")
        of = f"{task}, {what}" if "tasks" in result and len(shown) > 1 else what
        caption = tag("figcaption", tag("b", text(of if len(shown) > 1 else task)), " R²")
        panels.append(tag("figure", caption, chart, class_="panel"))
    return panels


def _table(run: Run, task: str, report: Result) -> str:
    names = report["names"]
    head = ["features", "probe", *(f"R² {text(n)}" for n in names), "mean", "pooled"]
    head += [f"median |Δ{text(n)}|" for n in names]
    lines = []
    for row in report["scores"]:
        r2 = [
            f"{two(v)} {tag('small', f'{two(a)} to {two(b)}')}"
            for v, a, b in zip(row["r2"], row["low"], row["high"], strict=True)
        ]
        errors = [number(e) + _UNITS.get(n, "") for e, n in zip(row["error"], names, strict=True)]
        cells = [text(row["probe"]), *r2, two(mean(row)), two(row["pooled"]), *errors]
        lines.append([_kind(row["features"]), *cells])
    caption = f"R² of {text(task)} in {text(run.name)}, every probe, with 95 % intervals"
    return table(caption, head, lines, numbers=2)


def classes(run: Run, color: int) -> list[str]:
    """Accuracies with intervals; RotNet's turns beside them."""

    def show(file: str, result: Result) -> str:
        groups: dict[str, list[Bar]] = {}
        lines = []
        for row in result.get("scores") or result["classes"]:
            features = row.get("features") or ", ".join(
                filter(None, (row["network"], row["block"]))
            )
            few = f", {row['per_class']} labels a class" if row.get("per_class") else ""
            probe = row["probe"] + few
            share, low, high = row["accuracy"], row["low"], row["high"]
            own = _is_own({"features": features}, result)
            place = color if own else _OTHERS_COLOR
            bar = Bar(features, share, low, high, is_floor(features), place)
            groups.setdefault(probe, []).append(bar)
            span = tag("small", f"{low:.3f} to {high:.3f}")
            lines.append([_kind(features), text(probe), f"{share:.3f} {span}"])
        panels = []
        for probe, found in groups.items():
            chart = bars(found, f"{run.name}, accuracy of {probe}", digits=3)
            caption = tag("figcaption", tag("b", text(probe)), " accuracy")
            panels.append(tag("figure", caption, chart, class_="panel"))
        images = f"{result.get('train_images', 0):,} and judged on {result.get('test_images', 0):,}"
        how = f"From {file}: frozen features, fitted on {images} images; 95 % intervals."
        turns = result.get("rotation_accuracy")
        if isinstance(turns, dict):
            each = ", ".join(f"{a}° {turns[a]:.3f}" for a in _ANGLES if a in turns)
            how += f" Turns told right: {turns['all']:.3f} (chance 0.250; {each})."
        head = ["features", "probe", "accuracy"]
        whole = table(f"Accuracies in {text(file)}, with 95 % intervals", head, lines, numbers=2)
        folded = tag("details", tag("summary", "As a table"), whole)
        intro = tag("p", text(how), class_="note")
        return intro + tag("div", *panels, class_="panels") + folded

    return _each(run, is_classes, show)


def others(run: Run) -> list[str]:
    """Every other result as it is."""

    def whole(file: str, result: Result) -> str:
        rows = [
            [text(name), text(number(value, 4) if isinstance(value, float) else value)]
            for name, value in flatten(result).items()
            if not name.startswith("machine.")
        ]
        listing = table(text(f"{file} of {run.name}"), ["field", "value"], rows)
        return tag("details", tag("summary", text(file)), listing)

    return _each(run, lambda result: not (is_equivariance(result) or is_classes(result)), whole)


def _each(
    run: Run, wanted: Callable[[Result], bool], show: Callable[[str, Result], str]
) -> list[str]:
    shown = []
    for file, result in run.results.items():
        try:
            if wanted(result):
                shown.append(show(file, result))
        except DAMAGED as error:
            why = f"{file} is not as expected ({type(error).__name__}: {error}), so not shown"
            shown.append(tag("p", text(why), class_="warning"))
    return shown


def missing(
    runs: Sequence[Run], has: Callable[[Run], Iterable[object]], what: str, how: str
) -> str:
    """Which runs lack something, and the command that makes it."""
    lacking = [run for run in runs if not list(has(run))]
    if not lacking:
        return ""
    names = ", ".join(tag("b", text(run.name)) for run in lacking)
    commands = tag("code", text(how))
    return tag("p", f"No {text(what)} in {names}. Made by {commands}.", class_="missing")
