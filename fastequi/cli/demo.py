"""`fastequi demo`: pretrain on nine photographs, then judge the features where they are new.

Training sees the left 70 % of every photograph; the probes learn from pairs of that part and are
tested on pairs of the right 30 %, by the same loader without augmentation.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from rich.console import Console

from fastequi.atomic import replace_text
from fastequi.build import build, views_of
from fastequi.config import Config
from fastequi.data.sources.image_sets import Region, embedded_photos
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION
from fastequi.data.views.batch import Batch
from fastequi.evaluate.pair_scores import Report, evaluate
from fastequi.evaluate.pairs import Pairs, collect_pairs
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import nearer_view, path_loader, psnr
from fastequi.methods.tir import TIR
from fastequi.report.sheets import path_grid
from fastequi.runtime.machine import machine
from fastequi.train import pretrain

_TRAIN_PAIRS, _TEST_PAIRS = 24_000, 2_000
_EPOCHS = 6  # of the probes: what fits into the eight minutes of the whole command
_TABLE_WIDTH = 116


def demo(config: Config, run_dir: Path, train_pairs: int = _TRAIN_PAIRS) -> Report:
    """Trains, prints the table of R², the PSNR and where the pictures are.

    Args:
        config: the run; `train.minutes` bounds its training.
        run_dir: gets the run folder, equivariance.json and reconstructions.png.
        train_pairs: for the probes; the fewer, the more they judge themselves.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # a narrow terminal wraps, it does not cut
    start = time.monotonic()
    method = pretrain(config, embedded_photos(TRAIN_REGION), run_dir, recipe="demo")
    assert isinstance(method, TIR)
    trained = time.monotonic()
    report = judge(config, method, train_pairs, console)
    console.print(report.table())
    for features in ("TIR, z_equi", "raw pair", "random init, z_equi"):
        best = report.best(features)
        values = " ".join(f"{v:.2f}" for v in best.r2)
        console.print(f"{features} by its best probe ({best.probe}): {values}")
    quality = draw(config, method, run_dir / "reconstructions.png")
    console.print(
        f"PSNR of the predicted images: {quality['predicted']:.2f} dB; "
        f"of the nearer view in their place: {quality['nearer_view']:.2f} dB"
    )
    seconds = {"training": trained - start, "probes": time.monotonic() - trained}
    result = {
        "machine": machine(),
        "seconds": seconds,
        "psnr": quality,
        **report.to_json(),
    }
    replace_text(run_dir / "equivariance.json", json.dumps(result, indent=1) + "\n")
    console.print(
        f"training {seconds['training']:.0f} s, probes {seconds['probes']:.0f} s; "
        f"{run_dir}/reconstructions.png shows v1, targets, predictions and v2"
    )
    return report


def judge(config: Config, method: TIR, train_pairs: int, console: Console) -> Report:
    """The probes' table of a trained method beside its floors."""
    device = next(method.parameters()).device
    torch.manual_seed(config.train.seed)
    random_init = build(config).to(device).eval()
    with console.status("cutting pairs") as status:
        train = _pairs(config, TRAIN_REGION, train_pairs, device, seed=1)
        test = _pairs(config, TEST_REGION, _TEST_PAIRS, device, seed=2)
        (report,) = evaluate(
            {
                "random init": (random_init.features, ("z_equi", "patch")),
                "TIR": (method.features, ("z_equi", "z_inv", "patch")),
            },
            train,
            [test],
            config.model.patch_size,
            Fit(epochs=_EPOCHS, dtype=config.train.fit_dtype(device)),
            on_row=lambda row: status.update(f"probing {row}"),
        )
    return report


def draw(config: Config, method: TIR, file: Path) -> dict[str, float]:
    """Saves reconstructions of unseen parts; the mean PSNR in dB over 512 unseen pairs."""
    device = next(method.parameters()).device
    with path_loader(config, embedded_photos(TEST_REGION), device, seed=3) as loader:
        batches = [next(loader) for _ in range(-(-512 // config.data.batch_size))]
    views = [method.reconstruct(batch) for batch in batches]
    parts = {name: torch.cat([view[name] for view in views]) for name in views[0]}
    shown = _one_per_photo(config, parts, batches)
    path_grid(shown, config.data.mean, config.data.std).save(file)
    scale = (config.data.mean, config.data.std)
    copied = nearer_view(parts["v1"], parts["v2"], parts["target"].shape[1])
    return {
        "predicted": psnr(parts["pred"], parts["target"], *scale).mean().item(),
        "nearer_view": psnr(copied, parts["target"], *scale).mean().item(),
    }


def _one_per_photo(
    config: Config, parts: dict[str, torch.Tensor], batches: list[Batch]
) -> dict[str, torch.Tensor]:
    """Of every photograph the image that turns most and shows most: worth looking at."""
    ids = torch.cat([batch.sample_ids for batch in batches])
    photo = ids // config.data.samples_per_file
    turn = torch.cat([batch.path for batch in batches])[:, 0].abs().cpu()
    score = turn * parts["v1"].std((1, 2, 3)).cpu()
    pick = [torch.where(photo == p, score, -1.0).argmax() for p in photo.unique()]
    chosen = torch.stack(pick).to(parts["v1"].device)
    return {name: views[chosen] for name, views in parts.items()}


def _pairs(config: Config, region: Region, n: int, device: torch.device, seed: int) -> Pairs:
    with path_loader(config, embedded_photos(region), device, seed) as loader:
        each = loader.cfg.samples_per_file
        return collect_pairs(loader, config.path.build(), views_of(config), n, each)
