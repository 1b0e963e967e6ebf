"""A run's results as sections of the report: charts first, the whole table folded below.

A damaged result file becomes a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from fastequi.evaluate.results import Result
from fastequi.report.charts import Bar, bars, gains
from fastequi.report.findings import (
    CLASSES,
    DAMAGED,
    best_rows,
    is_zero_filled,
    marked,
    seen_note,
)
from fastequi.report.markup import number, signed, table, tag, text, two
from fastequi.report.runs import Run, flatten

SINGLE = "All are of one photograph: there is no interval, as it would say nothing of others."
OTHERS_COLOR = 7  # of encoders that are not the run's own
_UNITS = {"angle": "°", "tx": " px", "ty": " px", "sigma": " px", "hue": " cycles"}


def equivariance(run: Run, color: int) -> list[str]:
    """Charts and the whole table of every task in a run's files of R²."""

    def show(file: str, result: Result) -> str:
        every = result.document["tasks"]
        several = len(every) > 1
        drawn = {task: _panels(run, task, result, color=color) for task in every}
        if several:  # of each the first stays in sight, the mean's where there is one
            parts = [tag("div", *(panels[0] for panels in drawn.values()), class_="panels")]
        else:
            parts = [tag("div", *panels, class_="panels") for panels in drawn.values()]
        for task, report in every.items():
            rest = drawn[task][1:] if several else []
            what = f"{task}: every probe" + (" and every parameter" if rest else "")
            inner = [tag("div", *rest, class_="panels")] if rest else []
            inner.append(_table(run, task, report))
            inner.append(_differences(report))
            parts.append(tag("details", tag("summary", text(what)), *inner))
        first = next(iter(every.values()))
        seeds = max((len(row["seeds"]) for row in first["scores"]), default=1)
        how = (
            f"From {file}: probes fitted on {first['train_pairs']:,} pairs and tested on "
            f"{first['test_pairs']:,}, {seeds} seeds."
        )
        if first.get("photographs") == 1:
            how += f" {SINGLE}"
        if is_zero_filled(result):
            how += (
                " The borders of these images are filled with zeros, which reveals the "
                "transformation: only to compare with tables made that way."
            )
        return tag("p", text(how), class_="note") + images_of(result) + "".join(parts)

    return each_result(run, ("equivariance",), show)


def _panels(run: Run, task: str, result: Result, *, color: int) -> list[str]:
    """A chart for the mean, if there are several parameters, and one for each parameter."""
    report = result.document["tasks"][task]
    rows, names = best_rows(report), report["names"]
    shown = {
        name: [(row["r2"][i], (row["low"][i], row["high"][i])) for row in rows]
        for i, name in enumerate(names)
    }
    if len(names) > 1:
        means = [(row["mean"], (row["mean_low"], row["mean_high"])) for row in rows]
        shown = {"mean": means, **shown}
    panels = []
    for what, figures in shown.items():
        lines = [
            Bar(
                label=f"{result.name(row)} · {row['probe']}",
                value=value,
                interval=None if report.get("photographs") == 1 else interval,
                is_baseline=row["is_baseline"],
                color=color if result.is_own(row) else OTHERS_COLOR,
            )
            for row, (value, interval) in zip(rows, figures, strict=True)
        ]
        chart = bars(lines, f"{run.name}, {task}, R² of {what}")
        several = len(result.document["tasks"]) > 1
        of = f"{task}, {what}" if several and len(shown) > 1 else what
        caption = tag("figcaption", tag("b", text(of if len(shown) > 1 else task)), " R²")
        panels.append(tag("figure", caption, chart, class_="panel"))
    return panels


def _differences(report: dict[str, Any]) -> str:
    """Every trained row's best probe less that of each baseline, on the same test images."""
    if report.get("photographs") == 1 or not report.get("differences"):
        return ""
    lines = []
    for row in report["differences"]:
        every = zip(
            (*row["r2"], row["mean"]),
            (*row["low"], row["mean_low"]),
            (*row["high"], row["mean_high"]),
            strict=True,
        )
        cells = [f"{signed(v)} {tag('small', f'{signed(a)} to {signed(b)}')}" for v, a, b in every]
        lines.append([text(row["label"]), text(row["against"]), *cells])
    head = ["features", "less", *(f"R² {text(n)}" for n in report["names"]), "mean"]
    caption = "Differences of the best probes, with 95 % intervals of the differences"
    return table(caption, head, lines, numbers=2)


