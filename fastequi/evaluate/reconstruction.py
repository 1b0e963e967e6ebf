"""`fastequi eval reconstruct`: how good the predicted images are, and the features' spectra.

What is measured of the predicted images is in `fastequi.evaluate.predicted_images`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastequi.config import Config
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources.image_sets import Source
from fastequi.data.sources.selection import Data
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_encoder
from fastequi.evaluate.photo_windows import images_for
from fastequi.evaluate.predicted_images import Pooled, Predictions, Quality, predictions
from fastequi.evaluate.results import Row, documented, place, save, seen_in_training
from fastequi.evaluate.spectrum import spectrum
from fastequi.methods.tir import TIR

_BATCH = 64
_SHOWING = 1.5  # ratio of seams to the targets' from which on edges of patches can be seen


@dataclass(frozen=True, kw_only=True)
class SpectrumRow(Row):
    """One row: the `fastequi.evaluate.spectrum.Spectrum` of one kind of features.

    Attributes:
        tokens: "all" patch tokens of all images, or every image's "mean".
    """

    tokens: str
    channels: int
    rank: int
    variance: float
    participation: float
    entropy: float

    @property
    def label(self) -> str:
        """For tables, without the encoder, as there is one."""
        return f"{self.features}, {'tokens' if self.tokens == 'all' else 'mean token'}"


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What is measured of an encoder.

    Attributes:
        images: that figures are means over.
        photographs: that those are windows of; of a single one there are no intervals.
        predictions: None for a base alone, which predicts nothing.
        spectra: of z_inv and z_equi.
    """

    images: int
    photographs: int
    predictions: Predictions | None
    spectra: tuple[SpectrumRow, ...]

    def to_json(self) -> dict[str, Any]:
        """As result files have it; see `fastequi.evaluate.results`."""
        found = dataclasses.asdict(self.predictions) if self.predictions else {}
        of = {"images": self.images, "photographs": {"test": self.photographs}}
        return {**of, **found, "spectra": self.spectra}


