"""Networks as users bring them: `tests.support.networks:function`."""

from itertools import pairwise

import torch
from torch import nn


class Tokens(nn.Module):
    """Patches of 8 px as tokens, after two prefix tokens, of which the first is a class token."""

    num_prefix_tokens = 2

    def __init__(self):
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(1, 2, 12))
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.mix = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.mix(torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1))


class Maps(nn.Module):
    """A stem and residual blocks with BatchNorm, stride 8; a classifier that is not used."""

    def __init__(self, width=12):
        super().__init__()
        sizes = [3, width, width, width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)
                )
                for a, b in pairwise(sizes)
            )
        )
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.stages(x)


def tokens():
    return Tokens()


def maps():
    return Maps()
