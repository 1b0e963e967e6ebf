"""Network in network for 32 px images, as RotNet's (Gidaris et al., ICLR 2018)."""

from __future__ import annotations

from torch import nn

from fastequi.models.blocks import BlockNetwork

# width and kernel of a block's three convolutions
_BLOCKS = (
    ((192, 5), (160, 1), (96, 1)),
    ((192, 5), (192, 1), (192, 1)),
    ((192, 3), (192, 1), (192, 1)),
    ((192, 3), (192, 1), (192, 1)),
    ((192, 3), (192, 1), (192, 1)),
)


class NetworkInNetwork(BlockNetwork):
    """Blocks of convolution, BatchNorm, ReLU three times; the first two halve the resolution.

    Args:
        num_blocks: 3, 4 or 5 in the paper.
        in_chans: channels of the images.

    Attributes:
        blocks: block 2 gives 8x8x192 features of 32x32 images, on which the paper's classifiers
            are trained.
        embed_dim: channels of the last block.
    """

    embed_dim = 192

    def __init__(self, num_blocks: int = 4, in_chans: int = 3) -> None:
        super().__init__()
        if not 3 <= num_blocks <= len(_BLOCKS):
            raise ValueError(f"num_blocks: expected 3 .. {len(_BLOCKS)}, got {num_blocks}")
        for index, convs in enumerate(_BLOCKS[:num_blocks]):
            block = nn.Sequential()
            for width, size in convs:
                conv = nn.Conv2d(in_chans, width, size, padding=size // 2, bias=False)
                # He et al. 2015, by the outgoing connections, as the authors' code
                nn.init.normal_(conv.weight, std=(2 / (size * size * width)) ** 0.5)
                block.extend([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
                in_chans = width
            if index == 0:
                block.append(nn.MaxPool2d(3, 2, 1))
            elif index == 1:
                block.append(nn.AvgPool2d(3, 2, 1))
            self.blocks.append(block)
