"""Regions that the views of a sample share: boxes from the drawn windows and rotations."""

from __future__ import annotations

import numpy as np
import torch

from fastequi.data.config import DataConfig
from fastequi.data.views.batch import Overlaps, Shared
from fastequi.data.views.boxes import rotate_boxes, shared_boxes
from fastequi.data.views.parameters import ViewParams


def overlaps_of(
    cfg: DataConfig, v1: ViewParams, u: ViewParams, crops: ViewParams | None
) -> Overlaps:
    """The overlaps of a batch's views."""
    views = [(v1, cfg.image_size), (u, cfg.source_size)]
    windows = [torch.from_numpy(view.boxes) for view, _ in views]
    rotations = [torch.from_numpy(_rotations(view)) for view, _ in views]
    sizes = [size for _, size in views]
    if crops is not None:
        # [B · V], a sample's together
        windows += torch.from_numpy(crops.boxes).unflatten(0, (-1, cfg.local_crops)).unbind(1)
        rotations += (
            torch.from_numpy(_rotations(crops)).unflatten(0, (-1, cfg.local_crops)).unbind(1)
        )
        sizes += [cfg.local_crop_size] * cfg.local_crops

    def shared(pairs: list[tuple[int, int]]) -> Shared:
        own, other, by = [], [], []
        for view, seen in pairs:
            boxes = shared_boxes(windows[view], windows[seen], sizes[view], sizes[seen])
            own.append(rotate_boxes(boxes[0], rotations[view], sizes[view]))
            other.append(rotate_boxes(boxes[1], rotations[seen], sizes[seen]))
            by.append((rotations[view] - rotations[seen]) % 4)
        return Shared(torch.stack(own).float(), torch.stack(other).float(), torch.stack(by))

    of_local_crops = [(2 + crop, view) for crop in range(cfg.local_crops) for view in (0, 1)]
    return Overlaps(
        torch.stack(rotations),
        shared([(0, 1), (1, 0)]),
        shared(of_local_crops) if of_local_crops else None,
    )


def _rotations(view: ViewParams) -> np.ndarray:
    return np.zeros(len(view.start), np.int64) if view.rotation is None else view.rotation
