"""Images whose colours say where a point is, and an encoder that reads it: truth for matching."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastequi.evaluate.encoder import Encoder
from fastequi.functional.normalise import denormalise
from fastequi.models import vit

PATCH = 8
SIDE = 96
_MEAN, _STD = 0.5, 0.25


def code(places):
    """[..., 576] of places [..., 2] in 0..1: their cosine falls with distance alone."""
    axis = (torch.arange(24) + 0.5) / 24
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centres = torch.stack([x, y], -1).flatten(0, 1)
    return (-(places[..., None, :] - centres).square().sum(-1) / (2 * 0.06**2)).exp()


def of_two_bands(device):
    """The same of images that have the first two channels alone."""
    return encoder(device, channels=2)


def encoder(device, channels=3):
    """Of images from :func:`painted`: the code of each patch's mean colour."""
    mean, std = (_MEAN,) * channels, (_STD,) * channels

    def features(images):
        unit = denormalise(images, mean, std)
        at = F.avg_pool2d(unit[:, :2], PATCH).flatten(2).mT
        return {"patch": code(at.cpu()).to(images.device)}

    about = {"image_size": SIDE, "patch_size": PATCH, "mean": mean, "std": std}
    return Encoder(name="places", features=features, names=("patch",), device=device, **about)


def small_vit(device):
    """An untrained ViT of 32 px, in 4x4 patches, and its fresh copy."""

    def make(seed, name, is_baseline):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = vit.vit_tiny(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
        network = network.eval().to(device)

        def features(images):
            with torch.no_grad():
                return {"patch": network.forward_features(images).patch}

        return Encoder(
            name=name,
            features=features,
            names=("patch",),
            image_size=32,
            patch_size=8,
            device=device,
            network=network,
            fresh=lambda: make(1, "fresh", True),
            is_baseline=is_baseline,
        )

    return make(0, "small", False)


def painted(height, width, to_place):
    """An image whose red and green say, of each pixel counted from 0, its place in 0..1.

    Args:
        to_place: (x, y) of a pixel to (x, y) in 0..1, in arrays.
    """
    y, x = np.mgrid[:height, :width].astype(np.float64)
    u, v = to_place(x, y)
    rgb = np.stack([u, v, np.full_like(u, 0.5)], -1).clip(0, 1)
    return Image.fromarray((rgb * 255).round().astype(np.uint8))


def through(matrix, x, y):
    """Pixels under a homography, number by number."""
    w = matrix[2][0] * x + matrix[2][1] * y + matrix[2][2]
    return (
        (matrix[0][0] * x + matrix[0][1] * y + matrix[0][2]) / w,
        (matrix[1][0] * x + matrix[1][1] * y + matrix[1][2]) / w,
    )
