"""Small videos in DAVIS 2017's layout, and an encoder that sees colours."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastequi.evaluate.encoder import Encoder


def put_clip(root, name, ids, frames=None):
    """Writes a clip and adds it to val.txt.

    Args:
        ids: [T, H, W] uint8.
        frames: [T, H, W, 3] uint8; the ids as colours by default.
    """
    colours = np.array([[20, 20, 20], [230, 30, 30], [30, 230, 30], [30, 30, 230]], np.uint8)
    frames = colours[ids % 4] if frames is None else frames
    for i, (image, mask) in enumerate(zip(frames, ids, strict=True)):
        for kind, values, suffix in (("JPEGImages", image, "jpg"), ("Annotations", mask, "png")):
            file = root / kind / "480p" / name / f"{i:05d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(values)
            if kind == "Annotations":
                picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
            picture.save(
                file, **({"quality": 100, "subsampling": 0} if kind == "JPEGImages" else {})
            )
    listing = root / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(f"{name}\n")


def squares(steps=5, height=64, width=128, side=16):
    """[T, H, W]: two squares that go to the right and to the left by 8 px, in rows of their own."""
    ids = np.zeros((steps, height, width), np.uint8)
    for t in range(steps):
        ids[t, 8 : 8 + side, 8 + 8 * t : 8 + 8 * t + side] = 1
        ids[t, 40 : 40 + side, 64 - 8 * t : 64 - 8 * t + side] = 2
    return ids


def two_bands(device):
    """The same for images of two channels."""
    return colours(device, channels=2)


def colours(device, channels=3):
    """The mean colour of each patch of 8 px, in -1..1: an encoder for these videos."""

    def features(images):
        tokens = F.avg_pool2d(images, 8) * 2 - 1
        return {"patch": tokens.flatten(2).mT}

    return Encoder(
        name="colours",
        features=features,
        names=("patch",),
        image_size=64,
        patch_size=8,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        device=torch.device(device),
    )
