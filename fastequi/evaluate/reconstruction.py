"""How near predicted images come to their targets: PSNR and SSIM.

What a model predicts between two views means something beside the same figures of the nearer view,
copied into its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
from fastequi.evaluate.results import documented, place, save, seen_in_training
from fastequi.evaluate.spectrum import Spectrum, spectrum
from fastequi.methods.tir import TIR

_BATCH = 64
_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, 11 x 11
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB of normalised images [..., 3, H, W], each in 0..1 first."""
    x, y = (_unit(images, mean, std).clamp(0, 1) for images in (pred, target))
    difference = (x - y).square()
    return -10 * difference.mean((-1, -2, -3)).clamp(min=1e-10).log10()


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, 3, H, W]: for every step the view it lies closer to, u itself (v1) for a draw."""
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
    x, y = _unit(pred, mean, std).clamp(0, 1), _unit(target, mean, std).clamp(0, 1)
    images = torch.stack([x, y, x * x, y * y, x * y]).double()
    mx, my, xx, yy, xy = _window(images.flatten(0, -3)[:, None]).view(5, *x.shape[:-2], -1)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + _C1) * (2 * cov + _C2)
    value = value / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return value.mean((-1, -2)).float()


def _unit(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised images in 0..1 again."""
    mean_t, std_t = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return images * std_t + mean_t


def _window(images: Tensor) -> Tensor:
    """[N, 1, H, W] under the Gaussian window, places inside only."""
    at = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-(at**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


@dataclass(frozen=True)
class Quality:
    """One measure of N images' K steps.

    Attributes:
        predicted, nearer_view: means over images, of every step k = 1 .. K.
        gain: mean over images and steps of predicted - nearer_view.
        low, high: its 95 % interval over photographs, see `fastequi.evaluate.intervals`.
    """

    predicted: tuple[float, ...]
    nearer_view: tuple[float, ...]
    gain: float
    low: float
    high: float


def path_loader(config: Config, source: Source, device: torch.device, seed: int) -> Loader:
    """Batches along a run's path without augmentation: v1 is the centre of u's window.

    A run whose views are two crops is judged on views of one, which its path alone parts.
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
        samples_per_file: sample ids of each photograph, `ViewConfig.samples_per_file`.
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
    return Quality(tuple(predicted), tuple(copied), gains.mean().item(), low.item(), high.item())


def judge(
    spec: str,
    data: Data | None,
    test_data: Data | None = None,
    images: int = 512,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> dict[str, Any]:
    """Prints both tables and writes them; a base alone has no predictions, only features.

    Args:
        spec: a run, or one of its checkpoints.
        data, test_data: see `fastequi.data.sources.splits.photographs`; the test photographs are
            used.
        images: views that figures are means over.
        seed: of windows and paths.
        device: "auto", "cpu", "cuda" or "cuda:1".
        out: the JSON file; see `fastequi.evaluate.results`.
    """
    encoder = load_encoder(spec, device)
    method, config = encoder.method, encoder.config
    if not isinstance(method, TIR) or config is None:
        raise ValueError(f"CHECKPOINT: expected a run with system=tir, {spec} is none")
    _, source = photographs(data, test_data)
    file = place("reconstruct", spec, out)
    seen = seen_in_training([spec], source if data else None)
    console, found = Console(), {}
    with path_loader(config, source, encoder.device, seed) as loader:
        if method.decoder is not None:
            found = quality(method, loader, images, loader.cfg.samples_per_file)
    if found:
        console.print(_quality_table(found))
    else:
        print(f"{spec} has no decoders (a base alone), so nothing is reconstructed")
    with path_loader(config, source, encoder.device, seed) as loader:
        batches = islice(loader, -(-images // loader.cfg.batch_size))
        v1 = torch.cat([batch.v1 for batch in batches])
    spectra = _spectra(encoder, v1)
    console.print(_spectrum_table(spectra))
    document: dict[str, Any] = {
        **documented(data),
        "images": len(v1),
        "photographs": {"test": len(source)},
        "test_seen_in_training": seen,
        **{name: dataclasses.asdict(value) for name, value in found.items()},
        "spectra": {name: dataclasses.asdict(value) for name, value in spectra.items()},
    }
    save(file, spec, encoder, document)
    print(file)
    return document


def _spectra(encoder: Encoder, images: torch.Tensor) -> dict[str, Spectrum]:
    """Of all patch tokens, and of their means over an image."""
    parts: dict[str, list[torch.Tensor]] = {}
    for part in images.split(64):
        tokens = encoder.features(part)
        for name in ("z_inv", "z_equi"):
            if name in tokens:
                parts.setdefault(name, []).append(tokens[name].float())
    found = {}
    for name, tokens_of in parts.items():
        whole = torch.cat(tokens_of)
        found[f"{name}, tokens"] = spectrum(whole.flatten(0, 1))
        found[f"{name}, mean token"] = spectrum(whole.mean(1))
    return found


def _quality_table(found: dict[str, Quality]) -> Table:
    gains = []
    table = Table(title="between the views", box=box.SIMPLE_HEAD)
    table.add_column("measure", no_wrap=True)
    for name in ("k", "predicted", "nearer view"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, q in found.items():
        label, digits = ("PSNR, dB", 2) if name == "psnr" else ("SSIM", 3)
        for k, both in enumerate(zip(q.predicted, q.nearer_view, strict=True), 1):
            table.add_row(label, str(k), *(f"{value:.{digits}f}" for value in both))
        interval = f"{q.low:+.{digits}f}..{q.high:+.{digits}f}"
        gains.append(f"{label} gained {q.gain:+.{digits}f} ({interval})")
    table.caption = "; ".join(gains)
    return table


def _spectrum_table(spectra: dict[str, Spectrum]) -> Table:
    table = Table(title="dimensions that features use", box=box.SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    for name in ("channels", "rank", "variance", "participation", "exp entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, s in spectra.items():
        dimensions = f"{s.participation:.1f}", f"{s.entropy:.1f}"
        table.add_row(name, str(s.channels), str(s.rank), f"{s.variance:.3g}", *dimensions)
    return table
