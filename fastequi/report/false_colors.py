"""Pictures of images that are not RGB: three of their channels as red, green and blue.

The first, the middle and the last channel, or those that were asked for; of two the first and the
second, and no blue; a single one is grey. Each is stretched between its own percentiles, so that
dark channels are seen as well; colours of two sheets do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastequi.data.channels import RGB, chosen, written
from fastequi.functional.normalise import in_unit

_LOW, _HIGH = 1.0, 99.0  # percentiles that become black and bright
_VALUES = 1_000_000  # of a channel, at most, that percentiles are of


def shown_channels(count: int) -> tuple[int, ...]:
    """Those of `count` channels that are shown: one, two or three."""
    return (0, count // 2, count - 1) if count > 2 else tuple(range(count))


def picked_of(asked: str, channels: str, count: int) -> tuple[int, ...]:
    """Which of an encoder's channels are shown, from 0; () for those of :func:`shown_channels`.

    Args:
        asked: numbers of the files' channels, as "3,2,1"; "" for none.
        channels: that the encoder takes of the files, as `data.channels` has them.
        count: how many they are.

    Raises:
        ValueError: they are not one to three of the encoder's, or it takes RGB.
    """
    if not asked:
        return ()
    if channels == RGB:
        raise ValueError(f"--shown: expected none of an encoder of RGB, got {asked}")
    try:
        wanted = chosen(asked)
    except ValueError:
        wanted = None
    mine = list(chosen(channels) or range(count))
    if wanted is None or len(wanted) > 3 or not set(wanted) <= set(mine):
        raise ValueError(
            f"--shown: expected one to three of the encoder's channels "
            f"{written(tuple(mine))}, such as {written(tuple(mine[:3]))}, got {asked}"
        )
    return tuple(mine.index(channel) for channel in wanted)


@dataclass(frozen=True)
class FalseColors:
    """How images become pictures.

    Attributes:
        picked: the channels that are shown.
        low, high: of each, what becomes black and bright, of values in 0..1.
    """

    picked: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor, picked: tuple[int, ...] = ()) -> FalseColors:
        """The stretch of images [..., C, H, W], uint8, uint16 or floats in 0..1, taken together.

        Args:
            picked: the channels that are shown, from 0; () for those of :func:`shown_channels`.
        """
        picked = picked or shown_channels(images.shape[-3])
        ends = []
        for channel in picked:
            values = np.sort(in_unit(images.select(-3, channel)).float().cpu().numpy().ravel())
            some = values[:: max(len(values) // _VALUES, 1)]
            ends.append(tuple(float(v) for v in np.percentile(some, (_LOW, _HIGH))))
        low, high = zip(*ends, strict=True)
        return cls(picked, low, high)

    def pictures(self, images: Tensor) -> np.ndarray:
        """uint8 [B, H, W, 3] of images [B, C, H, W] as :meth:`of` takes them."""
        unit = in_unit(images)[:, list(self.picked)].float()
        low, high = (
            torch.tensor(v, device=unit.device)[:, None, None] for v in (self.low, self.high)
        )
        scaled = ((unit - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * 255
        if len(self.picked) == 1:
            scaled = scaled.expand(-1, 3, -1, -1)
        elif len(self.picked) == 2:
            scaled = torch.cat([scaled, torch.zeros_like(scaled[:, :1])], 1)
        return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def said(channels: str, count: int, picked: tuple[int, ...] = ()) -> str:
    """The sentence below such pictures.

    Args:
        channels: of the images, as `data.channels` has them.
        count: how many they are.
        picked: as of :meth:`FalseColors.of`.
    """
    numbers: Sequence[int] = chosen(channels) or range(count)
    names = [str(numbers[channel]) for channel in picked or shown_channels(count)]
    ends = f"from its percentile {_LOW:g} to {_HIGH:g} in these images"
    if len(names) == 1:
        return f"Grey is channel {names[0]}, {ends}."
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    colors = "red, green and blue" if len(names) == 3 else "red and green"
    return f"False colours: channels {listed} as {colors}, each {ends}."
