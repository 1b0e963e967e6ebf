"""A run's results as sections of the report: charts first, the whole table folded below.

A result file that is not as expected becomes a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable

from fastequi.report.charts import Bar, bars
from fastequi.report.findings import (
    DAMAGED,
    Result,
    best_rows,
    is_classes,
    is_equivariance,
    is_floor,
    is_own,
    is_reconstruction,
    is_zero_filled,
    kind,
    mean,
    own_name,
    reports,
    seen_note,
)
from fastequi.report.markup import number, table, tag, text, two
from fastequi.report.runs import Run, flatten

_OTHERS_COLOR = 7  # of encoders that are not the run's own
_UNITS = {"angle": "°", "tx": " px", "ty": " px", "sigma": " px", "hue": " turns"}
_ANGLES = ("0", "90", "180", "270")


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
        if is_zero_filled(result):
            how += (
                " The borders of these images are filled with zeros, which gives the "
                "transformation away: only to compare with tables made that way."
            )
        return tag("p", text(how), class_="note") + _warned(result) + "".join(parts)

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
                f"{own_name(row['features'], result)} · {row['probe']}",
                *values,
                is_floor(row["features"]),
                color if is_own(row, result) else _OTHERS_COLOR,
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
        lines.append([kind(row["features"]), *cells])
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
            own = is_own({"features": features}, result)
            place = color if own else _OTHERS_COLOR
            bar = Bar(own_name(features, result), share, low, high, is_floor(features), place)
            groups.setdefault(probe, []).append(bar)
            span = tag("small", f"{low:.3f} to {high:.3f}")
            lines.append([kind(features), text(probe), f"{share:.3f} {span}"])
        panels = []
        for probe, found in groups.items():
            chart = bars(found, f"{run.name}, accuracy of {probe}", digits=3)
            caption = tag("figcaption", tag("b", text(probe)), " accuracy")
            panels.append(tag("figure", caption, chart, class_="panel"))
        images = f"{result.get('train_images', 0):,} and judged on {result.get('test_images', 0):,}"
        classes = len(result.get("class_images") or ()) or result.get("classes")
        of = f"{classes} classes from " if isinstance(classes, int) else ""
        how = f"From {file}: {of}frozen features, fitted on {images} images; 95 % intervals."
        split = result.get("split")
        if isinstance(split, dict):
            how += f" Training images: {split['train']}; test images: {split['test']}."
        turns = result.get("rotation_accuracy")
        if isinstance(turns, dict):
            each = ", ".join(f"{a}° {turns[a]:.3f}" for a in _ANGLES if a in turns)
            how += f" Turns told right: {turns['all']:.3f} (chance 0.250; {each})."
        anchors = result.get("published")
        if anchors:
            how += f" {anchors[0].upper()}{anchors[1:]}."
        head = ["features", "probe", "accuracy"]
        whole = table(f"Accuracies in {text(file)}, with 95 % intervals", head, lines, numbers=2)
        folded = tag("details", tag("summary", "As a table"), whole)
        intro = tag("p", text(how), class_="note") + _warned(result)
        return intro + tag("div", *panels, class_="panels") + folded

    return _each(run, is_classes, show)


def reconstruction(run: Run) -> list[str]:
    """PSNR and SSIM of every step beside the nearer view's, and the spectra of the features."""

    def show(file: str, result: Result) -> str:
        parts = [tag("p", text(f"From {file}: {result.get('images', 0):,} views."), class_="note")]
        parts.append(_warned(result))
        lines, gains = [], []
        for name, label, unit, digits in (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3)):
            found = result.get(name)
            if found is None:
                continue
            steps = zip(found["predicted"], found["nearer_view"], strict=True)
            for k, values in enumerate(steps, 1):
                lines.append([label, str(k), *(f"{value:.{digits}f}{unit}" for value in values)])
            gain, low, high = (f"{found[n]:+.{digits}f}" for n in ("gain", "low", "high"))
            gains.append(f"{label} gained {gain}{unit} ({low} to {high}).".replace("-", "−"))
        if lines:
            caption = "Predicted images beside the nearer view in their place"
            told = f"{' '.join(gains)} In brackets 95 % intervals over photographs."
            head = ["measure", "k", "predicted", "nearer view"]
            parts.append(table(caption, head, lines) + tag("p", text(told), class_="note"))
        spectra = []
        for name, s in result["spectra"].items():
            dimensions = [f"{s[effective]:.1f}" for effective in ("participation", "entropy")]
            figures = [str(s["channels"]), str(s["rank"]), number(s["variance"])]
            spectra.append([text(name), *figures, *dimensions])
        head = ["features", "channels", "rank", "variance", "participation", "exp entropy"]
        parts.append(table("Dimensions that features use", head, spectra))
        return "".join(parts)

    return _each(run, is_reconstruction, show)


_KNOWN = (is_equivariance, is_classes, is_reconstruction)


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

    return _each(run, lambda result: not any(known(result) for known in _KNOWN), whole)


def _warned(result: Result) -> str:
    seen = seen_note(result)
    return tag("p", text(seen), class_="warning") if seen else ""


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
