"""Pairs of photographs whose homography is known, as others publish them.

HPatches    the full sequences (hpatches-sequences-release): folders v_NAME (viewpoint) and
            i_NAME (illumination), each with 1.ppm .. 6.ppm and H_1_2 .. H_1_6, text of three lines
            of three numbers; or one such folder
two images  a folder of two images and an XML file of OpenCV's with one 3x3 matrix, from the first
            image to the second by name: Debian's opencv-doc has graf1.png, graf3.png, H1to3p.xml

Their homographies are between pixels counted from 0, so that (0, 0) is the middle of the first;
ours are between places in pixels, where that is (0.5, 0.5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from fastequi.evaluate.geometry.image_files import Size, size_of
from fastequi.evaluate.geometry.projective import corners, moved
from fastequi.evaluate.geometry.reading import Reading

_PARTS = {"v_": "viewpoint", "i_": "illumination"}
_TEXT = re.compile(r"H_1_(\d+)")
EXPECTED = (
    "expected folders v_* and i_* with images 1, 2, ... and H_1_2, ... (HPatches' sequences), or "
    "two images and one XML file of OpenCV's"
)


@dataclass(frozen=True)
class HomographyPair:
    """Two images of a plane.

    Attributes:
        first, second: their files.
        sizes: of both.
        homography: [3, 3] float64, from places in the first to places in the second, in pixels.
        sequence: the folder's name.
        part: "viewpoint" or "illumination"; "" of a folder that is neither.
    """

    first: Path
    second: Path
    sizes: tuple[Size, Size]
    homography: Tensor
    sequence: str
    part: str


def holds_homographies(folder: Path) -> bool:
    """Whether a folder is meant as one of those of this module."""
    if not folder.is_dir():
        return False
    return any(
        _texts(each) or list(each.glob("1.ppm")) for each in (folder, *_sequences(folder))
    ) or bool(_storages(folder))


def homography_pairs(folder: Path, read: Reading = Reading()) -> list[HomographyPair]:  # noqa: B008
    """All pairs of a folder, by name.

    Args:
        folder: see the module.
        read: how images are read; by default as 8-bit RGB.

    Raises:
        ValueError: an image or a homography is missing or damaged, or there are two of a number;
            names the file.
    """
    sequences, storages = _sequences(folder), _storages(folder)
    if sequences:
        pairs = [pair for sequence in sequences for pair in _of_sequence(sequence, read)]
    else:
        pairs = _of_two(folder, storages, read) if storages else _of_sequence(folder, read)
    read.sizes_of(dict.fromkeys(file for pair in pairs for file in (pair.first, pair.second)))
    return pairs


def passed_over(folder: Path) -> list[str]:
    """Folders beside HPatches' sequences, which are not used."""
    sequences = _sequences(folder)
    if not sequences:
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir() and each not in sequences)


def matrix_of(file: Path) -> Tensor:
    """[3, 3] float64 of a text file of nine numbers in three lines, or an XML file of OpenCV's.

    Raises:
        ValueError: it holds no invertible 3x3 matrix; names the file.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    rows = _of_xml(file, text) if file.suffix.lower() == ".xml" else _of_lines(file, text)
    matrix = torch.tensor(rows, dtype=torch.float64)
    if not bool(matrix.isfinite().all()) or float(torch.linalg.det(matrix)) == 0:
        raise ValueError(f"{file}: expected an invertible matrix, got {matrix.tolist()}")
    return matrix


def of_places(matrix: Tensor) -> Tensor:
    """A homography between pixels counted from 0 as one between places in pixels."""
    to_places = torch.eye(3, dtype=matrix.dtype)
    to_places[:2, 2] = 0.5
    return to_places @ matrix @ torch.linalg.inv(to_places)


def _sequences(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob("[iv]_*") if each.is_dir())


def _storages(folder: Path) -> list[Path]:
    """XML files of OpenCV's."""
    files = sorted(each for each in folder.iterdir() if each.suffix.lower() == ".xml")
    return [each for each in files if b"<opencv_storage>" in each.read_bytes()[:200]]


