"""Where the views of a sample show the same: boxes from the windows and turns that were drawn."""

from __future__ import annotations

import numpy as np
import torch

from fastequi.data.views.augment import ViewConfig
from fastequi.data.views.batch import Overlaps, Shared
from fastequi.data.views.boxes import shared_boxes, turn_boxes
from fastequi.data.views.parameters import ViewParams


def overlaps_of(
    cfg: ViewConfig, v1: ViewParams, u: ViewParams, crops: ViewParams | None
) -> Overlaps:
    """What a batch tells about its views; see :class:`fastequi.data.views.batch.Overlaps`."""
    views = [(v1, cfg.image_size), (u, cfg.source_size)]
    windows = [torch.from_numpy(view.boxes) for view, _ in views]
    turns = [torch.from_numpy(_turns(view)) for view, _ in views]
    sizes = [size for _, size in views]
    if crops is not None:
        # [B · V], a sample's together
        windows += torch.from_numpy(crops.boxes).unflatten(0, (-1, cfg.crops)).unbind(1)
        turns += torch.from_numpy(_turns(crops)).unflatten(0, (-1, cfg.crops)).unbind(1)
        sizes += [cfg.crop_size] * cfg.crops

    def shared(pairs: list[tuple[int, int]]) -> Shared:
        own, other, by = [], [], []
        for view, seen in pairs:
            boxes = shared_boxes(windows[view], windows[seen], sizes[view], sizes[seen])
            own.append(turn_boxes(boxes[0], turns[view], sizes[view]))
            other.append(turn_boxes(boxes[1], turns[seen], sizes[seen]))
            by.append((turns[view] - turns[seen]) % 4)
        return Shared(torch.stack(own).float(), torch.stack(other).float(), torch.stack(by))

    of_crops = [(2 + crop, view) for crop in range(cfg.crops) for view in (0, 1)]
    return Overlaps(
        torch.stack(turns),
        shared([(0, 1), (1, 0)]),
        shared(of_crops) if of_crops else None,
    )


def _turns(view: ViewParams) -> np.ndarray:
    return np.zeros(len(view.start), np.int64) if view.turn is None else view.turn
