"""`fastequi eval reconstruct`: PSNR and SSIM of the predicted images, and the features' spectra.

The baseline of a predicted image is the nearer of the two views, copied into its place.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastequi.config import Config
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources.image_sets import Data, Source
from fastequi.data.sources.splits import photographs
from fastequi.data.views.batch import Batch
from fastequi.evaluate.encoders import Encoder, expect_finite, load_encoder
from fastequi.evaluate.intervals import middle95, resampled_mean
from fastequi.evaluate.results import Row, documented, place, save, seen_in_training
from fastequi.evaluate.spectrum import spectrum
from fastequi.functional.normalise import denormalise
from fastequi.methods.tir import TIR

_BATCH = 64
_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, 11 x 11
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB of normalised images [..., 3, H, W], each in 0..1 first."""
    x, y = (denormalise(images, mean, std).clamp(0, 1) for images in (pred, target))
    difference = (x - y).square()
    return -10 * difference.mean((-1, -2, -3)).clamp(min=1e-10).log10()


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, 3, H, W]: for every step the view it lies closer to, v1 for a draw."""
    ahead = [k / (num_steps + 1) > 0.5 for k in range(1, num_steps + 1)]
    return torch.stack([v2 if later else v1 for later in ahead], 1)


def ssim(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Structural similarity of normalised images [..., 3, H, W], each in 0..1 first.

    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP
    2004: the mean over pixels and channels of
    (2·μx·μy + C1)(2·σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)), C1 = .01², C2 = .03², the
    moments under an 11x11 Gaussian window of σ = 1.5, where it lies inside the image.

    Raises:
        ValueError: images smaller than the window.
    """
    height, width = pred.shape[-2:]
    if min(height, width) <= 2 * _RADIUS:
        raise ValueError(f"pred: expected images of at least 11x11 for SSIM, got {height}x{width}")
    x, y = (denormalise(images, mean, std).clamp(0, 1) for images in (pred, target))
    images = torch.stack([x, y, x * x, y * y, x * y]).double()
    mx, my, xx, yy, xy = _window(images.flatten(0, -3)[:, None]).view(5, *x.shape[:-2], -1)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + _C1) * (2 * cov + _C2)
    value = value / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return value.mean((-1, -2)).float()