def _table(run: Run, task: str, report: dict[str, Any]) -> str:
    names = report["names"]
    head = ["features", "probe", *(f"R² {text(n)}" for n in names), "mean", "pooled"]
    head += [f"median |Δ{text(n)}|" for n in names]
    lines = []
    single = report.get("photographs") == 1
    for row in report["scores"]:
        r2 = [
            two(v) if single else f"{two(v)} {tag('small', f'{two(a)} to {two(b)}')}"
            for v, a, b in zip(row["r2"], row["low"], row["high"], strict=True)
        ]
        errors = [number(e) + _UNITS.get(n, "") for e, n in zip(row["error"], names, strict=True)]
        cells = [text(row["probe"]), *r2, two(row["mean"]), two(row["pooled"]), *errors]
        lines.append([marked(row), *cells])
    how = "from one test photograph" if single else "with 95 % intervals"
    caption = f"R² of {text(task)} in {text(run.name)}, every probe, {how}"
    return table(caption, head, lines, numbers=2)


def classes(run: Run, color: int) -> list[str]:
    """Accuracies with intervals; of a RotNet also of the predicted rotations."""

    def show(file: str, result: Result) -> str:
        document = result.document
        groups: dict[str, list[Bar]] = {}
        lines = []
        for row in document["scores"]:
            each = row["labels_per_class"]
            probe = row["probe"] + (f", {each} labels a class" if each else "")
            share, low, high = row["accuracy"], row["low"], row["high"]
            bar = Bar(
                label=result.name(row),
                value=share,
                interval=(low, high),
                is_baseline=row["is_baseline"],
                color=color if result.is_own(row) else OTHERS_COLOR,
            )
            groups.setdefault(probe, []).append(bar)
            span = tag("small", f"{low:.3f} to {high:.3f}")
            lines.append([marked(row), text(probe), f"{share:.3f} {span}"])
        panels = []
        for probe, found in groups.items():
            chart = bars(found, f"{run.name}, accuracy of {probe}", digits=3)
            caption = tag("figcaption", tag("b", text(probe)), " accuracy")
            panels.append(tag("figure", caption, chart, class_="panel"))
        how = (
            f"From {file}: {document['classes']} classes from frozen features, fitted on "
            f"{document['train_images']:,} and tested on {document['test_images']:,} images; 95 % "
            f"intervals. Training images: {document['split']['train']}; test images: "
            f"{document['split']['test']}."
        )
        if result.kind == "rotnet":
            how += f" Rotations predicted correctly: {_rotations(result)}."
        anchors = document.get("published")
        if anchors:
            how += f" {anchors[0].upper()}{anchors[1:]}."
        head = ["features", "probe", "accuracy"]
        whole = table(f"Accuracies in {text(file)}, with 95 % intervals", head, lines, numbers=2)
        folded = tag("details", tag("summary", "As a table"), whole)
        intro = tag("p", text(how), class_="note") + images_of(result)
        return intro + tag("div", *panels, class_="panels") + folded

    return each_result(run, CLASSES, show)


def _rotations(result: Result) -> str:
    """Of every encoder the accuracy, and of chance."""
    said = []
    for row in result.document["rotation_accuracy"]:
        if row["is_baseline"]:
            said.append(f"{row['features']} {row['accuracy']:.3f}")
        else:
            each = ", ".join(f"{angle}° {share:.3f}" for angle, share in row["by_rotation"].items())
            said.append(f"{row['encoder']} {row['accuracy']:.3f} ({each})")
    return "; ".join(said)


