"""Evaluations of geometry as a section of the report, and the plot of `fastequi eval layers`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from fastequi.evaluate.geometry.blocks import place
from fastequi.evaluate.geometry.kinds import KINDS
from fastequi.evaluate.results import Result, read, write
from fastequi.report.charts import Bar, Curve, bars, curves, standalone
from fastequi.report.findings import marked
from fastequi.report.markup import table, tag, text
from fastequi.report.runs import Run
from fastequi.report.sections import OTHERS_COLOR, SINGLE, each_result, images_of

Found = dict[str, Any]
"""A table as a file holds it; see `fastequi.evaluate.geometry.figures.Table`."""

_LETTERS = ("E", "I", "P")
_LEGEND = (
    "E equivariance, I invariance, P invariance of the mean token; small letters: random init. "
    "Block 0 is the embedding of patches."
)


def geometry(run: Run, color: int) -> list[str]:
    """Charts and the whole tables of every evaluation of geometry in a run's files."""

    def show(file: str, result: Result) -> str:
        found: dict[str, Found] = result.document["tables"]
        how = f"From {file}: {KINDS[result.kind]}."
        if result.kind == "layers":
            how += f" {_LEGEND}"
        if all(each["photographs"] == 1 for each in found.values()):
            how += f" {SINGLE}"
        parts = [tag("p", text(how), class_="note"), images_of(result)]
        panels = []
        for title, each in found.items():
            if result.kind == "layers":
                what, chart = "cosines over blocks", layer_curves(result, title, color)
            else:
                what, chart = each["figures"][0]["name"], _bars(run, result, title, color)
            if chart:
                caption = tag("figcaption", tag("b", text(title)), f" {text(what)}")
                panels.append(tag("figure", caption, chart, class_="panel"))
        if panels:
            parts.append(tag("div", *panels, class_="panels"))
        for title, each in found.items():
            whole = _table(f"{result.kind}, {title}, of {run.name}", each)
            parts.append(tag("details", tag("summary", text(f"{title}: every figure")), whole))
        return "".join(parts)

    return each_result(run, KINDS, show)


def layer_curves(result: Result, title: str, color: int = 0) -> str:
    """Cosines over blocks of a file of `layers`; "" where no blocks are known.

    Args:
        result: the file.
        title: of the table.
        color: of the encoder's own equivariance, an index into the page's palette.
    """
    scores = result.document["tables"][title]["scores"]
    drawn = []
    for own, letters, hue in ((True, _LETTERS, color), (False, ("e",), OTHERS_COLOR)):
        rows = [
            (place(row["features"]), row["values"])
            for row in scores
            if (result.is_own(row) if own else row["encoder"] == "random init")
        ]
        for i, letter in enumerate(letters):
            points = [(float(x), v[i]) for x, v in rows if x is not None and v[i] == v[i]]
            if points:
                drawn.append(Curve(letter, hue if not own else (color + i) % OTHERS_COLOR, points))
    if not any(curve.letter in _LETTERS for curve in drawn):
        return ""
    what = f"{result.encoder}, {title}: cosines of tokens"
    return curves(drawn, what, exact=True, over="blocks")


def draw_layers(file: Path) -> Path | None:
    """The plot of a file of `fastequi eval layers`, FILE.svg beside it; None without blocks.

    Args:
        file: that the evaluation wrote.
    """
    result = read(json.loads(file.read_text()))
    charts = {title: layer_curves(result, title) for title in result.document["tables"]}
    letters = "E equivariance, I invariance, P pooled, e random init"
    panels = [(f"{title}: {letters}", chart) for title, chart in charts.items() if chart]
    if not panels:
        return None
    css = resources.files("fastequi.report").joinpath("report.css").read_text()
    out = file.with_suffix(".svg")
    write(out, standalone(panels, css))
    return out


def _bars(run: Run, result: Result, title: str, color: int) -> str:
    """The first figure of every row, where more is better: a bar is long where features are."""
    found: Found = result.document["tables"][title]
    first = found["figures"][0]
    rows = [row for row in found["scores"] if row["values"][0] == row["values"][0]]
    if first["better"] != "higher" or not rows:
        return ""
    lines = [
        Bar(
            label=result.name(row),
            value=row["values"][0],
            interval=None if found["photographs"] == 1 else (row["low"][0], row["high"][0]),
            is_baseline=row["is_baseline"],
            color=color if result.is_own(row) else OTHERS_COLOR,
        )
        for row in rows
    ]
    return bars(lines, f"{run.name}, {title}, {first['name']}", digits=first["digits"])


def _table(caption: str, found: Found) -> str:
    figures, single = found["figures"], found["photographs"] == 1
    lines = []
    for row in found["scores"]:
        values = zip(figures, row["values"], row["low"], row["high"], strict=True)
        lines.append([marked(row), *(_cell(*each, single=single) for each in values)])
    how = "" if single else ", with 95 % intervals"
    unit = found.get("unit", "images")
    of = f"{found['images']:,} {unit} of {found['photographs']:,} photographs"
    head = ["features", *(text(figure["name"]) for figure in figures)]
    return table(text(f"{caption}: {of}{how}"), head, lines)


def _cell(figure: Found, value: float, low: float, high: float, *, single: bool) -> str:
    if value != value:  # NaN
        return "–"
    shown, *ends = (f"{v:.{figure['digits']}f}".replace("-", "−") for v in (value, low, high))
    return shown if single or low == high else f"{shown} {tag('small', ' to '.join(ends))}"
