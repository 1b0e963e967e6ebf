"""What is left of an encoder that is trained further with fresh heads, with and without safeguards?

    python -m bench.post_training --runs FOLDER --out bench/results/post_training_cpu.json

A small encoder is trained on scikit-learn's digits, by the demo's recipe. Then TIR on iBOT goes on
from its weights on photographs, as one goes on from public weights on images of one's own, with
heads and decoders that begin at random: as one would train from scratch, and with the safeguards of
`tir_post_vitb16`, all of them and one by one. An online probe before the first step and along the
way says what the encoder's patch tokens know: what they knew, classes of digits by 20 neighbours,
on digits that no run has seen; and what they shall learn, R² of the angle between two windows of a
photograph. (R² of the shifts is in the file; from nine photographs no encoder here learns it.)
The probe takes the teacher, whose momentum is iBOT's own where it is not a safeguard.

A finished run lies in --runs and is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench.equivariance import claim
from bench.report import made_by
from fastequi.atomic import replace_text
from fastequi.config import AnchorConfig, Config, InitConfig
from fastequi.data.labelled import labelled_sets
from fastequi.data.sources.image_sets import Source, embedded_photos, open_source
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import TRAIN_REGION
from fastequi.recipes import RECIPES
from fastequi.train import pretrain

LABELLED = "digits"
_DIGIT = 64  # px
FIGURES: Mapping[str, str] = {"knn_k20": "kNN of digits", "r2_patch_angle": "R² of the angle"}
KEPT = (*FIGURES, "r2_patch_tx", "r2_patch_ty", "knn_k20_cls", "r2_z_equi_angle")


def digits(folder: Path) -> Source:
    """The digits of the training part, a PNG file each."""
    if not folder.is_dir():
        made = folder.with_name("digits_made")
        made.mkdir(parents=True, exist_ok=True)
        train, _ = labelled_sets(Selection((LABELLED,), option="digits"))
        batches = train.batches(_DIGIT, torch.device("cpu"))
        for i, image in enumerate(torch.cat([images for images, _, _ in batches])):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(made / f"{i:04}.png")
        made.rename(folder)
    return open_source(Selection((str(folder),), option="digits"))


def demo(steps: int, seed: int, source: Source) -> Config:
    """The demo's recipe for whole digits, and with a class token, which iBOT needs."""
    config = RECIPES["demo"]()
    whole = replace(config.data.a1, side=None, area=(0.6, 1.0), flip=0.0)
    config = replace(
        config, data=replace(config.data, a1=whole, a2=whole, repeat=1, samples_per_decode=1)
    )
    return replace(
        config,
        model=replace(config.model, class_token=True),
        train=replace(config.train, minutes=0.0, epochs=_epochs(config, steps, source), seed=seed),
    )


def ways(recipe: Config) -> dict[str, Config]:
    """How a run goes on, by name: from no safeguard to all of a recipe's."""
    usual = replace(
        recipe,
        distill=replace(recipe.distill, momentum=RECIPES["tir_ibot_vits16"]().distill.momentum),
        optim=replace(
            recipe.optim,
            encoder_lr=1.0,
            layer_decay=1.0,
            patch_embed_lr=1.0,
            freeze_encoder=0.0,
        ),
        anchor=AnchorConfig(),
    )

    own = recipe.optim
    frozen = replace(usual.optim, freeze_encoder=own.freeze_encoder)
    small = replace(own, freeze_encoder=0.0)
    return {
        "as from scratch": usual,
        "all of the recipe": recipe,
        "frozen at first": replace(usual, optim=frozen),
        "small rates": replace(usual, optim=small),
        "slow teacher": replace(usual, distill=recipe.distill),
        "anchor": replace(usual, anchor=recipe.anchor),
        "adapters of rank 8": replace(usual, optim=replace(usual.optim, lora_rank=8)),
    }


