"""What was found out about runs, as sections of the report: R², classes, pictures.

A result file that is not as expected becomes a sentence that says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastequi.evaluate.charts import Bar, bars
from fastequi.evaluate.figures import Sheet, Tile
from fastequi.evaluate.markup import number, scroll, table, tag, text
from fastequi.evaluate.runs import Run, flatten

_FLOORS = ("mean predictor", "raw", "transformed image alone", "random init", "pixels")
_UNITS = {"angle": "°", "tx": " px", "ty": " px", "sigma": " px", "hue": " turns"}
_ANGLES = ("0", "90", "180", "270")


def is_floor(features: str) -> bool:
    """Whether a row says what anyone reads without training."""
    return features.startswith(_FLOORS)


def is_equivariance(result: dict[str, Any]) -> bool:
    return {"names", "scores"} <= set(result)


def is_classes(result: dict[str, Any]) -> bool:
    return isinstance(result.get("classes"), list)


def best_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every kind of features the row of the probe that reads most, by the mean R²."""
    best: dict[str, dict[str, Any]] = {}
    for row in result["scores"]:
        if row["features"] not in best or _mean(row) > _mean(best[row["features"]]):
            best[row["features"]] = row
    return list(best.values())


def _mean(row: dict[str, Any]) -> float:
    return sum(row["r2"]) / len(row["r2"])


def headline(run: Run) -> list[tuple[str, str, str]]:
    """(what, figure, what to hold against it) for the run's card."""
    found: list[tuple[str, str, str]] = []
    for result in run.results.values():
        if is_equivariance(result) and not any(what == "mean R²" for what, _, _ in found):
            rows = best_rows(result)
            ours = [row for row in rows if not is_floor(row["features"])]
            floors = [_mean(row) for row in rows if is_floor(row["features"])]
            if ours and floors:
                top = max(ours, key=_mean)
                note = f"{top['features']}; strongest floor {max(floors):.2f}"
                found.append(("mean R²", f"{_mean(top):.2f}", note))
        psnr = result.get("psnr")
        if isinstance(psnr, dict) and {"predicted", "nearer_view"} <= set(psnr):
            note = f"of the nearer view in its place {psnr['nearer_view']:.2f} dB"
            found.append(("PSNR", f"{psnr['predicted']:.2f} dB", note))
        turns = result.get("rotation_accuracy")
        if isinstance(turns, dict) and "all" in turns:
            found.append(("turns told right", f"{turns['all']:.3f}", "chance 0.250"))
    return [
        (what, figure.replace("-", "−"), note.replace("-", "−")) for what, figure, note in found
    ]


def equivariance(run: Run, color: int) -> list[str]:
    """Charts and the whole table of every file of R² in a run."""
    return _each(run, is_equivariance, lambda name, r: _equivariance(run, name, r, color))


def _equivariance(run: Run, file: str, result: dict[str, Any], color: int) -> str:
    rows, names = best_rows(result), result["names"]
    charts = []
    for i, name in enumerate(names):
        panel = [
            Bar(
                f"{row['features']} · {row['probe']}",
                row["r2"][i],
                row["low"][i],
                row["high"][i],
                is_floor(row["features"]),
                color,
            )
            for row in rows
        ]
        title = f"{run.name}, R² of {name}"
        charts.append(
            tag(
                "figure",
                tag("figcaption", tag("b", text(name)), " R²"),
                bars(panel, title),
                class_="panel",
            )
        )
    pairs = f"{result.get('train_pairs', 0):,} / {result.get('test_pairs', 0):,} pairs"
    seeds = max((len(row.get("seeds", [])) for row in result["scores"]), default=1)
    intro = tag(
        "p",
        f"From {text(file)}: probes fitted and judged on {pairs}, {seeds} seeds. Every kind of "
        f"features by the probe that reads most from it; whiskers are 95 % intervals over the test "
        f"pairs. Hollow bars are floors, which need no training; the mean predictor reads 0.",
        class_="note",
    )
    head = ["features", "probe", *(f"R² {text(n)}" for n in names), "mean", "pooled"]
    head += [f"median |Δ{text(n)}|" for n in names]
    lines = []
    for row in result["scores"]:
        r2 = [
            f"{_two(v)} {tag('small', f'{_two(a)} to {_two(b)}')}"
            for v, a, b in zip(row["r2"], row["low"], row["high"], strict=True)
        ]
        errors = [number(e) + _UNITS.get(n, "") for e, n in zip(row["error"], names, strict=True)]
        label = text(row["features"]) + (
            " " + tag("i", "floor") if is_floor(row["features"]) else ""
        )
        cells = [text(row["probe"]), *r2, _two(_mean(row)), _two(row["pooled"]), *errors]
        lines.append([label, *cells])
    whole = table(
        f"R² of {text(run.name)}, every probe, with 95 % intervals", head, lines, numbers=2
    )
    panels = tag("div", *charts, class_="panels")
    return intro + panels + tag("details", tag("summary", "Every probe, as a table"), whole)


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def classes(run: Run, color: int) -> list[str]:
    """Charts of accuracies with intervals; RotNet's turns beside them."""
    return _each(run, is_classes, lambda name, r: _classes(run, name, r, color))


