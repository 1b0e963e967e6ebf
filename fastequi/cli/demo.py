"""`fastequi demo`: pretrain on nine photographs, then evaluate the features on their unseen parts.

Training sees the left 70 % of every photograph; the probes are fitted on pairs of that part and
tested on pairs of the right 30 %, cut by the run's own loader without augmentation. Beside the run
its base is trained alone, for the same time: what it lacks is what reconstruction adds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastequi import limits
from fastequi.config import Config
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION
from fastequi.data.views.batch import Batch
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import of_method, random_init
from fastequi.evaluate.equivariance import EquivarianceFile
from fastequi.evaluate.image_quality import LEAST_SIZE
from fastequi.evaluate.pair_reports import Report
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import (
    Reconstruction,
    interval,
    measured,
    path_loader,
    show_predictions,
)
from fastequi.evaluate.results import documented, save
from fastequi.evaluate.tasks import Budget, own_path, score_tasks
from fastequi.methods.tir import TIR
from fastequi.report.sheets import path_grid
from fastequi.runtime.progress import Progress, remaining
from fastequi.train import pretrain

# what fits into the eight minutes of the whole command on two cores with AVX2
BUDGET = Budget(
    train_pairs=8_000,
    fewer_pairs=(3_000,),
    probes=("token", "cosines", "mlp"),
    pixels=("raw pair", "pixel statistics"),
    fit=Fit(epochs=6, width=512, seeds=1),
)
_IMAGES, _SEED = 512, 3  # of the reconstructions
_TABLE_WIDTH = 116
_OURS, _BASE = "TIR", "base alone"


def demo(config: Config, run_dir: Path, budget: Budget = BUDGET) -> dict[str, Report]:
    """Trains, prints the tables of R², the gain in reconstruction and where the pictures are.

    Args:
        config: the run; `train.minutes` bounds its training, and its base's.
        run_dir: gets the run folder, base/ (the run of the base alone), eval_equivariance.json,
            eval_reconstruct.json and reconstructions.png.
        budget: of the probes.

    Returns:
        The reports of R² by task, variant and number of pairs.

    Raises:
        ValueError: settings that leave something without an evaluation; names the option.
        FileExistsError: `run_dir` holds a run; the demo continues none.
    """
    _expect_evaluable(config)
    _expect_no_run(run_dir)
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # wrapped, not cut, in a narrow terminal
    start, source = time.monotonic(), embedded_photos(TRAIN_REGION)
    method = pretrain(config, source, run_dir, recipe="demo", progress=Progress("training TIR"))
    assert isinstance(method, TIR)
    alone = replace(config, tir=replace(config.tir, num_steps=0))
    base = pretrain(alone, source, run_dir / "base", progress=Progress("training the base alone"))
    trained = time.monotonic()
    encoder = of_method(method, config, _OURS)
    encoders = {
        "random init": replace(random_init(encoder), names=("z_equi",)),
        _OURS: replace(encoder, names=("z_equi", "patch")),
        _BASE: replace(of_method(base, alone, _BASE), names=("patch",)),
    }
    reports = _equivariance(encoders, config, run_dir, budget)
    for name, report in reports.items():
        console.print(report.table(f"{name}: R² on unseen parts"))
    probed = time.monotonic()
    measures = _reconstruction(encoder, run_dir)
    found = measures.predictions
    assert found is not None
    show_predictions(found, console)
    _draw(config, method, run_dir / "reconstructions.png")
    console.print(
        f"training {trained - start:.0f} s, probes {probed - trained:.0f} s, reconstructions "
        f"{time.monotonic() - probed:.0f} s\n{run_dir}/reconstructions.png shows v1, targets, "
        f"predictions and v2\n"
    )
    pooled, mean = (interval(gain, 1) for gain in (found.pooled, found.psnr))
    print(f"pooled gain {pooled}; mean of dB {mean}")
    for name, report in reports.items():
        kind = "photometric" if "photometric" in name else "clean"
        pairs = f"{report.train_pairs:,} {kind} pairs"
        best, ours, theirs = report.best_baseline().label, f"{_OURS}, z_equi", f"{_BASE}, patch"
        for what, other in ((f"best baseline ({best})", best), (_BASE, theirs)):
            lead = report.difference(ours, other)
            print(f"z_equi minus {what}, {pairs}: {lead.sentence(report.names)}")
        lead = report.difference(ours, theirs, "token")
        print(f"the same, both by the token probe: {lead.sentence(report.names)}")
    print(
        "The probe of cosines reads how well tokens match, which needs no reconstruction; the "
        "token probe reads the features themselves."
    )
    return reports


def _expect_evaluable(config: Config) -> None:
    """Refuses before anything is trained what the tables or pictures could not be made of."""
    tir, size = config.tir, config.data.image_size
    for option, holds, expected, value in (
        ("--method", config.method == "tir", "tir", config.method),
        ("--data.channels", config.data.is_rgb, "rgb", config.data.channels),
        ("--tir.num-steps", tir.num_steps >= 1, "at least 1", tir.num_steps),
        ("--tir.equi-dim", tir.equi_dim >= 1, "at least 1", tir.equi_dim),
        ("--tir.recon-weight", tir.recon_weight > 0, "a weight > 0", tir.recon_weight),
        ("--data.image-size", size >= LEAST_SIZE, f"at least {LEAST_SIZE}", size),
    ):
        limits.expect(holds, option, f"{expected} for the demo", value)
    own_path(config, torch.device("cpu"))


def _expect_no_run(run_dir: Path) -> None:
    """Refuses the folder of a run, which only `fastequi pretrain` could continue."""
    for folder in (run_dir, run_dir / "base"):
        if (folder / "config.json").exists():
            raise FileExistsError(
                f"--run-dir: expected a folder without a run, {folder} holds one, and the demo "
                "always begins anew"
            )


def _equivariance(
    encoders: Mapping[str, Encoder], config: Config, run_dir: Path, budget: Budget
) -> dict[str, Report]:
    """R² of the run's own path, clean and photometric, into eval_equivariance.json."""
    encoder = encoders[_OURS]
    fit = replace(budget.fit, dtype=config.train.fit_dtype(encoder.device))
    budget = replace(budget, fit=fit)
    train, test = embedded_photos(TRAIN_REGION), embedded_photos(TEST_REGION)
    chosen, windows = own_path(config, encoder.device)
    results = EquivarianceFile(
        file=run_dir / "eval_equivariance.json",
        spec=str(run_dir),
        encoder=encoder,
        budget=budget,
        about={
            **documented(None),
            "photographs": {"train": len(train), "test": len(test)},
            "test_seen_in_training": {},
            "test_used_for_fitting": 0,
            "against": [str(run_dir / "base")],
        },
    )
    start = time.monotonic()
    with Progress("probes") as bar:

        def on_row(row: str, share: float) -> None:
            bar.say(share, f"{row}, ETA {remaining(time.monotonic() - start, share)}")

        return score_tasks(
            encoders,
            train,
            test,
            chosen,
            budget=budget,
            windows=windows,
            on_row=on_row,
            on_report=results.add,
        )


def _reconstruction(encoder: Encoder, run_dir: Path) -> Reconstruction:
    """PSNR, SSIM and spectra on unseen parts, into eval_reconstruct.json."""
    source, start = embedded_photos(TEST_REGION), time.monotonic()
    found = measured(encoder, source, images=_IMAGES, seed=_SEED)
    document = {
        **documented(None),
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
