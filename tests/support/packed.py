"""Packed uint8 images, transformations and predictions for the kernels that read them."""

import math

import torch


def interleaved(b, source, texel, seed=0):
    """A uint8 image [b, 3, *source] of three or four bytes a texel; the fourth is noise.

    On a GPU where there is one: `to` would leave the fourth bytes behind.
    """
    g = torch.Generator().manual_seed(seed)
    texels = torch.randint(256, (b, *source, texel), generator=g, dtype=torch.uint8)
    texels = texels.to("cuda" if torch.cuda.is_available() else "cpu")
    return texels[..., :3].permute(0, 3, 1, 2)


def predictions(b, k, size, dtype=torch.float32, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, k, 3, *size, generator=g).to(dtype)


def thetas(b, k, degrees=20.0, zoom=1.0, shift=0.0, jitter=0.1, seed=2):
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    theta = torch.cat([turn * zoom, torch.full((2, 1), shift)], 1).expand(b, k, 2, 3)
    g = torch.Generator().manual_seed(seed)
    return theta + jitter * (torch.rand(b, k, 2, 3, generator=g) - 0.5)
