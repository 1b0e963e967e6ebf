"""Images with something known of each pixel: the jobs of `segment/` and `depth/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.files import Job, save_jpeg
from fastequi.data.scenes.photographs import Photographs
from fastequi.data.scenes.settings import Settings

Scene = Callable[[np.random.Generator, Photographs], tuple[Pixels, Callable[[Path], None]]]
"""Draws an image [S, S, 3], and gives with it what writes the file of its pixels' truth."""


def image_jobs(
    kind: str,
    truth: str,
    folder: Path,
    settings: Settings,
    train: Photographs,
    validation: Photographs,
    scene: Scene,
) -> Iterator[Job]:
    """Each writes an image and its truth, in `images/` and in a folder named `truth`."""
    fitted = settings.images - settings.validation
    for item in range(settings.images):
        part, photographs = ("train", train) if item < fitted else ("val", validation)

        def job(part: str = part, photographs: Photographs = photographs, item: int = item) -> None:
            image, save = scene(settings.generator(kind, item), photographs)
            save_jpeg(folder / part / "images" / f"{item:05d}.jpg", image)
            save(folder / part / truth / f"{item:05d}.png")

        yield job
