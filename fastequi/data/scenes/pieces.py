"""What is pasted: cut-outs of photographs, text and shapes, each with an exact outline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.homographies import Mask, Matrix, covered, moved, shift, warped
from fastequi.data.scenes.photographs import Photographs

CLASSES = ("background", "cut-out", "text", "disc", "square", "triangle", "star", "ring")
"""By id; of a piece never the first."""

_MARGIN = 2  # pixels that an outline leaves free at the borders, so that colours go on beyond it
_LETTERS = "ABCDEFGHKLMNPRSTUVXYZ"
_STROKE = 16  # of a letter's height, how much thicker lines become on each side


@dataclass(frozen=True)
class Piece:
    """A square that is shown where its outline is.

    Attributes:
        id: its place in CLASSES.
        colours: [S, S, 3] uint8, also outside the outline.
        shape: [S, S], inside the outline.
    """

    id: int
    colours: Pixels
    shape: Mask

    @property
    def side(self) -> int:
        """S, in pixels."""
        return len(self.shape)

    def paste(self, image: Pixels, ids: NDArray[np.uint8], matrix: Matrix, label: int) -> None:
        """Puts it over an image [H, W, 3], and a label into ids [H, W] where it is seen.

        Args:
            image, ids: changed in place.
            matrix: [3, 3] from places in the piece to places in the image.
            label: for `ids`.
        """
        corners = moved(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * float(self.side), matrix)
        most = image.shape[1], image.shape[0]
        x0, y0 = np.clip(np.floor(corners.min(0)), 0, most).astype(int).tolist()
        x1, y1 = np.clip(np.ceil(corners.max(0)), 0, most).astype(int).tolist()
        if x0 == x1 or y0 == y1:
            return
        size, inside = (y1 - y0, x1 - x0), shift(-x0, -y0) @ matrix
        seen = covered(self.shape, inside, size)
        image[y0:y1, x0:x1][seen] = warped(self.colours, inside, size)[seen]
        ids[y0:y1, x0:x1][seen] = label


def any_id(generator: np.random.Generator) -> int:
    """Of a piece of any class."""
    return int(generator.integers(1, len(CLASSES)))


def piece(generator: np.random.Generator, photographs: Photographs, id: int, side: int) -> Piece:
    """A piece of a class, `side` pixels wide; half of all shapes show a photograph."""
    name = CLASSES[id]
    mask = Image.new("L", (side, side))
    _OUTLINES[name](ImageDraw.Draw(mask), generator, side)
    shows_photograph = name == "cut-out" or (name != "text" and generator.random() < 0.5)
    if shows_photograph:
        colours = photographs.window(generator, side, side)
    else:
        colours = _gradient(generator, side)
    return Piece(id, colours, np.array(mask) > 127)


def _gradient(generator: np.random.Generator, side: int) -> Pixels:
    """From one colour to a near one, across."""
    start = generator.uniform(0, 255, 3)
    end = np.clip(start + generator.uniform(-80, 80, 3), 0, 255)
    row = start + (end - start) * np.linspace(0, 1, side)[:, None]
    return np.repeat(row.round().astype(np.uint8)[None], side, 0)


def _star(draw: ImageDraw.ImageDraw, _: np.random.Generator, side: int) -> None:
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    _polygon(draw, side, np.arange(10) * math.tau / 10, radii)


def _blob(draw: ImageDraw.ImageDraw, generator: np.random.Generator, side: int) -> None:
    angles = np.arange(180) * math.tau / 180
    radii = np.ones(180)
    for k in range(2, 6):
        radii += generator.uniform(0, 0.5 / k) * np.cos(k * angles + generator.uniform(0, math.tau))
    _polygon(draw, side, angles, radii / radii.max())


def _polygon(
    draw: ImageDraw.ImageDraw, side: int, angles: Matrix, radii: Matrix, fill: int = 255
) -> None:
    reach = side / 2 - _MARGIN
    x, y = side / 2 + reach * radii * np.sin(angles), side / 2 - reach * radii * np.cos(angles)
    draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=fill)


def _regular(corners: int) -> Callable[[ImageDraw.ImageDraw, np.random.Generator, int], None]:
    def outline(draw: ImageDraw.ImageDraw, _: np.random.Generator, side: int) -> None:
        angles = (np.arange(corners) + (0.5 if corners == 4 else 0)) * math.tau / corners
        _polygon(draw, side, angles, np.ones(corners))

    return outline


def _ring(draw: ImageDraw.ImageDraw, _: np.random.Generator, side: int) -> None:
    angles = np.arange(180) * math.tau / 180
    _polygon(draw, side, angles, np.ones(180))
    _polygon(draw, side, angles, np.full(180, 0.5), fill=0)


def _text(draw: ImageDraw.ImageDraw, generator: np.random.Generator, side: int) -> None:
    """Two or three capitals of Pillow's own font, as wide as fits."""
    word = "".join(generator.choice(list(_LETTERS), generator.integers(2, 4)))
    points, room = 2 * side, side - 2 * _MARGIN
    left, top, right, bottom = _box(draw, word, points)
    while max(right - left, bottom - top) > room and points > 1:
        points = min(points - 1, int(points * room / max(right - left, bottom - top)))
        left, top, right, bottom = _box(draw, word, points)
    at = (side - left - right) / 2, (side - top - bottom) / 2
    font = ImageFont.load_default(points)
    draw.text(at, word, 255, font, stroke_width=points // _STROKE)


def _box(draw: ImageDraw.ImageDraw, word: str, points: int) -> tuple[float, float, float, float]:
    font = ImageFont.load_default(points)
    return draw.textbbox((0, 0), word, font, stroke_width=points // _STROKE)


_OUTLINES: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator, int], None]] = {
    "cut-out": _blob,
    "text": _text,
    "disc": _regular(180),
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _star,
    "ring": _ring,
}
