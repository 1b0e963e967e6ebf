"""`fastequi eval reconstruct`: the predicted images' PSNR and SSIM, and the features' spectra."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fastequi.data.sources.image_sets import Data
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoders import Encoder, load_encoder
from fastequi.evaluate.reconstruction import Quality, path_loader, quality
from fastequi.evaluate.results import documented, place, save, seen_in_training
from fastequi.evaluate.spectrum import Spectrum, spectrum
from fastequi.methods.tir import TIR


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
        raise ValueError(f"CHECKPOINT: expected a run with method=tir, {spec} is none")
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
