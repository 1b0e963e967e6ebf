"""Sheets of tiles as HTML: tables or groups that fit any width, every tile as data of the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from fastequi.report.markup import scroll, tag, text
from fastequi.report.runs import Run
from fastequi.report.sheets import Sheet, Tile


def pictures(run: Run, sheets: dict[str, Sheet]) -> list[str]:
    """Every sheet of a run; without reconstructions among them, the picture that its demo left."""
    shown = [_sheet(run, sheet) for sheet in sheets.values()]
    left = run.folder / "reconstructions.png"
    if "reconstructions" not in sheets and left.is_file():
        note = "v1, then target and prediction of every step, then v2 (reconstructions.png)."
        with Image.open(left) as image:
            width, height = image.size
        size = {"width": width, "height": height, "class_": "whole"}
        picture = tag("img", src=_data_uri(left), alt=f"{run.name}: {note}", **size)
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
            tag(
                "table",
                tag("thead", head),
                tag("tbody", *body),
                class_="sheet",
                style=f"--n: {len(sheet.columns)}",
            ),
            sheet.title,
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
