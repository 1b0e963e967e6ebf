"""`fastequi eval reconstruct`: how good the predicted images are, and the features' spectra.

The baseline of a predicted image is the nearer of the two views, copied into its place. The first
figure is the gain over it in the squared error of all pixels, in dB. A mean of decibels over images
stands beside it: it is ruled by images without texture, where both errors are near zero. So the
gain is also given by texture (how good the copies are) and by the path's angle.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice, pairwise
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
from fastequi.data.views.batch import Batch
from fastequi.evaluate.checked import expect_finite
from fastequi.evaluate.encoders import Encoder, load_encoder
from fastequi.evaluate.image_quality import decibels, neighbour_differences, squared_error, ssim
from fastequi.evaluate.intervals import middle95, resampled_mean
from fastequi.evaluate.photo_windows import images_for
from fastequi.evaluate.results import Row, documented, place, save, seen_in_training
from fastequi.evaluate.spectrum import spectrum
from fastequi.functional.normalise import denormalise
from fastequi.methods.tir import TIR

_BATCH = 64
_DRAWS = 1000  # of the bootstrap
_SHOWING = 1.5  # ratio of seams to the targets' from which on edges of patches can be seen
_ANGLES = (0.0, 10.0, 20.0, 30.0)  # degrees, where the parts by angle begin


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, C, H, W]: for every step the view it lies closer to, v1 for a draw."""
    ahead = [k / (num_steps + 1) > 0.5 for k in range(1, num_steps + 1)]
    return torch.stack([v2 if later else v1 for later in ahead], 1)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One measure of N images' K steps.

    Attributes:
        predicted, nearer_view: means over images, of every step k = 1 .. K; the second is the
            baseline.
        gain: mean over images and steps of predicted - nearer_view.
        low, high: its 95 % interval over photographs, see `fastequi.evaluate.intervals`; None of
            one photograph, whose windows say nothing of others.
    """

    predicted: tuple[float, ...]
    nearer_view: tuple[float, ...]
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The squared error of all pixels of all images and steps, in dB.

    Attributes:
        predicted, nearer_view: PSNR of that error; the second is the baseline.
        gain: predicted - nearer_view.
        low, high: its 95 % interval over photographs; None of one photograph.
    """

    predicted: float
    nearer_view: float
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PartGain:
    """The gain over the nearer view on a part of the images.

    Attributes:
        name: of the part.
        images: how many.
        nearer_view: mean over images and steps of the nearer view's PSNR.
        gain: mean over images and steps of the difference in PSNR.
        pooled: in dB, by the squared error of all pixels of the part.
    """

    name: str
    images: int
    nearer_view: float
    gain: float
    pooled: float


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Mean squared differences of neighbouring pixels across edges of patches over those inside.

    Attributes:
        predicted, target: 1 where no edge shows; None where patches have one pixel or are single.
    """

    predicted: float | None
    target: float | None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """How good predicted images are.

    Attributes:
        pooled: by the squared error of all pixels.
        psnr, ssim: means over images.
        seams: how far a block pattern shows.
        by_texture: quarters of the images, by the nearer view's PSNR, the lowest first.
        by_angle: of a path with an angle, parts by its size; else empty.
    """

    pooled: Pooled
    psnr: Quality
    ssim: Quality
    seams: Seams
    by_texture: tuple[PartGain, ...]
    by_angle: tuple[PartGain, ...]


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


def predictions(
    method: TIR,
    batches: Iterable[Batch],
    n: int,
    images_of: Callable[[Tensor], Tensor] = torch.clone,
) -> Predictions:
    """How good the predictions are for the first n images or a little more.

    Args:
        method: with decoders.
        batches: as :func:`path_loader` makes them.
        n: images.
        images_of: sample ids to the photographs that they show, `Loader.images_of`; one each by
            default.
    """
    mean, std = method.views.mean, method.views.std
    errors: list[Tensor] = []
    similarities: list[Tensor] = []
    photographs, paths, edges = [], [], []
    count = 0
    for batch in batches:
        views = method.reconstruct(batch)
        target = views["target"]
        expect_finite("decoders", {"predictions": views["pred"]})
        both = views["pred"], nearer_view(views["v1"], views["v2"], target.shape[1])
        for measure, found in ((squared_error, errors), (ssim, similarities)):
            found.append(torch.stack([measure(x, target, mean, std).cpu() for x in both], 1))
        edges.append(torch.stack([_differences(x, method) for x in (views["pred"], target)]))
        photographs.append(images_of(batch.sample_ids))
        paths.append(batch.path.cpu())
        count += len(batch)
        if count >= n:
            break
    error, groups = torch.cat(errors), torch.cat(photographs)
    psnr = decibels(error)
    names = method.path.names
    angle = torch.cat(paths)[:, names.index("angle")].abs() if "angle" in names else None
    return Predictions(
        pooled=_pooled(error, groups),
        psnr=_quality(psnr, groups),
        ssim=_quality(torch.cat(similarities), groups),
        seams=_seams(torch.stack(edges).mean(0)),
        by_texture=_by_texture(error, psnr),
        by_angle=() if angle is None else _by_angle(error, psnr, angle),
    )


# of squared errors or their decibels [N, (predicted, nearer view), K]


def _pooled(error: Tensor, photographs: Tensor) -> Pooled:
    predicted, copied = error.mean((0, 2))
    drawn = [resampled_mean(each, photographs, _DRAWS) for each in error.mean(2).unbind(1)]
    low, high = _interval(decibels(drawn[0]) - decibels(drawn[1]), photographs)
    return Pooled(
        predicted=decibels(predicted).item(),
        nearer_view=decibels(copied).item(),
        gain=(decibels(predicted) - decibels(copied)).item(),
        low=low,
        high=high,
    )


def _quality(values: Tensor, photographs: Tensor) -> Quality:
    predicted, copied = values.mean(0).tolist()
    gains = (values[:, 0] - values[:, 1]).mean(1)
    low, high = _interval(resampled_mean(gains, photographs, _DRAWS), photographs)
    return Quality(
        predicted=tuple(predicted),
        nearer_view=tuple(copied),
        gain=gains.mean().item(),
        low=low,
        high=high,
    )


def _interval(drawn: Tensor, photographs: Tensor) -> tuple[float | None, float | None]:
    """The ends of the draws' middle 95 %; None of one photograph."""
    if len(photographs.unique()) == 1:
        return None, None
    low, high = middle95(drawn)
    return low.item(), high.item()


