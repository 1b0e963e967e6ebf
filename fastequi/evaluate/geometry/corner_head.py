"""A small network that reads the motion of four corners from two maps of frozen tokens.

The protocol of TIR (Wang et al., arXiv 2503.18753): three convolutions on the concatenated tokens
of both views regress the eight offsets of the corners. What that leaves open is chosen here: the
convolutions are 3x3 with 64, 64 and 32 channels and GELU after each, a linear layer reads the
offsets from the whole map, as a mean over it would forget where things are; Adam, squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (64, 64, 32)


@dataclass(frozen=True)
class HeadFit:
    """How it is trained: Adam with weight decay 1e-4, the rate falling linearly to 0.

    Attributes:
        epochs: over the training pairs.
        seed: of initial weights and of the order of the pairs.
    """

    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class MapPairs:
    """Maps of both views of N pairs.

    Attributes:
        first, second: [N, h, w, D].
    """

    first: Tensor
    second: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, places: Tensor, device: torch.device) -> Tensor:
        """[B, 2 D, h, w] float32 of some pairs."""
        both = (x[places].to(device, torch.float32) for x in (self.first, self.second))
        return torch.cat(tuple(both), -1).movedim(-1, 1)


class CornerHead(nn.Module):
    """Two maps of tokens to the offsets of four corners.

    Args:
        mean, std: [2 D] of the training tokens' channels; inputs are standardised by them.
        grid: (h, w) of the maps.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, std: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("scale", torch.where(std > 0, 1 / std, 1.0)[:, None, None])
        layers: list[nn.Module] = []
        channels = len(mean)
        for width in _WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GELU()]
            channels = width
        tokens = grid[0] * grid[1]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * tokens, 8))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, 2 D, h, w] to [B, 4, 2]."""
        offsets: Tensor = self.layers((maps - self.mean) * self.scale)
        return offsets.unflatten(1, (4, 2))


def fitted_head(
    train: MapPairs, offsets: Tensor, device: torch.device, fit: HeadFit = HeadFit()
) -> CornerHead:
    """A head that was trained on pairs of maps.

    Args:
        train: N pairs.
        offsets: [N, 4, 2] that it shall predict, of values about 1.
        device: where it is trained, and stays.
        fit: how.
    """
    mean, std = _statistics(train)
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        head = CornerHead(mean, std, (train.first.shape[1], train.first.shape[2])).to(device)
    generator = torch.Generator().manual_seed(fit.seed)
    optimizer = torch.optim.Adam(head.parameters(), fit.lr, weight_decay=1e-4)
    target = offsets.to(device, torch.float32)
    steps, step = fit.epochs * -(-len(train) // fit.batch), 0
    with torch.enable_grad():
        for _ in range(fit.epochs):
            for pick in torch.randperm(len(train), generator=generator).split(fit.batch):
                optimizer.param_groups[0]["lr"] = fit.lr * (1 - step / steps)
                optimizer.zero_grad()
                found = head(train.batch(pick, device))
                F.mse_loss(found, target[pick.to(device)]).backward()
                optimizer.step()
                step += 1
    return head.eval()


@torch.no_grad()
def predicted(head: CornerHead, pairs: MapPairs, device: torch.device, batch: int = 64) -> Tensor:
    """[N, 4, 2] float64 on the CPU."""
    parts = torch.arange(len(pairs)).split(batch)
    return torch.cat([head(pairs.batch(part, device)).double().cpu() for part in parts])


def _statistics(pairs: MapPairs) -> tuple[Tensor, Tensor]:
    """[2 D] means and deviations of the tokens' channels, of both views."""
    rows = [x.float().flatten(0, 2) for x in (pairs.first, pairs.second)]
    mean = torch.cat([x.mean(0) for x in rows])
    std = torch.cat([x.std(0) for x in rows])
    return mean, std
