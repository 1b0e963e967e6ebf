"""JHMDB's layout: videos of people, and the places of 15 joints in each frame.

ROOT/joint_positions/CLASS/NAME/joint_positions.mat   pos_img [2, 15, T], x and y counted from 1
ROOT/Rename_Images/CLASS/NAME/00001.png               frames; for encoders of other images than RGB
                                                      in any of their formats
ROOT/splits/CLASS_test_split1.txt                     NAME.avi and 2 for a test video; where there
                                                      is no such folder every video is used
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastequi.data.sources.patterns import Patterns
from fastequi.evaluate.geometry.name_lists import by_stem, in_order, text_of
from fastequi.evaluate.geometry.reading import Reading

JOINTS = 15
_FILE = "joint_positions.mat"
_TEST = "2"  # 1 is training


@dataclass(frozen=True)
class PoseClip:
    """A video.

    Attributes:
        name: CLASS/NAME.
        frames: T files, in order.
        size: (H, W) of all of them, pixels.
        joints: [T, 15, 2] float64, places (x, y) in pixels; the middle of the first pixel is
            (0.5, 0.5).
    """

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    joints: Tensor


def is_jhmdb(root: Path) -> bool:
    """Whether a folder has this layout."""
    return (root / "joint_positions").is_dir()


def open_poses(
    root: Path,
    patterns: Patterns = Patterns(),  # noqa: B008
    read: Reading = Reading(),  # noqa: B008
) -> list[PoseClip]:
    """The test videos, checked.

    Args:
        root: holds joint_positions and Rename_Images.
        patterns: of CLASS/NAME.
        read: how frames are read; by default as 8-bit RGB.

    Raises:
        ValueError, FileNotFoundError: something is missing or is not as it should be; names it.
        ImportError: scipy, which reads the .mat files, is not installed.
    """
    top = root / "joint_positions"
    names = [str(file.parent.relative_to(top)) for file in sorted(top.glob(f"*/*/{_FILE}"))]
    if not names:
        raise FileNotFoundError(f"{top}: expected CLASS/NAME/{_FILE}, found none")
    if (root / "splits").is_dir():
        tested = _tested(root / "splits")
        names = [name for name in names if name in tested]
    names = [n for n, wanted in zip(names, patterns.chosen(names), strict=True) if wanted]
    if not names:
        raise ValueError(f"{top}: expected a video of the test split that matches {patterns}")
    return [_opened(root, name, read) for name in names]


def _tested(folder: Path) -> set[str]:
    files = sorted(folder.glob("*_test_split1.txt"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected CLASS_test_split1.txt, found none")
    found = set()
    for file in files:
        for line in text_of(file).splitlines():
            words = line.split()
            if len(words) not in (0, 2):
                raise ValueError(f"{file}: expected lines such as 'NAME.avi 2', got {line!r}")
            if words and words[1] == _TEST:
                kind = file.name.removesuffix("_test_split1.txt")
                found.add(f"{kind}/{words[0].removesuffix('.avi')}")
    return found


def _opened(root: Path, name: str, read: Reading) -> PoseClip:
    file = root / "joint_positions" / name / _FILE
    positions = np.asarray(_loaded(file).get("pos_img"))
    if positions.ndim != 3 or positions.shape[:2] != (2, JOINTS):
        raise ValueError(
            f"{file}: expected pos_img [2, {JOINTS}, T], got {list(positions.shape) or 'none'}"
        )
    count = positions.shape[2]
    folder = root / "Rename_Images" / name
    belongs = ".png" if read.is_rgb else read.is_image
    found = by_stem(folder.iterdir() if folder.is_dir() else (), belongs)
    frames = [found[stem] for stem in _expect_numbered(folder, found)]
    if count < 2 or len(frames) < count:
        raise ValueError(
            f"{folder}: expected at least 2 frames and one for each of the {count} of {file}, got "
            f"{len(frames)}"
        )
    sizes = read.sizes_of(frames[:count])
    for frame, size in zip(frames, sizes, strict=False):
        if size != sizes[0]:
            raise ValueError(
                f"{frame}: expected {sizes[0][0]}x{sizes[0][1]} px as {frames[0].name} has, got "
                f"{size[0]}x{size[1]}"
            )
    places = torch.from_numpy(positions.astype(np.float64)).permute(2, 1, 0) - 0.5
    return PoseClip(name, tuple(frames[:count]), sizes[0], places)


def _expect_numbered(folder: Path, found: Mapping[str, Path]) -> list[str]:
    """The names of frames by their numbers, from 0 or 1; raises an error where one is missing or is
    none."""
    try:
        stems = in_order(found)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if stems and stems[0].isdecimal() and int(stems[0]) > 1:
        raise FileNotFoundError(f"{folder}: expected frames numbered from 1, got {stems[0]} first")
    for stem in stems:
        if stem not in found:
            raise FileNotFoundError(
                f"{folder}: expected frames numbered without gaps, {stem} is missing"
            )
        if not (stem.isascii() and stem.isdecimal()):
            raise ValueError(f"{found[stem]}: expected frames named by their numbers alone")
    return stems


def _loaded(file: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"{file} needs scipy to be read: pip install 'fastequi[jhmdb]'"
        ) from error
    try:
        return dict(loadmat(file))
    except Exception as error:  # whatever damaged bytes make scipy raise
        raise ValueError(f"{file}: expected a MATLAB file ({error})") from error