def _classes(run: Run, file: str, result: dict[str, Any], color: int) -> str:
    groups: dict[str, list[Bar]] = {}
    for row in result["classes"]:
        few = f"{row['per_class']} labels a class" if row.get("per_class") else "all labels"
        where = ", ".join(part for part in (row["network"], row.get("block", "")) if part)
        bar = Bar(where, row["accuracy"], row["low"], row["high"], is_floor(row["network"]), color)
        groups.setdefault(f"{row['probe']}, {few}", []).append(bar)
    panels = [
        tag(
            "figure",
            tag("figcaption", tag("b", text(name)), " accuracy"),
            bars(rows, f"{run.name}, accuracy of {name}"),
            class_="panel",
        )
        for name, rows in groups.items()
    ]
    images = f"{result.get('train_images', 0):,} / {result.get('test_images', 0):,} images"
    intro = f"From {text(file)}: classifiers on frozen features, {images}; 95 % intervals."
    turns = result.get("rotation_accuracy")
    if isinstance(turns, dict):
        each = ", ".join(f"{a}° {turns[a]:.3f}" for a in _ANGLES if a in turns)
        intro += f" Turns told right: {turns['all']:.3f} (chance 0.250; {each})."
    return tag("p", intro, class_="note") + tag("div", *panels, class_="panels")


def others(run: Run) -> list[str]:
    """Every other result as it is."""

    def whole(file: str, result: dict[str, Any]) -> str:
        rows = [
            [text(name), text(value if not isinstance(value, float) else number(value, 4))]
            for name, value in flatten(result).items()
            if not name.startswith("machine.")
        ]
        return tag(
            "details", tag("summary", text(file)), table(text(file), ["field", "value"], rows)
        )

    return _each(run, lambda r: not (is_equivariance(r) or is_classes(r)), whole)


def _each(
    run: Run,
    wanted: Callable[[dict[str, Any]], bool],
    show: Callable[[str, dict[str, Any]], str],
) -> list[str]:
    shown = []
    for file, result in run.results.items():
        if wanted(result):
            try:
                shown.append(show(file, result))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                why = f"{file} is not as expected ({type(error).__name__}: {error}), so not shown"
                shown.append(tag("p", text(why), class_="warning"))
    return shown


def pictures(run: Run, sheets: dict[str, Sheet]) -> list[str]:
    """Every sheet of a run; without any, the picture that its demo left."""
    shown = [_sheet(run, sheet) for sheet in sheets.values()]
    left = run.folder / "reconstructions.png"
    if "reconstructions" not in sheets and left.is_file():
        note = "v1, then target and prediction of every step, then v2 (reconstructions.png)."
        picture = tag(
            "img", src=_data_uri(left), alt=f"{run.name}: {note}", class_="whole", loading="lazy"
        )
        caption = tag("figcaption", tag("b", "Reconstructions along the path"), " ", text(note))
        shown.insert(0, tag("figure", caption, scroll(picture, "reconstructions")))
    return shown


def _sheet(run: Run, sheet: Sheet) -> str:
    kind = "smooth" if sheet.smooth else "px"

    def tile(row: int, column: int) -> str:
        picture = sheet.rows[row][column]
        alt = f"{sheet.columns[column]}, image {row + 1}"
        if sheet.captions:
            alt += f", {sheet.captions[row][column]}"
        return tag(
            "img",
            src=_tile_uri(picture),
            alt=alt,
            width=sheet.side,
            height=sheet.side,
            class_=kind,
        )

    note = sheet.note
    if sheet.wrap:
        note += f" From left to right: {', '.join(sheet.columns)}."
        groups = [
            tag("li", *(tile(i, j) for j in range(len(row)))) for i, row in enumerate(sheet.rows)
        ]
        inner = tag("ul", *groups, class_="pairs")
    else:
        head = tag("tr", *(tag("th", text(title), scope="col") for title in sheet.columns))
        body = []
        for i, row in enumerate(sheet.rows):
            cells = []
            for j in range(len(row)):
                below = tag("small", text(sheet.captions[i][j])) if sheet.captions else ""
                cells.append(tag("td", tile(i, j), below))
            body.append(tag("tr", *cells))
        inner = scroll(
            tag("table", tag("thead", head), tag("tbody", *body), class_="sheet"), sheet.title
        )
    caption = tag("figcaption", tag("b", text(sheet.title)), " ", text(note))
    return tag("figure", caption, inner)


def _tile_uri(tile: Tile) -> str:
    """Small tiles exactly, as PNG; larger ones as JPEG, a tenth of the size."""
    buffer, image = io.BytesIO(), Image.fromarray(tile)
    if max(image.size) <= 64:
        image.save(buffer, "PNG", optimize=True)
        return _uri("image/png", buffer.getvalue())
    image.save(buffer, "JPEG", quality=86)
    return _uri("image/jpeg", buffer.getvalue())


def _data_uri(file: Path) -> str:
    return _uri("image/png", file.read_bytes())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


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