def post(first: Config, weights: Path, steps: int, probes: int) -> Config:
    """`tir_post_vitb16` at the size of the demo: its method, schedules and safeguards."""
    config, data = RECIPES["tir_post_vitb16"](), RECIPES["demo"]().data
    crop = replace(data.a1, side=None, area=(0.02, 0.05))
    return replace(
        config,
        model=replace(first.model, drop_path=0.0),
        init=InitConfig(str(weights)),
        data=replace(
            data,
            shared_crop=False,
            local_crops=2,
            local_crop_size=16,
            a3=crop,
            mask_share=config.data.mask_share,
        ),
        path=first.path,
        tir=replace(config.tir, dim=256 + 64, equi_dim=64, decoder_width=64),
        distill=replace(config.distill, hidden_dim=256, bottleneck_dim=64),
        optim=replace(config.optim, base_batch=data.batch_size),
        train=replace(
            config.train,
            epochs=_epochs(replace(first, data=data), steps, _photographs()),
            seed=first.train.seed,
            knn_every=probes,
            knn_data=(LABELLED,),
            r2_every=probes,
            stop_if_worse=1.0,  # which no figure falls by: curves are shown to their ends
            log_every=probes,
            checkpoint_every=0,
            tensorboard=False,
        ),
    )


def curve(run_dir: Path) -> list[dict[str, float]]:
    """The steps of a run that were probed, with the figures."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    probed = [row for row in rows if all(name in row for name in FIGURES)]
    return [{name: row[name] for name in ("step", *KEPT)} for row in probed]


def run(
    folder: Path, seed: int, steps: tuple[int, int], probes: int, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One encoder, and each way to go on from it: {"way", "seed", "curve"}."""
    known = digits(folder.with_name("digits"))
    first = demo(steps[0], seed, known)
    weights = _trained(first, folder / "first", known) / "model.safetensors"
    for way, each in ways(post(first, weights, steps[1], probes)).items():
        if way in names:
            run_dir = _trained(each, folder / way.replace(" ", "_"), _photographs())
            yield {"way": way, "seed": seed, "curve": curve(run_dir)}


def _trained(config: Config, run_dir: Path, source: Source) -> Path:
    if not (run_dir / "model.safetensors").is_file():
        pretrain(config, source, run_dir, resume=(run_dir / "config.json").is_file())
    return run_dir


def table(document: Mapping[str, Any]) -> str:
    """The page's table: before the first step, the lowest, and after the last; means over seeds."""
    head = [
        f"{label} {when}" for label in FIGURES.values() for when in ("before", "lowest", "last")
    ]
    lines = [f"| way | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for way in dict.fromkeys(row["way"] for row in document["rows"]):
        curves = [row["curve"] for row in document["rows"] if row["way"] == way]
        cells = []
        for name in FIGURES:
            values = [[point[name] for point in points] for points in curves]
            for pick in (lambda v: v[0], min, lambda v: v[-1]):
                cells.append(f"{statistics.fmean(map(pick, values)):.2f}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(document: Mapping[str, Any]) -> str:
    """The probes along the way, kNN of digits / R² of the angle, a row for each run."""
    rows = document["rows"]
    steps = [point["step"] for point in rows[0]["curve"]]
    lines = [f"| way, seed | {' | '.join(f'step {step:,}' for step in steps)} |"]
    lines.append("| --- |" + " --- |" * len(steps))
    for row in rows:
        cells = (" / ".join(f"{point[name]:.2f}" for name in FIGURES) for point in row["curve"])
        lines.append(f"| {row['way']}, {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    names = list(ways(RECIPES["tir_post_vitb16"]()))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs=2, default=(1600, 1000))
    parser.add_argument("--probes", type=int, default=250, help="steps between two probes")
    parser.add_argument("--ways", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/post_training"), help="goes on there"
    )
    options = parser.parse_args()
    made, rows = made_by("python -m bench.post_training"), []
    settings = {name: getattr(options, name) for name in ("steps", "probes")}
    claim(options.runs, settings)
    for seed in options.seeds:
        folder = options.runs / f"seed{seed}"
        for row in run(folder, seed, tuple(options.steps), options.probes, options.ways):
            rows.append(row)
            document = {**made, **settings, "rows": rows}
            replace_text(options.out, json.dumps(document, indent=1) + "\n")
    print(table(document))


def _photographs() -> Source:
    return embedded_photos(TRAIN_REGION)


def _epochs(config: Config, steps: int, source: Source) -> int:
    data = config.data
    return max(round(steps * data.batch_size / (len(source) * data.samples_per_file)), 1)


if __name__ == "__main__":
    main()
