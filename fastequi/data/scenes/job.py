"""`fastequi data scenes OUT`: makes the folder, all of it or nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL

from fastequi.data.scenes import clips, depth, match, segment
from fastequi.data.scenes.photographs import Photographs, both
from fastequi.data.scenes.pieces import CLASSES
from fastequi.data.scenes.settings import Settings
from fastequi.data.sources.selection import Selection

_JOBS = {
    "segment": segment.jobs,
    "clips": clips.jobs,
    "depth": depth.jobs,
    "match": match.jobs,
}
_OF_PIXEL = 24  # bytes at least: a window, what is pasted on it, and ids
_SETTINGS = "scenes.json"
_CLASSES = ", ".join(f"{i} {name}" for i, name in enumerate(CLASSES))
_README = f"""\
Scenes made by `fastequi data scenes`: a test bed whose truth is exact, and never a benchmark.

Pieces (cut-outs of photographs, text, shapes) are pasted over photographs. What is measured here
says how an encoder does on such scenes, and nothing of real images; figures are not to be compared
with published ones. {_SETTINGS} says how to make the same bytes again. The photographs' licences
hold for what is made of them.

segment/{{train,val}}/images/*.jpg
segment/{{train,val}}/masks/*.png          class ids:
                                         {_CLASSES}
clips/JPEGImages/480p/NAME/00000.jpg     videos in DAVIS 2017's layout, whatever their size
clips/Annotations/480p/NAME/00000.png    palette of object ids: 0 behind, 1, 2, ... objects
clips/ImageSets/2017/val.txt             the names
depth/{{train,val}}/images/*.jpg
depth/{{train,val}}/depth/*.png            16 bits, along the camera's axis, 1/{depth.UNITS} m
match/v_NUMBER/1.png, 2.png              two views of a plane
match/v_NUMBER/H_1_2                     3x3, from pixels of 1.png to pixels of 2.png, which are
                                         counted from 0: (0, 0) is the middle of the first
match/v_NUMBER/mask_1.png, mask_2.png    255 where the plane is seen in both views

train/ and val/ are of different photographs (or parts of them); clips/ and match/ are of those of
val/.
"""


def make(
    out: Path, photos: Selection | None, settings: Settings, say: Callable[[int, int], None]
) -> bool:
    """Makes scenes, or finds them made.

    Args:
        out: a folder that is made, or empty, or holds scenes of the same settings.
        photos: see `photographs.both`.
        settings: what is made.
        say: called with how many images, clips and pairs of how many are done.

    Returns:
        Whether they were made; they were there else.

    Raises:
        ValueError: the folder holds something else or cannot be made, or there are too few
            photographs.
    """
    train, validation = both(photos)
    wanted = _about(settings, train, validation)
    if _holds(out, wanted):
        return False
    named, out = out, Path(os.path.abspath(out))
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"OUT: {named} cannot be made ({error.strerror})") from error
    try:
        todo = [
            job
            for kind, jobs in _JOBS.items()
            if kind in settings.kinds
            for job in jobs(temporary / kind, settings, train, validation)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(lambda job: job(), todo), 1):
                say(done, len(todo))
        (temporary / "README.txt").write_text(_README, encoding="utf-8")
        said = {"photos": "embedded" if photos is None else str(photos), **wanted}
        (temporary / _SETTINGS).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def bytes_at_once(settings: Settings, size: float, frames: float = 1) -> float:
    """Memory, at least, of what is made at the same time: an image or a clip for each core.

    Args:
        settings: what is made.
        size: of images and clips, instead of the settings'.
        frames: of clips, likewise.
    """
    cores = os.cpu_count() or 1
    image = _OF_PIXEL * size**2
    if "clips" not in settings.kinds:
        return cores * image
    pixels = math.prod(clips.frame_size(settings.size)) * (size / settings.size) ** 2
    return max(cores * image, min(cores, settings.clips) * 4 * pixels * frames)  # with ids


def _about(settings: Settings, train: Photographs, validation: Photographs) -> dict[str, Any]:
    """What the bytes depend on; photographs by their names and sizes in pixels."""
    return {
        **settings.to_json(),
        "photographs": [part.source.fingerprint() for part in (train, validation)],
        "pillow": PIL.__version__,
    }


def _holds(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether a folder holds what is wanted; not if it is not there or is empty.

    Raises:
        ValueError: it holds something else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise ValueError(f"OUT: expected a folder, {out} is a file")
    if not any(out.iterdir()):
        return False
    file = out / _SETTINGS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"OUT: expected an empty folder or scenes made before, {out} holds no {_SETTINGS}"
        ) from None
    except ValueError as error:
        raise ValueError(f"OUT: {file} cannot be read ({error})") from error
    known = found if isinstance(found, dict) else {}
    other = [f"{name} {known.get(name)}" for name in wanted if known.get(name) != wanted[name]]
    if other:
        raise ValueError(
            f"OUT: expected an empty folder, {out} holds scenes made with {', '.join(other)}"
        )
    return True
