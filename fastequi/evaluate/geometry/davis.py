"""DAVIS 2017's layout: videos and, for each frame, a palette PNG of object ids.

ROOT/ImageSets/2017/val.txt              names of clips, one a line
ROOT/JPEGImages/480p/NAME/00000.jpg      frames, numbered without gaps; for encoders of other
                                         images than RGB in any of their formats
ROOT/Annotations/480p/NAME/00000.png     0: behind; 1, 2, ...: objects; 255: void, taken as behind

The objects of a clip are those of its first frame, 1 to the highest id there, as the official
evaluation counts them. An id that is missing in between would be an object that nobody sees, and
that everybody finds: such a clip is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.sources.encoded import is_image_name
from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.geometry.image_files import in_threads, stored_values
from fastequi.evaluate.geometry.name_lists import by_stem, in_order, names_in
from fastequi.evaluate.geometry.reading import Reading

Ids = NDArray[np.uint8]
"""[H, W] object ids."""

_VOID = 255
_LEAST = 3  # the first and the last frame are not judged


@dataclass(frozen=True)
class Clip:
    """A video.

    Attributes:
        name: of its folders.
        frames, masks: files, in order, as many of each.
        size: (H, W) of all of them, pixels.
        objects: how many.
        others: how many ids are not among them, of objects that are not judged.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    size: tuple[int, int]
    objects: int
    others: int


def open_clips(
    root: Path,
    patterns: Patterns = Patterns(),  # noqa: B008
    read: Reading = Reading(),  # noqa: B008
) -> list[Clip]:
    """The clips that val.txt names, checked: every file is there, of the right kind and size.

    Args:
        root: holds ImageSets, JPEGImages and Annotations.
        patterns: of names of clips.
        read: how frames are read; by default as 8-bit RGB.

    Raises:
        ValueError, FileNotFoundError: something is missing or is not as it should be; names the
            file and what was expected.
    """
    listing = root / "ImageSets" / "2017" / "val.txt"
    if not listing.is_file():
        raise FileNotFoundError(
            f"--data: expected a folder in DAVIS 2017's layout, {listing} does not exist"
        )
    names = names_in(listing)
    wanted = [
        name for name, is_wanted in zip(names, patterns.chosen(names), strict=True) if is_wanted
    ]
    if not wanted:
        chosen = f" that matches {patterns}" if patterns else ""
        raise ValueError(f"{listing}: expected the name of a clip{chosen}, got {len(names)} names")
    return [_opened(root, name, read) for name in wanted]


def ids_of(file: Path) -> Ids:
    """The ids in a PNG, void as 0.

    Raises:
        ValueError: it cannot be read, or is neither a palette nor a grey PNG; names it.
    """
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.mode not in ("P", "L", "1"):
                raise ValueError(
                    f"{file}: expected a PNG of object ids, palette or grey of at most 8 bits, got "
                    f"an image of mode {opened.mode}"
                )
            ids = stored_values(file, opened)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file}: expected a PNG of object ids ({error})") from error
    return np.where(ids == _VOID, 0, ids).astype(np.uint8)


def _opened(root: Path, name: str, read: Reading) -> Clip:
    folders = [root / kind / "480p" / name for kind in ("JPEGImages", "Annotations")]
    suffixes = (".jpg" if read.is_rgb else ".tif"), ".png"
    frames, masks = (
        by_stem(folder.iterdir() if folder.is_dir() else (), belongs)
        for folder, belongs in zip(
            folders, (".jpg" if read.is_rgb else read.is_image, ".png"), strict=True
        )
    )
    if not frames:
        inside = sorted(folders[0].iterdir()) if folders[0].is_dir() else []
        other = next((file.name for file in inside if is_image_name(file.name)), "")
        but = f" but {other}, whose format encoders of data.channels alone read" if other else ""
        raise FileNotFoundError(
            f"{folders[0]}: expected frames 00000{suffixes[0]}, ..., found none{but}"
        )
    try:
        stems = in_order(frames.keys() | masks.keys())
    except ValueError as error:
        raise ValueError(f"{folders[0]}: {error}") from None
    for stem in stems:
        for there, folder, suffix in zip((frames, masks), folders, suffixes, strict=True):
            if stem not in there:
                raise FileNotFoundError(
                    f"{folder / stem}{suffix}: expected a file for each of the {len(stems)} frames "
                    f"of {name}, this one is missing"
                )
    if len(stems) < _LEAST:
        raise ValueError(
            f"{folders[0]}: expected at least {_LEAST} frames, as the first and the last are not "
            f"judged, got {len(stems)}: {', '.join(file.name for file in frames.values())}"
        )
    sizes = dict(zip(stems, read.sizes_of(frames[stem] for stem in stems), strict=True))
    found = dict(zip(stems, in_threads(ids_of, [masks[stem] for stem in stems]), strict=True))
    size = sizes[stems[0]]
    for stem in stems:
        for file, got in ((frames[stem], sizes[stem]), (masks[stem], found[stem].shape)):
            if got != size:
                raise ValueError(
                    f"{file}: expected {size[0]}x{size[1]} px as {frames[stems[0]].name} has, got "
                    f"{got[0]}x{got[1]}"
                )
    first = sorted(set(np.unique(found[stems[0]]).tolist()) - {0})
    objects = len(first)
    if not objects:
        raise ValueError(f"{masks[stems[0]]}: expected the ids of objects, got 0 everywhere")
    if first[-1] != objects:
        raise ValueError(
            f"{masks[stems[0]]}: expected the ids of objects to be 1 to {objects}, as many as are "
            f"there, got {', '.join(map(str, first))}"
        )
    ids = set().union(*(np.unique(each).tolist() for each in found.values()))
    return Clip(
        name,
        tuple(frames[stem] for stem in stems),
        tuple(masks[stem] for stem in stems),
        size,
        objects,
        len(ids - set(range(objects + 1))),
    )
