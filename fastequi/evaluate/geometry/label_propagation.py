"""Labels carried from the first frame of a video to all others by the similarity of tokens.

As DINO's eval_video_segmentation.py does (Caron et al., ICCV 2021, after Jabri et al., NeurIPS
2020): each token of a frame takes a weighted mean of the labels of its most similar tokens, among
those near its place in the first frame and in the frames before it, whose labels are those that
they were given. Similarities are computed in tiles, against the tokens near a tile alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 12  # tokens a side


@dataclass(frozen=True)
class Settings:
    """The defaults are those of DINO's script.

    Attributes:
        frames: before the current one that labels are taken from, beside the first (n_last_frames).
        radius: tokens, in rows and in columns, that they may lie away (size_mask_neighborhood).
        neighbours: the most similar tokens of all these frames (topk); all that are as similar as
            the last of them count too.
        temperature: of exp(cosine / temperature), whose share is a token's weight.
    """

    frames: int = 7
    radius: int = 12
    neighbours: int = 5
    temperature: float = 0.1


DINO = Settings()


class Propagation:
    """Labels of one video, frame after frame.

    Args:
        first: [h, w, D] tokens of the first frame.
        labels: [C, h, w] float, its labels.
        settings: of the neighbours.
    """

    def __init__(self, first: Tensor, labels: Tensor, settings: Settings = DINO) -> None:
        self.settings = settings
        self.first = F.normalize(first, dim=-1), labels.to(first)
        self.before: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.frames)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Labels [C, h, w] of the next frame, of tokens [h, w, D]."""
        tokens = F.normalize(tokens, dim=-1)
        sources, labels = zip(self.first, *self.before, strict=True)
        found = carried(tokens, torch.stack(sources), torch.stack(labels), self.settings)
        self.before.append((tokens, found))
        return found


def carried(tokens: Tensor, sources: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """[C, h, w] labels of the tokens of one frame.

    Args:
        tokens: [h, w, D] of length 1.
        sources: [N, h, w, D] of length 1, of the frames that labels are taken from.
        labels: [N, C, h, w] of these.
        settings: of the neighbours.
    """
    height, width = tokens.shape[:2]
    found = labels.new_empty(labels.shape[1:])
    for rows, near_rows in _tiles(height, settings.radius):
        for columns, near_columns in _tiles(width, settings.radius):
            keys = sources[:, near_rows, near_columns]
            similarity = tokens[rows, columns].flatten(0, 1) @ keys.flatten(0, 2).T
            near = _near(rows, near_rows, settings.radius, tokens.device)[:, None, :, None]
            near = near & _near(columns, near_columns, settings.radius, tokens.device)[:, None]
            near = near.flatten(0, 1).flatten(1)  # [Q, near tokens of a frame]
            similarity.unflatten(1, (len(keys), -1)).masked_fill_(~near[:, None], -torch.inf)
            count = min(settings.neighbours, similarity.shape[1])
            least = similarity.topk(count, 1).values[:, -1:]
            similarity.masked_fill_(similarity < least, -torch.inf)
            weights = (similarity / settings.temperature).softmax(1)
            values = labels[:, :, near_rows, near_columns].transpose(0, 1).flatten(1)
            found[:, rows, columns] = (values @ weights.T).unflatten(
                1, tokens[rows, columns].shape[:2]
            )
    return found


def _tiles(length: int, radius: int) -> list[tuple[slice, slice]]:
    """Of a side: the tokens of each tile, and those near them."""
    starts = range(0, length, _TILE)
    return [
        (
            slice(start, min(start + _TILE, length)),
            slice(max(start - radius, 0), min(start + _TILE + radius, length)),
        )
        for start in starts
    ]


def _near(places: slice, others: slice, radius: int, device: torch.device) -> Tensor:
    """[places, others] bool, of tokens along a side."""
    a, b = (torch.arange(s.start, s.stop, device=device) for s in (places, others))
    return (a[:, None] - b).abs() <= radius
