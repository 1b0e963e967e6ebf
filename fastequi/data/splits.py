"""What is trained on and what is tested on: disjoint photographs, by a rule that needs no record.

A folder with `train/` and one of `val/`, `validation/`, `test/` is split as it says. Of any other
every fifth image in sorted order is for testing (of fewer than five the last one).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import Region, Source, embedded_photos, image_folder

# of every embedded photograph, where no folder is given: no pixel is in both
TRAIN_REGION: Region = (0.0, 0.0, 0.7, 1.0)
TEST_REGION: Region = (0.7, 0.0, 1.0, 1.0)

_TEST_FOLDERS = ("val", "validation", "test")


def held_out(n: int) -> NDArray[np.bool_]:
    """[n] whether a place in sorted order is for testing."""
    places = np.arange(n)
    return places % 5 == 4 if n >= 5 else places == n - 1


def named_split(folder: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """The subfolders for training and testing, if it has both."""
    path = Path(folder).expanduser()
    tests = [path / name for name in _TEST_FOLDERS if (path / name).is_dir()]
    return (path / "train", tests[0]) if (path / "train").is_dir() and tests else None


def photographs(
    data: str | os.PathLike[str] | None = None, test_data: str | os.PathLike[str] | None = None
) -> tuple[Source, Source]:
    """Photographs for training and for testing.

    Args:
        data: a folder, split by the rule of this module; None takes the embedded photographs, of
            which the left 70 % are for training and the right 30 % for testing.
        test_data: a folder of test photographs; all of `data` is then for training.

    Raises:
        ValueError: fewer than two images to split.
    """
    if data is None:
        if test_data is not None:
            raise ValueError("--test-data: expected --data beside it")
        return embedded_photos(TRAIN_REGION), embedded_photos(TEST_REGION)
    if test_data is not None:
        return image_folder(data), image_folder(test_data)
    named = named_split(data)
    if named is not None:
        return image_folder(named[0]), image_folder(named[1])
    source = image_folder(data)
    if len(source) < 2:
        raise ValueError(f"--data: expected at least 2 images to split, {data} has {len(source)}")
    tested = held_out(len(source))
    return source.pick(np.flatnonzero(~tested)), source.pick(np.flatnonzero(tested))