def _differences(images: Tensor, method: TIR) -> Tensor:
    """[2] of images as they are shown, see :func:`neighbour_differences`."""
    shown = denormalise(images, method.views.mean, method.views.std).clamp(0, 1)
    return neighbour_differences(shown, method.encoder.patch_size)


def _seams(edges: Tensor) -> Seams:
    """Of mean squares [(predicted, target), (across edges, inside)]."""
    ratios = [x if math.isfinite(x) else None for x in (edges[:, 0] / edges[:, 1]).tolist()]
    return Seams(predicted=ratios[0], target=ratios[1])


def _by_texture(error: Tensor, psnr: Tensor) -> tuple[PartGain, ...]:
    order = psnr[:, 1].mean(1).argsort()
    names = "most texture", "second quarter", "third quarter", "least texture"
    quarters = order.tensor_split(len(names))
    return tuple(
        _part(n, error[q], psnr[q]) for n, q in zip(names, quarters, strict=True) if len(q)
    )


def _by_angle(error: Tensor, psnr: Tensor, angle: Tensor) -> tuple[PartGain, ...]:
    parts = []
    for low, high in pairwise((*_ANGLES, math.inf)):
        inside = (low <= angle) & (angle < high)
        if inside.any():
            end = min(high, max(math.ceil(angle[inside].max().item()), low + 1))
            parts.append(_part(f"{low:.0f}..{end:.0f}°", error[inside], psnr[inside]))
    return tuple(parts)


def _part(name: str, error: Tensor, psnr: Tensor) -> PartGain:
    predicted, copied = decibels(error.mean((0, 2)))
    return PartGain(
        name=name,
        images=len(error),
        nearer_view=psnr[:, 1].mean().item(),
        gain=(psnr[:, 0] - psnr[:, 1]).mean().item(),
        pooled=(predicted - copied).item(),
    )


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
            found = predictions(method, loader, images, loader.images_of)
    with path_loader(config, source, encoder.device, seed) as loader:
        batches = list(islice(loader, -(-images // loader.cfg.batch_size)))
        shown = loader.images_of(torch.cat([batch.sample_ids for batch in batches]))
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
        encoder.expect_rgb("the embedded photographs (--data names others)")
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