def _texts(folder: Path) -> dict[int, Path]:
    """The files H_1_2, ... by the number of the second image."""
    found = ((_TEXT.fullmatch(each.name), each) for each in sorted(folder.glob("H_1_*")))
    return _by_number((int(match[1]), each) for match, each in found if match)


def _by_number(numbered: Iterable[tuple[int, Path]]) -> dict[int, Path]:
    """Files by their numbers; raises ValueError of two with the same."""
    found: dict[int, Path] = {}
    for number, file in sorted(numbered):
        other = found.setdefault(number, file)
        if other != file:
            raise ValueError(f"{file}: expected one file of number {number}, got {other.name} too")
    return found


def _of_sequence(folder: Path, read: Reading) -> list[HomographyPair]:
    images = _by_number(
        (int(each.stem), each)
        for each in folder.iterdir()
        if each.stem.isdecimal() and read.is_image(each.name)
    )
    texts = _texts(folder)
    if not texts and len(images) < 2:
        raise ValueError(f"{folder}: {EXPECTED}")
    if 1 not in images:
        raise ValueError(f"{folder}/1.ppm: expected the first image, there is no such file")
    for number in sorted((texts.keys() | images.keys()) - {1}):
        if number not in texts:
            raise ValueError(
                f"{folder}/H_1_{number}: expected the homography of {images[number].name}, there "
                "is no such file"
            )
        if number not in images:
            raise ValueError(
                f"{folder}/{number}.ppm: expected the image of {texts[number].name}, there is no "
                "such file"
            )
    return [_pair(folder, images[1], images[k], text) for k, text in texts.items()]


def _of_two(folder: Path, storages: list[Path], read: Reading) -> list[HomographyPair]:
    images = sorted(each for each in folder.iterdir() if read.is_image(each.name))
    if len(images) != 2 or len(storages) != 1:
        raise ValueError(
            f"{folder}: expected two images and one homography, got {len(images)} images and "
            f"{len(storages)} .xml files of OpenCV's"
        )
    return [_pair(folder, images[0], images[1], storages[0])]


def _pair(folder: Path, first: Path, second: Path, matrix: Path) -> HomographyPair:
    sizes = size_of(first), size_of(second)
    homography = of_places(matrix_of(matrix))
    if moved(corners(*sizes[0]), homography).isnan().any():
        raise ValueError(
            f"{matrix}: expected a homography that takes all corners of {first.name} to places "
            f"before the horizon, got {homography.tolist()}"
        )
    part = _PARTS.get(folder.name[:2], "")
    return HomographyPair(first, second, sizes, homography, folder.name, part)


def _of_lines(file: Path, text: str) -> list[list[float]]:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if [len(row) for row in rows] != [3, 3, 3]:
        raise ValueError(f"{file}: expected three lines of three numbers, got {_shown(text)}")
    return _numbers(file, rows)


def _of_xml(file: Path, text: str) -> list[list[float]]:
    """Of OpenCV's FileStorage: a node of type opencv-matrix with rows, cols and data."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{file}: expected XML ({error})") from error
    nodes = [node for node in root if node.get("type_id") == "opencv-matrix"]
    if len(nodes) != 1:
        raise ValueError(f"{file}: expected one opencv-matrix, got {len(nodes)}")
    shape = [(nodes[0].findtext(name) or "").strip() for name in ("rows", "cols")]
    words = (nodes[0].findtext("data") or "").split()
    if shape != ["3", "3"] or len(words) != 9:
        raise ValueError(
            f"{file}: expected a 3x3 opencv-matrix, got {' x '.join(shape)} with {len(words)} "
            "numbers"
        )
    return _numbers(file, [words[k : k + 3] for k in (0, 3, 6)])


def _numbers(file: Path, rows: list[list[str]]) -> list[list[float]]:
    try:
        return [[float(word) for word in row] for row in rows]
    except ValueError as error:
        raise ValueError(f"{file}: expected numbers ({error})") from error


def _shown(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) < 80 else f"{line[:80]} ...")