def reconstruction(run: Run) -> list[str]:
    """PSNR and SSIM of every step beside the nearer view's, and the spectra of the features."""

    def show(file: str, result: Result) -> str:
        document = result.document
        parts = [tag("p", text(f"From {file}: {document['images']:,} views."), class_="note")]
        parts.append(images_of(result))
        single = document.get("photographs") == {"test": 1}
        if "pooled" in document:
            parts.append(_predictions(run, document, single))
        lines, gained = [], []
        for name, label, unit, digits in (("psnr", "PSNR", " dB", 2), ("ssim", "SSIM", "", 3)):
            found = document.get(name)
            if found is None:
                continue
            steps = zip(found["predicted"], found["nearer_view"], strict=True)
            for k, values in enumerate(steps, 1):
                lines.append([label, str(k), *(f"{value:.{digits}f}{unit}" for value in values)])
            gain, interval = f"{found['gain']:+.{digits}f}{unit}", _interval(found, digits, single)
            gained.append(f"{label} gained {gain}{interval}.".replace("-", "−"))
        if lines:
            caption = (
                "Means over images: predicted, and as a baseline the nearer view in their place"
            )
            how = SINGLE if single else "In brackets 95 % intervals over photographs."
            note = f"{' '.join(gained)} {how}"
            head = ["measure", "k", "predicted", "nearer view"]
            parts.append(table(caption, head, lines) + tag("p", text(note), class_="note"))
        spectra = []
        for s in document["spectra"]:
            name = f"{s['features']}, {'tokens' if s['tokens'] == 'all' else 'mean token'}"
            dimensions = [f"{s[effective]:.1f}" for effective in ("participation", "entropy")]
            figures = [str(s["channels"]), str(s["rank"]), number(s["variance"])]
            spectra.append([text(name), *figures, *dimensions])
        head = ["features", "channels", "rank", "variance", "participation", "exp entropy"]
        parts.append(table("Dimensions that features use", head, spectra))
        return "".join(parts)

    return each_result(run, ("reconstruct",), show)


def _interval(found: dict[str, Any], digits: int, single: bool) -> str:
    """ " (+3.6 to +4.9)"; nothing of one photograph, of which earlier files have numbers too."""
    low, high = found.get("low"), found.get("high")
    if single or low is None or high is None:
        return ""
    return f" ({low:+.{digits}f} to {high:+.{digits}f})"


def _predictions(run: Run, document: dict[str, Any], single: bool) -> str:
    """The gain in the squared error of all pixels, and where it comes from."""
    pooled = document["pooled"]
    said = (
        f"The squared error of all pixels is {pooled['predicted']:.2f} dB, that of the nearer view "
        f"in their place {pooled['nearer_view']:.2f} dB: pooled gain {pooled['gain']:+.1f} dB"
        f"{_interval(pooled, 1, single)}."
    )
    seams = document.get("seams", {})  # of files made before they were measured
    if None not in (seams.get("predicted"), seams.get("target")):
        said += (
            f" Squared differences of neighbouring pixels across edges of patches are "
            f"{seams['predicted']:.2f} times those inside (targets: {seams['target']:.2f})."
        )
    panels = []
    for name, what in (("by_texture", "texture"), ("by_angle", "angle")):
        if rows := [(row["name"], row["pooled"]) for row in document[name]]:
            chart = gains(rows, f"{run.name}, pooled gain by {what}", "dB")
            caption = tag("figcaption", tag("b", f"by {what}"), " pooled gain, dB")
            panels.append(tag("figure", caption, chart, class_="panel"))
    note = tag("p", text(said.replace(" -", " −").replace("(-", "(−")), class_="note")
    return note + tag("div", *panels, class_="panels")


def others(run: Run) -> list[str]:
    """Every JSON file that is no result file, field by field; of lists of objects their lengths."""

    def shown(value: Any) -> str:
        if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
            return f"{len(value):,} entries"
        return text(number(value, 4) if isinstance(value, float) else value)

    parts = []
    for file, found in run.others.items():
        rows = [
            [text(name), shown(value)]
            for name, value in flatten(found).items()
            if not name.startswith("machine.")
        ]
        listing = table(text(f"{file} of {run.name}"), ["field", "value"], rows)
        parts.append(tag("details", tag("summary", text(file)), listing))
    return parts


def images_of(result: Result) -> str:
    """Which images a result is of, and a warning where they were not held out."""
    data, seen = result.document.get("data"), seen_note(result)
    places = [data] if isinstance(data, str) else data or []
    told = tag("p", text(f"Images: {', '.join(places)}."), class_="note") if places else ""
    return told + (tag("p", text(seen), class_="warning") if seen else "")


def each_result(run: Run, kinds: Collection[str], show: Callable[[str, Result], str]) -> list[str]:
    """What `show` makes of each of a run's results of some kinds, and sentences on damaged ones."""
    parts = []
    for file, result in run.results.items():
        if result.kind not in kinds:
            continue
        try:
            parts.append(show(file, result))
        except DAMAGED as error:
            why = f"{file} is not as expected ({type(error).__name__}: {error}), so not shown"
            parts.append(tag("p", text(why), class_="warning"))
    return parts