def path_loader(config: Config, source: Source, device: torch.device, seed: int) -> Loader:
    """Batches along a run's path without augmentation: v1 is the centre of u's window.

    Also of a run whose views are two crops: here both are of one crop, and differ by its path.
    """
    data = replace(config.data.plain(), shared_crop=True, num_threads=0)
    each = data.samples_per_decode
    batch = max(min(data.batch_size, _BATCH) // each, 1) * each
    repeat = max(data.repeat, -(-batch // (each * len(source))))
    data = replace(data, batch_size=batch, repeat=repeat)
    path = config.path.build(data.in_chans)
    return make_loader(source, data, path, seed=seed, device=device)


def measured(encoder: Encoder, source: Source, *, images: int, seed: int) -> Reconstruction:
    """Predictions and spectra of a TIR run's encoder.

    Args:
        encoder: of a TIR run, or of its base alone.
        source: photographs.
        images: how many windows of them.
        seed: of windows and paths.

    Raises:
        ValueError: it is no such run.
    """
    method, config = _tir(encoder, encoder.name)
    found = None
    with path_loader(config, source, encoder.device, seed) as loader:
        if method.decoder is not None:
            found = predictions(method, loader, images, loader.photographs_of)
    with path_loader(config, source, encoder.device, seed) as loader:
        batches = list(islice(loader, -(-images // loader.cfg.batch_size)))
        shown = loader.photographs_of(torch.cat([batch.sample_ids for batch in batches]))
    v1 = torch.cat([batch.v1 for batch in batches])
    return Reconstruction(
        images=len(v1),
        photographs=len(shown.unique()),
        predictions=found,
        spectra=_spectra(encoder, v1),
    )


def evaluate_reconstruction(
    spec: str,
    *,
    data: Data | None = None,
    test_data: Data | None = None,
    images: int = 512,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> Reconstruction:
    """Prints the tables and writes them; a base alone has no predictions, only features.

    Args:
        spec: a run, or one of its checkpoints.
        data, test_data: see `fastequi.data.sources.splits.photographs`; the test photographs are
            used.
        images: views that figures are means over.
        seed: of windows and paths.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; by default see `fastequi.evaluate.results.place`.
    """
    encoder, start = load_encoder(spec, device), time.monotonic()
    _tir(encoder, spec)
    if data is None and test_data is None:
        encoder.expect_photographs()
    _, source = photographs(data, test_data, images_for(encoder))
    file = place("reconstruct", spec, out)
    seen = seen_in_training([spec], source if data else None)
    found, console = measured(encoder, source, images=images, seed=seed), Console()
    which = "photographs" if data or test_data else "embedded photographs (--data names others)"
    print(f"{found.images:,} windows of {found.photographs} {which}")
    if found.predictions:
        show_predictions(found.predictions, console)
    else:
        print(f"{spec} has no decoders (a base alone), so nothing is reconstructed")
    console.print(_spectrum_table(found.spectra))
    document = {
        **documented(data),
        "test_seen_in_training": seen,
        **found.to_json(),
        "seconds": time.monotonic() - start,
    }
    save(file, kind="reconstruct", spec=spec, encoder=encoder, document=document)
    print(file)
    return found


def _tir(encoder: Encoder, name: str) -> tuple[TIR, Config]:
    method, config = encoder.method, encoder.config
    if not isinstance(method, TIR) or config is None:
        raise ValueError(f"CHECKPOINT: expected a run with method=tir, {name} is none")
    return method, config


def _spectra(encoder: Encoder, images: Tensor) -> tuple[SpectrumRow, ...]:
    """Of all patch tokens, and of their means over an image."""
    parts: dict[str, list[Tensor]] = {}
    for part in images.split(64):
        tokens = encoder.features(part)
        for name in ("z_inv", "z_equi"):
            if name in tokens:
                parts.setdefault(name, []).append(tokens[name].float())
    rows = []
    for name, tokens_of in parts.items():
        whole = torch.cat(tokens_of)
        for kind, vectors in (("all", whole.flatten(0, 1)), ("mean", whole.mean(1))):
            row = Row(encoder=encoder.name, features=name, is_baseline=encoder.is_baseline)
            figures = dataclasses.asdict(spectrum(vectors))
            rows.append(SpectrumRow(**row.to_json(), tokens=kind, **figures))
    return tuple(rows)


def show_predictions(found: Predictions, console: Console) -> None:
    """Prints the pooled error first, then means over images, then the gain by texture and angle."""
    pooled = found.pooled
    console.print(
        f"error of all pixels: predicted {pooled.predicted:.2f} dB, the nearer view in its place "
        f"{pooled.nearer_view:.2f} dB"
    )
    console.print(f"pooled gain {interval(pooled, 1)}")
    seams = found.seams
    if seams.predicted is not None and seams.target is not None:
        shows = seams.predicted > _SHOWING * seams.target
        console.print(
            "differences of neighbouring pixels, mean squares across edges of patches over those "
            f"inside: predicted {seams.predicted:.2f}, targets {seams.target:.2f}"
            + "; the edges show: more training helps, and tir.decoder_overlap"
            * shows
        )
    table = Table(title="between the views, means over images", box=box.SIMPLE_HEAD)
    table.add_column("measure", no_wrap=True)
    for name in ("k", "predicted", "nearer view"):
        table.add_column(name, justify="right", no_wrap=True)
    gains = []
    for label, q, digits in (("PSNR, dB", found.psnr, 2), ("SSIM", found.ssim, 3)):
        for k, both in enumerate(zip(q.predicted, q.nearer_view, strict=True), 1):
            table.add_row(label, str(k), *(f"{value:.{digits}f}" for value in both))
        gains.append(f"{label} gained {q.gain:+.{digits}f}")
        if q.low is not None and q.high is not None:
            gains[-1] += f" ({q.low:+.{digits}f}..{q.high:+.{digits}f})"
    table.caption = "; ".join(gains)
    console.print(table)
    table = Table(title="gain over the nearer view, dB", box=box.SIMPLE_HEAD)
    table.add_column("images", no_wrap=True)
    for name in ("number", "nearer view", "pooled gain", "mean of gains"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in (*found.by_texture, *found.by_angle):
        figures = f"{part.nearer_view:.1f}", f"{part.pooled:+.1f}", f"{part.gain:+.1f}"
        table.add_row(part.name, str(part.images), *figures)
    console.print(table)


def interval(found: Pooled | Quality, digits: int) -> str:
    """ "+4.2 dB [3.6, 4.9]": a gain in decibels and its 95 % interval; none of one photograph."""
    if found.low is None or found.high is None:
        return f"{found.gain:+.{digits}f} dB, of one photograph, so no interval"
    return f"{found.gain:+.{digits}f} dB [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _spectrum_table(spectra: Iterable[SpectrumRow]) -> Table:
    table = Table(title="dimensions that features use", box=box.SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    for name in ("channels", "rank", "variance", "participation", "exp entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in spectra:
        dimensions = f"{s.participation:.1f}", f"{s.entropy:.1f}"
        table.add_row(s.label, str(s.channels), str(s.rank), f"{s.variance:.3g}", *dimensions)
    return table
