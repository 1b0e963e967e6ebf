"""Small settings and crops for DALI's graph."""

import numpy as np
import torch

from fastequi.data.config import Augment, DataConfig
from fastequi.data.views.parameters import ViewParams

CPU = torch.device("cpu")
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # v1 in 0..1


def whole(n, **changes):
    """The whole photograph for n samples."""
    return ViewParams(np.zeros((n, 2), np.float32), np.ones((n, 2), np.float32), **changes)


def config(a1=None, a2=None, size=32, **changes):
    none = Augment.none()
    return DataConfig(size, size, a1=a1 or none, a2=a2 or none, **{**UNIT, **changes})
