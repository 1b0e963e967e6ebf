"""Sets of images with a depth for each pixel: folders `images/` and `depth/` (`pair_folders.py`).

A depth is a PNG or TIFF of 16 bits, or a TIFF of floats: value times a scale is metres, 0 is not
known. Scales: 1/1000 as of NYU Depth v2 in the usual form, 1/256 as of KITTI. Every file is read
once before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Data, Selection
from fastequi.evaluate.geometry.pair_folders import (
    Map,
    Pair,
    Pairs,
    inspected,
    only_folder,
    paired,
    target_values,
)
from fastequi.evaluate.geometry.reading import Reading

CROPS = ("none", "eigen", "garg")
_MODES, _EXPECTED = ("I;16", "I;16B", "I", "F"), "depths, 16 bits grey or floats"
_EIGEN_SIZE = (480, 640)


@dataclass(frozen=True)
class DepthSet:
    """Images with depths.

    Attributes:
        data: how the set was named.
        read: how images are read.
        pairs: the files.
        train, test: their images.
        metres: of a unit in the files.
        nearest, farthest: metres between which (both excluded) a depth counts.
        crop: the part of test images that counts; see :meth:`judged`.
    """

    data: Selection
    read: Reading
    pairs: Pairs
    train: Source
    test: Source
    metres: float
    nearest: float
    farthest: float
    crop: str

    def depth(self, pair: Pair) -> Tensor:
        """[H, W] float32 metres; NaN where it is not known or does not count."""
        values = target_values(pair.target, _MODES, _EXPECTED).astype(np.float32) * self.metres
        metres = torch.from_numpy(values)
        counts = (metres > self.nearest) & (metres < self.farthest)
        return torch.where(counts, metres, torch.nan)

    def judged(self, pair: Pair) -> Tensor:
        """The same, NaN outside the crop.

        "eigen" is rows 45 to 471 and columns 41 to 601 of NYU's 480x640, "garg" the share of a
        KITTI image that Garg et al. (arXiv 1603.04992) evaluate: both as the Monocular Depth
        Estimation Toolbox has them, which DINOv2's evaluation uses.
        """
        metres = self.depth(pair)
        height, width = metres.shape
        kept = {
            "none": (0, height, 0, width),
            "eigen": (45, 471, 41, 601),
            "garg": (
                *(int(0.40810811 * height), int(0.99189189 * height)),
                *(int(0.03594771 * width), int(0.96405229 * width)),
            ),
        }[self.crop]
        inside = torch.full_like(metres, torch.nan)
        at = slice(*kept[:2]), slice(*kept[2:])
        inside[at] = metres[at]
        return inside


def open_depths(
    data: Data,
    *,
    metres: float = 1 / 1000,
    nearest: float = 1e-3,
    farthest: float = 10.0,
    crop: str = "none",
    train_images: int = 0,
    test_images: int = 0,
    read: Reading = Reading(),  # noqa: B008
) -> DepthSet:
    """The set in a folder, checked; see the module.

    Args:
        data: the folder that holds images/ and depth/; patterns select images by their paths below
            it.
        metres, nearest, farthest, crop: see :class:`DepthSet`.
        train_images, test_images: how many are used, evenly spaced; 0: all.
        read: how images are read; by default as 8-bit RGB.

    Raises:
        ValueError: a depth that is missing, of another size than its image or of another type; no
            depth that counts in any file for fitting, or for testing; fewer than two images.
        FileNotFoundError: no such folders.
    """
    chosen = Selection.of(data)
    folder = only_folder(chosen)
    pairs = paired(folder, "depth", read.is_image)
    pairs = pairs.chosen(chosen.patterns, train_images, test_images)

    def look(file: Path, values: Map) -> int:
        if crop == "eigen" and values.shape != _EIGEN_SIZE:
            raise ValueError(
                f"--crop: eigen is for {_EIGEN_SIZE[0]}x{_EIGEN_SIZE[1]} px, {file} has "
                f"{values.shape[0]}x{values.shape[1]}"
            )
        scaled = values.astype(np.float32) * metres
        return int(((scaled > nearest) & (scaled < farthest)).sum())

    train, test, known = inspected(pairs, read, lambda f: target_values(f, _MODES, _EXPECTED), look)
    for use, counts in (("fitting", known[: len(train)]), ("testing", known[len(train) :])):
        if not any(counts):
            raise ValueError(
                f"--data: expected depths of {nearest:g} to {farthest:g} m in {folder} for {use}, "
                f"no value times {metres:g} is"
            )
    return DepthSet(chosen, read, pairs, train, test, metres, nearest, farthest, crop)
