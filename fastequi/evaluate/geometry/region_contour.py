"""J and F of masks of objects, and their statistics over a clip, as DAVIS evaluates them.

J, region similarity: intersection over union. F, contour accuracy: the harmonic mean of the share
of the found contour that lies within a distance of the true one, and the other way round (Perazzi
et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675). Each figure is computed as by the official
davis2017-evaluation (`metrics.py`, `db_statistics` in `utils.py`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

BOUND = 0.008  # of the diagonal: how far apart contours may be


def region_similarity(truth: Tensor, found: Tensor) -> Tensor:
    """J [...] float64 of masks [..., H, W] bool; 1 where both are empty."""
    both, either = (x.sum((-2, -1)).double() for x in (truth & found, truth | found))
    return torch.where(either > 0, both / either, 1.0)


def contour_accuracy(truth: Tensor, found: Tensor) -> Tensor:
    """F [...] float64 of masks [..., H, W] bool; 1 where neither has a contour.

    Contours match within BOUND of the image's diagonal, rounded up to whole pixels.
    """
    radius = math.ceil(BOUND * math.hypot(*truth.shape[-2:]))
    of_truth, of_found = contour(truth), contour(found)
    precision = _share(of_found & dilated(of_truth, radius), of_found)
    recall = _share(of_truth & dilated(of_found, radius), of_truth)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total, 0.0)


def contour(masks: Tensor) -> Tensor:
    """[..., H, W] bool: pixels that differ from the next one to the right, below, or both."""
    wider = torch.cat([masks, masks[..., -1:]], -1)
    wider = torch.cat([wider, wider[..., -1:, :]], -2)
    right, below, both = wider[..., :-1, 1:], wider[..., 1:, :-1], wider[..., 1:, 1:]
    return (masks ^ right) | (masks ^ below) | (masks ^ both)


def dilated(masks: Tensor, radius: int) -> Tensor:
    """[..., H, W] bool: pixels within `radius` of one of the mask's, between their middles."""
    height = masks.shape[-2]
    rows = range(min(radius, height - 1) + 1)
    reach = [math.isqrt(radius**2 - dy**2) for dy in rows]
    out, row = torch.zeros_like(masks), masks
    for half in range(radius + 1):
        if half:
            wider = row.clone()
            wider[..., 1:] |= row[..., :-1]
            wider[..., :-1] |= row[..., 1:]
            row = wider
        for dy in rows:
            if reach[dy] == half:
                out[..., dy:, :] |= row[..., : height - dy, :]
                out[..., : height - dy, :] |= row[..., dy:, :]
    return out


def statistics(values: ArrayLike) -> tuple[float, float, float]:
    """Mean, recall and decay of an object's J or F [T] over frames.

    Recall is the share above one half; decay the mean of the first quarter of the frames less that
    of the last. Quarters share their first and last frames, as in the official evaluation.
    """
    each = np.asarray(values, np.float64)
    ends = (np.round(np.linspace(1, len(each), 5) + 1e-10) - 1).astype(int)
    first, last = each[: ends[1] + 1], each[ends[3] : ends[4] + 1]
    return float(each.mean()), float((each > 0.5).mean()), float(first.mean() - last.mean())


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """[...] of pixels; 1 of nothing."""
    count = whole.sum((-2, -1)).double()
    return torch.where(count > 0, part.sum((-2, -1)) / count, 1.0)