def _window(images: Tensor) -> Tensor:
    """[N, 1, H, W] under the Gaussian window, places inside only."""
    at = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-(at**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One measure of N images' K steps.

    Attributes:
        predicted, nearer_view: means over images, of every step k = 1 .. K; the second is the
            baseline.
        gain: mean over images and steps of predicted - nearer_view.
        low, high: its 95 % interval over photographs, see `fastequi.evaluate.intervals`.
    """

    predicted: tuple[float, ...]
    nearer_view: tuple[float, ...]
    gain: float
    low: float
    high: float


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
        quality: by "psnr" and "ssim"; empty for a base alone, which predicts nothing.
        spectra: of z_inv and z_equi.
    """

    images: int
    quality: Mapping[str, Quality]
    spectra: tuple[SpectrumRow, ...]

    def to_json(self) -> dict[str, Any]:
        """As result files have it; see `fastequi.evaluate.results`."""
        return {"images": self.images, **self.quality, "spectra": self.spectra}


def path_loader(config: Config, source: Source, device: torch.device, seed: int) -> Loader:
    """Batches along a run's path without augmentation: v1 is the centre of u's window.

    Also of a run whose views are two crops: here both are of one crop, and differ by its path.
    """
    data = replace(config.data.plain(), shared_crop=True, num_threads=0)
    each = data.samples_per_decode
    batch = max(min(data.batch_size, _BATCH) // each, 1) * each
    repeat = max(data.repeat, -(-batch // (each * len(source))))
    data = replace(data, batch_size=batch, repeat=repeat)
    return make_loader(source, data, config.path.build(), seed=seed, device=device)


def quality(
    method: TIR, batches: Iterable[Batch], n: int, samples_per_file: int = 1
) -> dict[str, Quality]:
    """PSNR in dB and SSIM of the predictions for the first n images or a little more.

    Args:
        method: with decoders.
        batches: as :func:`path_loader` makes them.
        n: images.
        samples_per_file: sample ids of each photograph, `DataConfig.samples_per_file`.
    """
    mean, std = method.views.mean, method.views.std
    found: dict[str, list[Tensor]] = {}
    photographs = []
    count = 0
    for batch in batches:
        views = method.reconstruct(batch)
        target = views["target"]
        expect_finite("decoders", {"predictions": views["pred"]})
        copied = nearer_view(views["v1"], views["v2"], target.shape[1])
        for name, measure in (("psnr", psnr), ("ssim", ssim)):
            both = [measure(x, target, mean, std).cpu() for x in (views["pred"], copied)]
            found.setdefault(name, []).append(torch.stack(both, 1))
        photographs.append(batch.sample_ids // samples_per_file)
        count += len(batch)
        if count >= n:
            break
    groups = torch.cat(photographs)
    return {name: _quality(torch.cat(parts), groups) for name, parts in found.items()}


def _quality(values: Tensor, photographs: Tensor) -> Quality:
    """Of [N, (predicted, nearer view), K]."""
    predicted, copied = values.mean(0).tolist()
    gains = (values[:, 0] - values[:, 1]).mean(1)
    low, high = middle95(resampled_mean(gains, photographs))
    return Quality(
        predicted=tuple(predicted),
        nearer_view=tuple(copied),
        gain=gains.mean().item(),
        low=low.item(),
        high=high.item(),
    )


def measured(encoder: Encoder, source: Source, *, images: int, seed: int) -> Reconstruction:
    """PSNR, SSIM and spectra of a TIR run's encoder.

    Args:
        encoder: of a TIR run, or of its base alone.
        source: photographs.
        images: how many windows of them.
        seed: of windows and paths.

    Raises:
        ValueError: it is no such run.
    """
    method, config = _tir(encoder, encoder.name)
    found: dict[str, Quality] = {}
    with path_loader(config, source, encoder.device, seed) as loader:
        if method.decoder is not None:
            found = quality(method, loader, images, loader.cfg.samples_per_file)
    with path_loader(config, source, encoder.device, seed) as loader:
        batches = islice(loader, -(-images // loader.cfg.batch_size))
        v1 = torch.cat([batch.v1 for batch in batches])
    return Reconstruction(images=len(v1), quality=found, spectra=_spectra(encoder, v1))


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
    """Prints both tables and writes them; a base alone has no predictions, only features.

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
    _, source = photographs(data, test_data)
    file = place("reconstruct", spec, out)
    seen = seen_in_training([spec], source if data else None)
    found, console = measured(encoder, source, images=images, seed=seed), Console()
    if found.quality:
        console.print(_quality_table(found.quality, single=len(source) == 1))
    else:
        print(f"{spec} has no decoders (a base alone), so nothing is reconstructed")
    console.print(_spectrum_table(found.spectra))
    document = {
        **documented(data),
        "photographs": {"test": len(source)},
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


def _quality_table(found: Mapping[str, Quality], *, single: bool) -> Table:
    """For the terminal; the gains without intervals if all images are of a single photograph."""
    gains = []
    table = Table(title="between the views", box=box.SIMPLE_HEAD)
    table.add_column("measure", no_wrap=True)
    for name in ("k", "predicted", "nearer view"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, q in found.items():
        label, digits = ("PSNR, dB", 2) if name == "psnr" else ("SSIM", 3)
        for k, both in enumerate(zip(q.predicted, q.nearer_view, strict=True), 1):
            table.add_row(label, str(k), *(f"{value:.{digits}f}" for value in both))
        interval = "" if single else f" ({q.low:+.{digits}f}..{q.high:+.{digits}f})"
        gains.append(f"{label} gained {q.gain:+.{digits}f}{interval}")
    if single:
        gains.append("of one photograph, so no interval")
    table.caption = "; ".join(gains)
    return table


def _spectrum_table(spectra: Iterable[SpectrumRow]) -> Table:
    table = Table(title="dimensions that features use", box=box.SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    for name in ("channels", "rank", "variance", "participation", "exp entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in spectra:
        dimensions = f"{s.participation:.1f}", f"{s.entropy:.1f}"
        table.add_row(s.label, str(s.channels), str(s.rank), f"{s.variance:.3g}", *dimensions)
    return table
