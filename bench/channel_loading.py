"""How many images of other channels than 8-bit RGB come out of the loader in a second?

    python -m bench.channel_loading --json FILE

Tiles of 256 px are written to a folder that is removed in the end, 64 of each kind: files that DALI
decodes, and files that tifffile does. The loader makes v1 and u of 224 px of each (window, flip,
gain and offset of every channel, or colours of RGB), as a run on 12 bits of 16 asks for them, in
one pass and by DALI's operators. Beside it every image is read once at 16 px, which is decoding and
little else. The kinds take turns, a few batches each, with what was made ahead used up before: the
medians are of one interleaved run.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.loading import rates, run
from fastequi.data.config import DataConfig
from fastequi.data.loader import make_loader
from fastequi.data.reader import read
from fastequi.data.settling import settled, wanted
from fastequi.data.sources import tiff
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.sources.images import Source
from fastequi.paths import SE2

SIDE, TILES, BATCH = 256, 64, 16
DRAINED, TIMED = 4, 8  # batches not timed and timed of a round
VIEWS: tuple[Literal["fused", "dali"], ...] = ("fused", "dali")
CPU = torch.device("cpu")

Values = NDArray[Any]  # [H, W, C]


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: as in the table.
        channels, most: of the values, 0..most.
        suffix, encode: of a file, and its bytes.
        options: of DataConfig.
    """

    name: str
    channels: int
    most: int
    suffix: str
    encode: Callable[[Values], bytes]
    options: Mapping[str, Any]


def _pillow(format: str, **options: Any) -> Callable[[Values], bytes]:
    def encode(values: Values) -> bytes:
        file = BytesIO()
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        image.save(file, format, **options)
        return file.getvalue()

    return encode


def _planes(values: Values) -> bytes:
    file = BytesIO()
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0))
    tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="separate")
    return file.getvalue()


def _npy(values: Values) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


def _contiguous(values: Values) -> bytes:
    return tiff.encoded(values).tobytes()


_BITS12: Mapping[str, Any] = {"channels": "all", "value_range": "0:4095"}
KINDS = (
    Kind("8-bit RGB, JPEG, not kept", 3, 255, ".jpg", _pillow("JPEG", quality=90), {}),
    Kind("8-bit RGB, PNG, kept", 3, 255, ".png", _pillow("PNG"), {"channels": "all"}),
    Kind("16-bit grey, PNG", 1, 4095, ".png", _pillow("PNG"), _BITS12),
    Kind("4 channels of 16 bits, TIFF by pixels", 4, 4095, ".tif", _contiguous, _BITS12),
    Kind("12 channels of 16 bits, TIFF by pixels", 12, 4095, ".tif", _contiguous, _BITS12),
    Kind("12 channels of 16 bits, TIFF by planes", 12, 4095, ".tif", _planes, _BITS12),
    Kind("12 channels of 16 bits, .npy", 12, 4095, ".npy", _npy, _BITS12),
)


def tile(kind: Kind, i: int) -> Values:
    """Smooth, with some noise, as photographs are."""
    draw = np.random.default_rng([i, kind.channels])
    y, x = np.mgrid[:SIDE, :SIDE] / 40
    waves = [np.sin(x + k + i) * np.cos(y - k) for k in range(kind.channels)]
    unit = 0.5 + 0.4 * np.stack(waves, -1) + draw.normal(0, 0.02, (SIDE, SIDE, kind.channels))
    return (unit.clip(0, 1) * kind.most).astype(np.uint8 if kind.most == 255 else np.uint16)


def opened(kind: Kind, folder: Path) -> tuple[Source, DataConfig]:
    folder.mkdir()
    for i in range(TILES):
        (folder / f"{i:03}{kind.suffix}").write_bytes(kind.encode(tile(kind, i)))
    cfg = DataConfig(batch_size=BATCH, samples_per_decode=1, repeat=1000, **kind.options)
    if kind.options:
        cfg = replace(cfg, mean=(0.5,) * kind.channels, std=(0.25,) * kind.channels)
    source = image_folder(folder, wanted=wanted(cfg))
    return source, settled(cfg, source)


def batches(source: Source, cfg: DataConfig) -> Iterator[Any]:
    """Images at 16 px, again and again: what decoding takes."""
    while True:
        for images, _ in read(source, 16, device=CPU, batch=BATCH, values=cfg):
            yield images


def measured(folder: Path, rounds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        streams: dict[tuple[str, str], Iterator[Any]] = {}
        for k, kind in enumerate(KINDS):
            source, cfg = opened(kind, folder / str(k))
            for views in VIEWS:
                loader = make_loader(source, replace(cfg, views=views), SE2(), seed=0)
                streams[kind.name, views] = stack.enter_context(loader)
            streams[kind.name, "decoded"] = batches(source, cfg)
        found = rates(streams, rounds, BATCH, DRAINED, TIMED)
    return [
        {
            "kind": kind.name,
            "channels": kind.channels,
            **{what: found[kind.name, what] for what in ("decoded", *VIEWS)},
        }
        for kind in KINDS
    ]


def table(document: Mapping[str, Any]) -> str:
    """Markdown: images a second, of each of which two views are made."""
    columns = "files of 256 px", "decoded alone", "views in one pass", "views by DALI", "ratio"
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | --- |"]
    for row in document["rows"]:
        decoded, fused, dali = (row[what]["images/s"] for what in ("decoded", *VIEWS))
        cells = f"{decoded:,.0f} | {fused:,.0f} | {dali:,.0f} | {fused / dali:.1f}x"
        lines.append(f"| {row['kind']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run("python -m bench.channel_loading", measured, table)
