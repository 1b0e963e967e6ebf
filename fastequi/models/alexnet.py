"""AlexNet with BatchNorm for 224 px images, as RotNet's (Gidaris et al., ICLR 2018)."""

from __future__ import annotations

from torch import nn

from fastequi.models.blocks import BlockNetwork

# width, kernel, stride, padding; max-pooling 3x3 with stride 2 after the layers marked
_LAYERS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNet(BlockNetwork):
    """Five convolutions with BatchNorm, neither local response normalisation nor dropout.

    Args:
        in_chans: channels of the images.

    Attributes:
        blocks: conv1 .. conv5, with the pooling that follows them.
        embed_dim: channels of the last one.
    """

    embed_dim = 256

    def __init__(self, in_chans: int = 3) -> None:
        super().__init__()
        for width, size, stride, padding, pooled in _LAYERS:
            conv = nn.Conv2d(in_chans, width, size, stride, padding, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            block = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            if pooled:
                block.append(nn.MaxPool2d(3, 2))
            self.blocks.append(block)
            in_chans = width


class AlexNetClassifier(nn.Sequential):
    """Two hidden layers of 4096 with BatchNorm on the 6x6 map of conv5, then classes."""

    def __init__(self, classes: int, in_chans: int = AlexNet.embed_dim) -> None:
        layers: list[nn.Module] = [nn.AdaptiveMaxPool2d(6), nn.Flatten()]
        width = 36 * in_chans
        for _ in range(2):
            layers += [nn.Linear(width, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()]
            width = 4096
        super().__init__(*layers, nn.Linear(width, classes))
