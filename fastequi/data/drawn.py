"""What is drawn for a batch before its images are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastequi.data.decode import File
from fastequi.data.views.parameters import ViewParams


class Drawn(NamedTuple):
    """What a batch is made of.

    Attributes:
        files: [D] paths, or encoded images.
        v1, u: parameters of the D · M samples, M consecutive ones per file.
        local_crops: of their local views, V consecutive ones per sample, if there are any.
    """

    files: Sequence[File]
    v1: ViewParams
    u: ViewParams
    local_crops: ViewParams | None
