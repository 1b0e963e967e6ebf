"""`fastequi demo`: pretrain on nine photographs, then evaluate the features on their unseen parts.

Training sees the left 70 % of every photograph; the probes are fitted on pairs of that part and
tested on pairs of the right 30 %, cut by the run's own loader without augmentation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastequi import paths
from fastequi.build import views_of
from fastequi.config import Config
from fastequi.data.loader import Loader
from fastequi.data.sources.image_sets import Source, embedded_photos
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION
from fastequi.data.views.batch import Batch
from fastequi.evaluate.encoders import Encoder, of_method, random_init
from fastequi.evaluate.equivariance import EquivarianceFile
from fastequi.evaluate.pair_scores import Report
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import Reconstruction, measured, path_loader, show_predictions
from fastequi.evaluate.results import documented, save
from fastequi.evaluate.tasks import Budget, Task, Windows, score_tasks
from fastequi.methods.tir import TIR
from fastequi.report.sheets import path_grid
from fastequi.train import pretrain

_TRAIN_PAIRS, _TEST_PAIRS = 24_000, 2_000
_EPOCHS = 6  # of the probes: what fits into the eight minutes of the whole command
_IMAGES, _SEED = 512, 3  # of the reconstructions
_TABLE_WIDTH = 116


def demo(config: Config, run_dir: Path, train_pairs: int = _TRAIN_PAIRS) -> Report:
    """Trains, prints the table of R², the PSNR and where the pictures are.

    Args:
        config: the run; `train.minutes` bounds its training.
        run_dir: gets the run folder, eval_equivariance.json, eval_reconstruct.json and
            reconstructions.png.
        train_pairs: for the probes; with fewer, R² says more of the probes than of the features.
    """
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # wrapped, not cut, in a narrow terminal
    start = time.monotonic()
    method = pretrain(config, embedded_photos(TRAIN_REGION), run_dir, recipe="demo")
    assert isinstance(method, TIR)
    trained = time.monotonic()
    encoder = of_method(method, config, "TIR")
    with console.status("cutting pairs") as status:
        report = _equivariance(encoder, config, run_dir, train_pairs, on_row=status.update)
    console.print(report.table())
    for features in ("TIR, z_equi", "raw pair", "random init, z_equi"):
        best = report.best(features)
        values = " ".join(f"{v:.2f}" for v in best.r2)
        console.print(f"{features} by its best probe ({best.probe}): {values}")
    found = _reconstruction(encoder, run_dir).predictions
    assert found is not None
    show_predictions(found, console)
    _draw(config, method, run_dir / "reconstructions.png")
    console.print(
        f"training {trained - start:.0f} s, probes {time.monotonic() - trained:.0f} s; "
        f"{run_dir}/reconstructions.png shows v1, targets, predictions and v2"
    )
    return report


def _equivariance(
    encoder: Encoder,
    config: Config,
    run_dir: Path,
    train_pairs: int,
    *,
    on_row: Callable[[str], None],
) -> Report:
    """R² of the run's own path beside its baselines, into eval_equivariance.json."""
    fit = Fit(epochs=_EPOCHS, dtype=config.train.fit_dtype(encoder.device))
    budget = Budget(train_pairs=train_pairs, test_pairs=_TEST_PAIRS, fit=fit)
    train, test = embedded_photos(TRAIN_REGION), embedded_photos(TEST_REGION)
    encoders = {
        "random init": replace(random_init(encoder), names=("z_equi", "patch")),
        "TIR": replace(encoder, names=("z_equi", "z_inv", "patch")),
    }

    def loader(source: Source, path: paths.Path, seed: int) -> Loader:
        return path_loader(config, source, encoder.device, seed)

    results = EquivarianceFile(
        file=run_dir / "eval_equivariance.json",
        spec=str(run_dir),
        encoder=encoder,
        budget=budget,
        about={
            **documented(None),
            "photographs": {"train": len(train), "test": len(test)},
            "test_seen_in_training": {},
            "against": [],
        },
    )
    reports = score_tasks(
        encoders,
        train,
        test,
        {config.path.family: Task(config.path.build())},
        budget=budget,
        windows=Windows(views_of(config), loader),
        on_row=on_row,
        on_report=results.add,
    )
    return reports[config.path.family]


def _reconstruction(encoder: Encoder, run_dir: Path) -> Reconstruction:
    """PSNR, SSIM and spectra on unseen parts, into eval_reconstruct.json."""
    source, start = embedded_photos(TEST_REGION), time.monotonic()
    found = measured(encoder, source, images=_IMAGES, seed=_SEED)
    document = {
        **documented(None),
        "photographs": {"test": len(source)},
        "test_seen_in_training": {},
        **found.to_json(),
        "seconds": time.monotonic() - start,
    }
    file = run_dir / "eval_reconstruct.json"
    save(file, kind="reconstruct", spec=str(run_dir), encoder=encoder, document=document)
    return found


def _draw(config: Config, method: TIR, file: Path) -> None:
    """Saves a picture of reconstructions of unseen parts, one for each photograph."""
    device = next(method.parameters()).device
    with path_loader(config, embedded_photos(TEST_REGION), device, _SEED) as loader:
        batches = [next(loader) for _ in range(-(-_IMAGES // loader.cfg.batch_size))]
    views = [method.reconstruct(batch) for batch in batches]
    parts = {name: torch.cat([view[name] for view in views]) for name in views[0]}
    shown = _one_per_photo(config, parts, batches)
    path_grid(shown, config.data.mean, config.data.std).save(file)


def _one_per_photo(
    config: Config, parts: dict[str, torch.Tensor], batches: list[Batch]
) -> dict[str, torch.Tensor]:
    """Of every photograph the image that is rotated most and has most contrast."""
    ids = torch.cat([batch.sample_ids for batch in batches])
    photo = ids // config.data.samples_per_file
    angle = torch.cat([batch.path for batch in batches])[:, 0].abs().cpu()
    score = angle * parts["v1"].std((1, 2, 3)).cpu()
    pick = [torch.where(photo == p, score, -1.0).argmax() for p in photo.unique()]
    chosen = torch.stack(pick).to(parts["v1"].device)
    return {name: views[chosen] for name, views in parts.items()}
