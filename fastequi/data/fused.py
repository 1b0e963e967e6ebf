"""Views by `fused_views`, of images that DALI decodes: `data.views="fused"`.

The same parameters as for DALI's graph (`dali.py`), the same views but for its rounding: one pass
for each view where DALI takes one for each operation. DALI decodes ahead, on the CPU or on a GPU;
the views of a batch are made when it is asked for, by PyTorch's threads, or on the current stream.
The parameters stay on the CPU, so that nothing waits for a GPU. Of images whose channels are kept,
noise and channels without contents come after it, as in `channel_views.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastequi.data.channel_views import as_whole, disturbed
from fastequi.data.config import Augment, DataConfig
from fastequi.data.dali import Decoded
from fastequi.data.decode import Decoder, File
from fastequi.data.drawn import Drawn
from fastequi.data.pixels import Pixels
from fastequi.data.views.parameters import ViewParams
from fastequi.data.views.rotations import rotate
from fastequi.functional import fused_views
from fastequi.functional.normalise import normalise
from fastequi.paths import color_matrix


class FusedPipeline:
    """Batches of views, like :class:`fastequi.data.dali.ViewPipeline`.

    Args:
        cfg: the views.
        decodes: photographs in a batch.
        draw: called once per batch, ahead of time.
        device: where photographs are decoded and views made: "cpu", or a CUDA device.
        num_threads: DALI's CPU threads.
        encoded: files are images' bytes, not paths.
        pixels: what is taken of images whose channels are kept.
        dtype: of v1 and the local crops, if they are to be bfloat16 and nothing comes after
            `fused_views`; else they are float32.

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
        pixels: Pixels | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.cfg, self._draw, self._pixels, self._dtype = cfg, draw, pixels, dtype
        self._ahead: deque[Drawn] = deque()  # being decoded, oldest first
        self._decoder = Decoder(decodes, self._files, device, num_threads, encoded, pixels)

    def _files(self) -> Sequence[File]:
        self._ahead.append(self._draw())
        return self._ahead[-1].files

    def run(self) -> Decoded:
        """The next batch, in the order of the draws."""
        photos = self._decoder.run()
        return views_of(self.cfg, photos, self._ahead.popleft(), self._pixels, self._dtype)


def views_of(
    cfg: DataConfig,
    photos: Sequence[Tensor],
    drawn: Drawn,
    pixels: Pixels | None = None,
    dtype: torch.dtype = torch.float32,
) -> Decoded:
    """The views of decoded images [H, W, 3], or of `pixels` [H, W, C]; `dtype` as above."""
    deep = pixels is not None and pixels.depth != "uint8"
    whole = torch.uint16 if deep else torch.uint8
    floats = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    common = cfg, photos, pixels
    u = _views(*common, drawn.u, cfg.a2, cfg.source_size, whole)
    v1 = _views(*common, drawn.v1, cfg.a1, cfg.image_size, floats)
    local = None
    if drawn.local_crops is not None:
        crops = _views(*common, drawn.local_crops, cfg.a3, cfg.local_crop_size, floats)
        local = crops.unflatten(0, (-1, cfg.local_crops)).transpose(0, 1)
    return Decoded(v1, u, local)


def _views(
    cfg: DataConfig,
    photos: Sequence[Tensor],
    pixels: Pixels | None,
    params: ViewParams,
    aug: Augment,
    size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Of one kind: as many of each image, one after the other; floats are normalised."""
    count = len(params.start)
    photo = torch.arange(len(photos)).repeat_interleave(count // len(photos))
    sides = torch.tensor([image.shape[:2] for image in photos])[photo]
    corners = (torch.from_numpy(np.ascontiguousarray(x)) for x in (params.start, params.end))
    windows = torch.cat([x * sides for x in corners], 1)
    options: dict[str, Any] = {}
    if aug.colors and params.color is not None:
        brightness, contrast, saturation, degrees = torch.from_numpy(params.color).unbind(1)
        matrix = color_matrix(brightness, contrast, saturation, degrees / 360)
        options["color"] = matrix
    if params.channels is not None:
        options["gain"] = torch.from_numpy(params.channels)[..., : 3 if aug.gamma > 0 else 2]
    if aug.blur > 0 and params.sigma is not None:
        options["sigma"] = torch.from_numpy(params.sigma)
    if aug.solarize > 0 and params.solarize is not None:
        options["solarize"] = torch.from_numpy(params.solarize)
    if pixels is not None:
        options |= {"channels": pixels.chosen, "value_range": pixels.ranges}
    options |= {"size": size, "photo": photo}
    whole = not dtype.is_floating_point
    if params.noise is not None or params.dropped is not None:
        views = disturbed(fused_views(photos, windows, **options), params)
        depth = "uint8" if dtype == torch.uint8 else "uint16"
        views = as_whole(views, depth) if whole else normalise(views, cfg.mean, cfg.std)
    elif whole:
        views = fused_views(photos, windows, dtype=dtype, **options)
    else:
        views = fused_views(photos, windows, mean=cfg.mean, std=cfg.std, dtype=dtype, **options)
    if cfg.rotations and params.rotation is not None:
        rotate(views, params.rotation)
    return views
