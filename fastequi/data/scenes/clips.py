"""`clips/`: videos with an object's id for each pixel, in DAVIS 2017's layout.

Two to four objects start around the middle and go to the other side along parabolas, turning and
growing, so that their paths cross; one of a higher id hides one of a lower. The photograph behind
them moves too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.files import Job, save_ids, save_jpeg
from fastequi.data.scenes.homographies import Matrix, Size, shift, similarity, warped
from fastequi.data.scenes.photographs import Photographs
from fastequi.data.scenes.pieces import Piece, any_id, piece
from fastequi.data.scenes.settings import Settings

_OBJECTS = 2, 4
_SIDE = 0.2, 0.35  # of the shorter side
_ASPECT = 854 / 480  # of DAVIS' videos
_MARGIN = 0.15  # of each side, that the photograph behind can move by
_AROUND = 0.3  # of each side, from the middle to where objects start


@dataclass(frozen=True)
class Moving:
    """An object and its path.

    Attributes:
        piece: what it shows.
        places: [3, 2] of a quadratic Bézier curve, pixels.
        degrees, scale: at the beginning and at the end.
    """

    piece: Piece
    places: Matrix
    degrees: tuple[float, float]
    scale: tuple[float, float]

    def at(self, time: float) -> Matrix:
        """[3, 3] from the piece to the frame at a time in 0..1."""
        curve = np.array([(1 - time) ** 2, 2 * time * (1 - time), time**2])
        x, y = curve @ self.places
        degrees, scale = ((1 - time) * a + time * b for a, b in (self.degrees, self.scale))
        return similarity(x, y, degrees, scale, self.piece.side)


def frame_size(size: int) -> Size:
    """Of clips whose shorter side is `size`: DAVIS' shape."""
    return size, round(size * _ASPECT)


def clip(
    generator: np.random.Generator, photographs: Photographs, size: Size, frames: int
) -> list[tuple[Pixels, NDArray[np.uint8]]]:
    """Frames [H, W, 3] with ids [H, W] uint8: 0 behind, 1, 2, ... the objects.

    Every object is seen in the first frame.
    """
    behind = photographs.window(generator, *(round(side * (1 + 2 * _MARGIN)) for side in size))
    room = 2 * _MARGIN * np.array([size[1], size[0]])
    start, end = generator.uniform(0, 1, (2, 2)) * room
    while True:
        count = int(generator.integers(_OBJECTS[0], _OBJECTS[1] + 1))
        objects = [_moving(generator, photographs, size, i / count) for i in range(count)]
        made = [
            _frame(behind, start + (end - start) * time, objects, time, size)
            for time in np.linspace(0, 1, frames)
        ]
        if set(range(1, count + 1)) <= set(np.unique(made[0][1]).tolist()):
            return made


def _moving(
    generator: np.random.Generator, photographs: Photographs, size: Size, around: float
) -> Moving:
    side = round(min(size) * generator.uniform(*_SIDE))
    each = piece(generator, photographs, any_id(generator), side)
    middle = np.array([size[1], size[0]]) / 2
    angle = math.tau * around + generator.uniform(-0.3, 0.3)
    other = angle + math.pi + generator.uniform(-0.6, 0.6)
    ends = [
        middle * (1 + 2 * _AROUND * np.array([math.cos(a), math.sin(a)])) for a in (angle, other)
    ]
    control = middle * (1 + generator.uniform(-0.5, 0.5, 2))
    return Moving(
        each,
        np.stack([ends[0], control, ends[1]]),
        (float(generator.uniform(-20, 20)), float(generator.uniform(-60, 60))),
        (1.0, float(generator.uniform(0.8, 1.25))),
    )


def _frame(
    behind: Pixels, corner: Matrix, objects: list[Moving], time: float, size: Size
) -> tuple[Pixels, NDArray[np.uint8]]:
    image = warped(behind, shift(*-corner), size)
    ids = np.zeros(size, np.uint8)
    for label, each in enumerate(objects, 1):
        each.piece.paste(image, ids, each.at(time), label)
    return image, ids


def jobs(
    folder: Path, settings: Settings, train: Photographs, validation: Photographs
) -> Iterator[Job]:
    """Each writes a clip, of photographs for validation; the first also their list."""
    names = [f"scene-{item:03d}" for item in range(settings.clips)]

    def listed() -> None:
        file = folder / "ImageSets" / "2017" / "val.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in names))

    yield listed
    size = frame_size(settings.size)
    for item, name in enumerate(names):

        def job(item: int = item, name: str = name) -> None:
            generator = settings.generator("clips", item)
            for i, (image, ids) in enumerate(clip(generator, validation, size, settings.frames)):
                save_jpeg(folder / "JPEGImages" / "480p" / name / f"{i:05d}.jpg", image)
                save_ids(folder / "Annotations" / "480p" / name / f"{i:05d}.png", ids)

        yield job
