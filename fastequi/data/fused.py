"""Views by `fused_views`, of photographs that DALI decodes: `data.views="fused"`.

The same parameters as for DALI's graph (`dali.py`), the same views but for its rounding: one pass
for each view where DALI takes one for each operation. DALI decodes ahead, on the CPU or on a GPU;
the views of a batch are made when it is asked for, by PyTorch's threads, or on the current stream.
The parameters stay on the CPU, so that nothing waits for a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastequi.data.config import Augment, DataConfig
from fastequi.data.dali import Decoded
from fastequi.data.decode import Decoder, File
from fastequi.data.views.parameters import ViewParams
from fastequi.data.views.rotations import rotate
from fastequi.functional import backend, fused_views
from fastequi.paths import color_matrix


def chosen(views: str, device: torch.device) -> Literal["dali", "fused"]:
    """What `data.views` means on a device; on a GPU auto is dali, the one that was measured."""
    if views == "auto":
        in_c = device.type == "cpu" and backend(device)[0] == "native"
        return "fused" if in_c else "dali"
    return "fused" if views == "fused" else "dali"


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


class FusedPipeline:
    """Batches of views, like :class:`fastequi.data.dali.ViewPipeline`.

    Args:
        cfg: the views.
        decodes: photographs in a batch.
        draw: called once per batch, ahead of time.
        device: where photographs are decoded and views made: "cpu", or a CUDA device.
        num_threads: DALI's CPU threads.
        encoded: files are images' bytes, not paths.

    Raises:
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        cfg: DataConfig,
        decodes: int,
        draw: Callable[[], Drawn],
        device: torch.device,
        num_threads: int,
        encoded: bool = False,
    ) -> None:
        self.cfg, self._draw = cfg, draw
        self._ahead: deque[Drawn] = deque()  # being decoded, oldest first
        self._decoder = Decoder(decodes, self._files, device, num_threads, encoded)

    def _files(self) -> Sequence[File]:
        self._ahead.append(self._draw())
        return self._ahead[-1].files

    def run(self) -> Decoded:
        """The next batch, in the order of the draws."""
        photos = self._decoder.run()
        return views_of(self.cfg, photos, self._ahead.popleft())


def views_of(cfg: DataConfig, photos: Sequence[Tensor], drawn: Drawn) -> Decoded:
    """The views of decoded photographs [H, W, 3]."""
    scale = {"mean": cfg.mean, "std": cfg.std}
    u = _views(cfg, photos, drawn.u, cfg.a2, cfg.source_size, {"dtype": torch.uint8})
    v1 = _views(cfg, photos, drawn.v1, cfg.a1, cfg.image_size, scale)
    local = None
    if drawn.local_crops is not None:
        crops = _views(cfg, photos, drawn.local_crops, cfg.a3, cfg.local_crop_size, scale)
        local = crops.unflatten(0, (-1, cfg.local_crops)).transpose(0, 1)
    return Decoded(v1, u, local)


def _views(
    cfg: DataConfig,
    photos: Sequence[Tensor],
    params: ViewParams,
    aug: Augment,
    size: int,
    options: dict[str, Any],
) -> Tensor:
    """Of one kind: as many of each photograph, one after the other."""
    count = len(params.start)
    photo = torch.arange(len(photos)).repeat_interleave(count // len(photos))
    sides = torch.tensor([image.shape[:2] for image in photos])[photo]
    corners = (torch.from_numpy(np.ascontiguousarray(x)) for x in (params.start, params.end))
    windows = torch.cat([x * sides for x in corners], 1)
    if aug.colors and params.color is not None:
        brightness, contrast, saturation, degrees = torch.from_numpy(params.color).unbind(1)
        matrix = color_matrix(brightness, contrast, saturation, degrees / 360)
        options = {**options, "color": matrix}
    if aug.blur > 0 and params.sigma is not None:
        options = {**options, "sigma": torch.from_numpy(params.sigma)}
    if aug.solarize > 0 and params.solarize is not None:
        options = {**options, "solarize": torch.from_numpy(params.solarize)}
    views = fused_views(photos, windows, size=size, photo=photo, **options)
    if cfg.rotations and params.rotation is not None:
        rotate(views, params.rotation)
    return views
