"""Images whose classes and depths are their colours, and an encoder that sees no more than colours.

`tests.support.painted:colours` is its spec. What needs nothing but colours is then read perfectly.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.grids import grids_of

PATCH, SIDE = 8, 32
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
seen: list[tuple[int, ...]] = []  # shapes of all images that `colours` was given


def colours(device):
    """Tokens: the mean colour of each patch, -1..1."""

    def features(images):
        seen.append(tuple(images.shape))
        return {"patch": F.avg_pool2d(images, PATCH).flatten(2).mT}

    half = (0.5, 0.5, 0.5)
    return Encoder(
        name="colours",
        features=features,
        names=("patch",),
        image_size=SIDE,
        patch_size=PATCH,
        mean=half,
        std=half,
        device=torch.device(device),
    )


def colour_grids():
    return grids_of(colours("cpu"))


def save(values, file: Path, **options) -> Path:
    """An array, or an image of Pillow's, as a file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    image.save(file, **options)
    return file


def palette(ids) -> Image.Image:
    """A palette image of class ids, as Pascal VOC's masks are."""
    image = Image.fromarray(np.asarray(ids, np.uint8), "P")
    image.putpalette([(37 * i + c) % 256 for i in range(256) for c in range(3)])
    return image


def save_grey(ids, file: Path, bits: int) -> Path:
    """Ids [H, W] as a grey PNG of 1, 2, 4 or 8 bits a pixel; Pillow writes 1 and 8 alone."""
    ids = np.asarray(ids, np.uint8)
    places = np.unpackbits(ids[..., None], -1)[..., 8 - bits :].reshape(len(ids), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(places, 1))
    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return file


def cut_off(file: Path) -> None:
    """Takes the last third of a file away."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])


def stripes(n: int, size=(SIDE, SIDE), seed: int = 0) -> list[np.ndarray]:
    """Class ids 0..2 in vertical stripes of a patch, drawn anew for each of n images."""
    drawn = np.random.default_rng(seed).integers(0, 3, (n, size[1] // PATCH))
    return [np.broadcast_to(np.repeat(row, PATCH), size).astype(np.uint8) for row in drawn]


def striped_folder(root: Path, n: int = 10, size=(SIDE, SIDE), seed: int = 0) -> Path:
    """images/ and masks/ of stripes in the colour of their class."""
    for i, ids in enumerate(stripes(n, size, seed)):
        save(COLOURS[ids], root / "images" / f"{i:02d}.png")
        save(ids, root / "masks" / f"{i:02d}.png")
    return root
