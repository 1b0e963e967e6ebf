"""Mean intersection over union of classes, from the areas that each image leaves.

Of an image three areas of every class are kept, in pixels: where it was found rightly, where it was
found, and where it is. That is what the diagonal, the columns and the rows of a confusion matrix
sum to, and all that the figures need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastequi.evaluate.geometry.figures import Figure, Measure
from fastequi.evaluate.geometry.masks import IGNORED
from fastequi.evaluate.results import Row

MOST_FREQUENT = Row(encoder=None, features="most frequent class", is_baseline=True)


def areas(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """[3 · classes] float64: pixels found rightly, found, and true, of every class.

    Args:
        found: [...] integers, classes.
        truth: [...] integers, classes and IGNORED; ignored pixels count nowhere.
        classes: how many.
    """
    known = truth != IGNORED
    f, t = found[known].long(), truth[known].long()
    counts = [torch.bincount(x, minlength=classes) for x in (t[f == t], f, t)]
    return torch.cat(counts).double().cpu()


def class_iou(sums: Tensor) -> Tensor:
    """[..., classes] of areas [..., 3 · classes]: rightly found over found or true; NaN of a class
    that is neither."""
    right, found, true = sums.unflatten(-1, (3, -1)).unbind(-2)
    return right / (found + true - right)


def _figures(sums: Tensor) -> Tensor:
    right, _, true = sums.unflatten(-1, (3, -1)).unbind(-2)
    return torch.stack([class_iou(sums).nanmean(-1), right.sum(-1) / true.sum(-1)], -1)


MEASURE = Measure((Figure("mIoU"), Figure("pixel accuracy")), _figures)
"""The mean over classes that were found or are there, and the share of pixels found rightly."""
