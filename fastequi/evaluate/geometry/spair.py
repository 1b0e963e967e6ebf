"""SPair-71k's pairs of images with corresponding keypoints (Min et al., arXiv 1908.10543).

The layout of the release: PairAnnotation/test/*.json, of each pair "category", "src_imname",
"trg_imname", "src_kps" and "trg_kps" ([x, y] in pixels counted from 0), "trg_bndbox" (x and y of
the upper left and of the lower right corner), "src_imsize" and "trg_imsize" (width, height, ...);
JPEGImages/CATEGORY/NAME.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastequi.evaluate.geometry.image_files import size_of
from fastequi.evaluate.geometry.reading import Reading

ANNOTATIONS = "PairAnnotation/test"


@dataclass(frozen=True)
class KeypointPair:
    """Two images of things of one category.

    Attributes:
        source, target: their files.
        points: [K, 2] float64 keypoints of the source, x and y in pixels counted from 0.
        truth: [K, 2] where they are in the target.
        box: the longer side of the target's bounding box, in pixels.
        category: such as "aeroplane".
    """

    source: Path
    target: Path
    points: Tensor
    truth: Tensor
    box: float
    category: str


def is_spair(folder: Path) -> bool:
    """Whether a folder is meant as SPair-71k."""
    return (folder / "PairAnnotation").is_dir()


def keypoint_pairs(folder: Path, read: Reading = Reading()) -> list[KeypointPair]:  # noqa: B008
    """The test pairs, by name.

    Args:
        folder: see the module.
        read: how images are read; by default as 8-bit RGB.

    Raises:
        ValueError: there are none, an annotation is not as the module says, or an image is
            missing, damaged or of another size than its annotation; names the file.
    """
    files = sorted((folder / ANNOTATIONS).glob("*.json"))
    if not files:
        raise ValueError(f"{folder / ANNOTATIONS}: expected *.json, SPair-71k's pairs, found none")
    sizes: dict[Path, tuple[int, int]] = {}
    pairs = [_pair(folder, file, sizes) for file in files]
    read.sizes_of(sizes)
    return pairs


def _pair(folder: Path, file: Path, sizes: dict[Path, tuple[int, int]]) -> KeypointPair:
    try:
        said = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON ({error})") from error
    if not isinstance(said, dict):
        raise ValueError(f"{file}: expected an object of one pair, got {type(said).__name__}")
    category = _word(file, said, "category")
    images = {}
    for of in ("src", "trg"):
        image = folder / "JPEGImages" / category / _word(file, said, f"{of}_imname")
        size = sizes[image] = sizes.get(image) or size_of(image)
        width, height = _numbers(file, said, f"{of}_imsize", (3,))[:2].int().tolist()
        if size != (height, width):
            raise ValueError(
                f"{file}: expected {of}_imsize {[size[1], size[0]]} as of {image}, got "
                f"{[width, height]}"
            )
        images[of] = image
    points, truth = (_numbers(file, said, f"{of}_kps", (-1, 2)) for of in ("src", "trg"))
    if len(points) != len(truth) or not len(points):
        raise ValueError(
            f"{file}: expected as many trg_kps as src_kps, 1 or more, got {len(truth)} and "
            f"{len(points)}"
        )
    left, top, right, bottom = _numbers(file, said, "trg_bndbox", (4,)).tolist()
    if not (right > left and bottom > top):
        raise ValueError(
            f"{file}: expected trg_bndbox [left, top, right, bottom], got "
            f"{[left, top, right, bottom]}"
        )
    box = max(right - left, bottom - top)
    return KeypointPair(images["src"], images["trg"], points, truth, box, category)


def _word(file: Path, said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{file}: expected {name}, a text, got {value!r}")
    return value


def _numbers(file: Path, said: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    """A float64 tensor of a shape; -1: of any length."""
    try:
        found = torch.tensor(said.get(name), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: expected {name}, numbers, got {said.get(name)!r}") from error
    if found.ndim != len(shape) or any(
        wanted not in (-1, length) for wanted, length in zip(shape, found.shape, strict=True)
    ):
        wanted = "x".join("K" if length == -1 else str(length) for length in shape)
        raise ValueError(f"{file}: expected {name} of {wanted} numbers, got {list(found.shape)}")
    return found
