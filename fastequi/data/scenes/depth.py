"""`depth/`: images with a depth for each pixel, as `images/` and `depth/` in train/ and val/.

A pinhole camera looks at planes: a wall, a floor, and pieces that stand on the floor. A plane with
origin o and axes r, d (metres per pixel of its texture) is seen by the homography K [r d o], and
its depth at a pixel is n·o / n·K⁻¹(x, y, 1) with n = r × d. The nearest plane is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.files import Job, save_png
from fastequi.data.scenes.homographies import Mask, Matrix, covered, middles, warped
from fastequi.data.scenes.image_jobs import image_jobs
from fastequi.data.scenes.photographs import Photographs
from fastequi.data.scenes.pieces import any_id, piece
from fastequi.data.scenes.settings import Settings

UNITS = 1000  # of a metre in the files
_BOARDS = 3, 6
_ROOM = 14.0  # metres, side of the wall and of the floor


@dataclass(frozen=True)
class Plane:
    """A textured plane in the camera's axes: x right, y down, z away, metres.

    Attributes:
        colours: [H, W, 3] its texture.
        shape: [H, W], where it is.
        origin: [3] of the texture's upper left corner.
        right, down: [3] from a pixel of the texture to the next.
    """

    colours: Pixels
    shape: Mask
    origin: Matrix
    right: Matrix
    down: Matrix

    def homography(self, camera: Matrix) -> Matrix:
        """[3, 3] from places in the texture to places in the image."""
        return np.asarray(camera @ np.stack([self.right, self.down, self.origin], 1))

    def depth(self, camera: Matrix, size: int) -> Matrix:
        """[S, S] metres along the camera's axis; negative behind it."""
        places = middles((size, size))
        rays = np.concatenate([places, np.ones((size, size, 1))], -1) @ np.linalg.inv(camera).T
        normal = np.cross(self.right, self.down)
        return np.asarray((normal @ self.origin) / (rays @ normal))


def camera_of(size: int) -> Matrix:
    """[3, 3] of an image of `size` pixels a side that shows 53 degrees."""
    return np.array([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], np.float64)


def depth_scene(
    generator: np.random.Generator, photographs: Photographs, size: int
) -> tuple[Pixels, Matrix]:
    """An image [S, S, 3] and its depths [S, S] in metres."""
    return rendered(planes(generator, photographs, size), size)


def rendered(shown: list[Plane], size: int) -> tuple[Pixels, Matrix]:
    """What is seen of planes, and how far it is; infinity and black where there is none."""
    camera = camera_of(size)
    image = np.zeros((size, size, 3), np.uint8)
    nearest = np.full((size, size), np.inf)
    for plane in shown:
        matrix, depth = plane.homography(camera), plane.depth(camera, size)
        seen = covered(plane.shape, matrix, (size, size)) & (depth > 0) & (depth < nearest)
        image[seen] = warped(plane.colours, matrix, (size, size))[seen]
        nearest[seen] = depth[seen]
    return image, nearest


def planes(generator: np.random.Generator, photographs: Photographs, size: int) -> list[Plane]:
    """A wall, a floor and pieces on it. The wall is everywhere behind them, at 4 to 10 m."""
    height = generator.uniform(1.0, 1.8)
    away = generator.uniform(5.0, 7.5)
    found = [
        _wall(generator, photographs, 2 * size, away),
        _floor(generator, photographs, 2 * size, height),
    ]
    for _ in range(generator.integers(_BOARDS[0], _BOARDS[1] + 1)):
        z = generator.uniform(2.2, 0.8 * away)
        x = generator.uniform(-0.35, 0.35) * z
        tall = generator.uniform(0.7, 1.5)
        side = max(round(size * tall / z), 16)
        each = piece(generator, photographs, any_id(generator), side)
        right, down = _axes(generator.uniform(-35, 35), tall / side)
        foot = np.array([x, height, z])
        origin = foot - side / 2 * right - side * down
        found.append(Plane(each.colours, each.shape, origin, right, down))
    return found


def _wall(
    generator: np.random.Generator, photographs: Photographs, side: int, away: float
) -> Plane:
    right, down = _axes(generator.uniform(-20, 20), _ROOM / side)
    origin = np.array([0, 0, away]) - side / 2 * (right + down)
    return Plane(*_texture(generator, photographs, side), origin, right, down)


def _floor(
    generator: np.random.Generator, photographs: Photographs, side: int, height: float
) -> Plane:
    pixel = _ROOM / side
    right, down = np.array([pixel, 0, 0]), np.array([0, 0, -pixel])
    origin = np.array([-_ROOM / 2, height, _ROOM])
    return Plane(*_texture(generator, photographs, side), origin, right, down)


def _texture(
    generator: np.random.Generator, photographs: Photographs, side: int
) -> tuple[Pixels, Mask]:
    return photographs.window(generator, side, side), np.ones((side, side), bool)


def _axes(degrees: float, pixel: float) -> tuple[Matrix, Matrix]:
    """Right and down of an upright plane, turned about its vertical."""
    angle = math.radians(degrees)
    right = pixel * np.array([math.cos(angle), 0, math.sin(angle)])
    return right, np.array([0, pixel, 0])


def units(depth: Matrix) -> NDArray[np.uint16]:
    """Metres as the files have them: rounded, 0 where nothing is."""
    there = np.isfinite(depth)
    return np.where(there, np.where(there, depth, 0) * UNITS, 0).round().astype(np.uint16)


def jobs(
    folder: Path, settings: Settings, train: Photographs, validation: Photographs
) -> Iterator[Job]:
    """Each writes an image and its depths."""

    def scene(
        generator: np.random.Generator, photographs: Photographs
    ) -> tuple[Pixels, Callable[[Path], None]]:
        image, truth = depth_scene(generator, photographs, settings.size)
        return image, lambda file: save_png(file, units(truth))

    return image_jobs("depth", "depth", folder, settings, train, validation, scene)
