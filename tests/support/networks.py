"""Networks as users bring them: `--model.name tests.support.networks:maps`."""

from itertools import pairwise

import torch
from torch import nn

from fastequi.models.vit import VisionTransformer

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


class Maps(nn.Module):
    """Three convolutions of stride 2 with BatchNorm, and a classifier that is not used."""

    def __init__(self, in_chans=3, width=12):
        super().__init__()
        layers = []
        for a, b in pairwise([in_chans, width, width, width]):
            layers += [
                nn.Conv2d(a, b, 3, 2, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.layers(x)


class Tokens(nn.Module):
    """Patches of 8 px as tokens, after a class token and a register."""

    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(1, 2, 12))
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.mix = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.mix(torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1))


class Reads(nn.Module):
    """Patches of 8 px as a map, given back in another form."""

    def __init__(self, form):
        super().__init__()
        self.patches, self.form = nn.Conv2d(3, 12, 8, 8), form

    def forward(self, x):
        return self.form(self.patches(x))


class OneSize(Reads):
    """Takes images of one size only."""

    def __init__(self, size):
        super().__init__(lambda maps: maps)
        self.size = size

    def forward(self, x):
        assert x.shape[-2:] == (self.size, self.size), "another size"
        return super().forward(x)


def maps():
    return Maps()


def tokens():
    return Tokens()


def vit():
    """A ViT of this library as if it were of another package."""
    return VisionTransformer(**VIT, img_size=32)


def gray():
    return Maps(in_chans=1)


def channels_last():
    return Reads(lambda maps: maps.permute(0, 2, 3, 1))


def logits():
    return Reads(lambda maps: maps.mean((2, 3)))


def several():
    return Reads(lambda maps: [maps, maps])


def named():
    return Reads(lambda maps: {"features": maps})


def odd_tokens():
    return Reads(lambda maps: maps.flatten(2).transpose(1, 2)[:, 1:])


def one_size():
    return OneSize(32)


def one_size_cut():
    return OneSize(18)  # of which two cells of 8 px are seen


def frozen():
    return Maps().requires_grad_(False)


def empty():
    return nn.Identity()


def no_module():
    return "resnet50"


def fails():
    raise RuntimeError("no weights")
