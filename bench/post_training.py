"""What is left of an encoder that is trained further with fresh heads, with and without safeguards?

    python -m bench.post_training --runs FOLDER --out bench/results/post_training_cpu.json

A small encoder is trained by the demo's recipe. Then TIR on iBOT goes on from its weights, on the
same photographs, with heads and decoders that begin at random: as one would train from scratch, and
with the safeguards of `tir_post_vitb16`, all of them and one by one. An online probe before the
first step and along the way says what the encoder's own patch tokens know: R² of the angle between
two windows of a photograph, and classes of scikit-learn's digits, which no run has seen, by 20
neighbours. (R² of the shifts is in the file too; from nine photographs no encoder here learns it.)
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

from bench.equivariance import claim
from bench.report import made_by
from fastequi.atomic import replace_text
from fastequi.config import AnchorConfig, Config, InitConfig
from fastequi.data.sources.image_sets import Source, embedded_photos
from fastequi.data.sources.splits import TRAIN_REGION
from fastequi.recipes import RECIPES
from fastequi.train import pretrain

LABELLED = "digits"
FIGURES: Mapping[str, str] = {"r2_patch_angle": "R² of the angle", "knn_k20": "kNN"}
KEPT = (*FIGURES, "r2_patch_tx", "r2_patch_ty", "knn_k20_cls", "r2_z_equi_angle")


def demo(steps: int, seed: int) -> Config:
    """The demo's recipe with a class token, which iBOT needs."""
    config = RECIPES["demo"]()
    return replace(
        config,
        model=replace(config.model, class_token=True),
        train=replace(config.train, minutes=0.0, epochs=_epochs(config, steps), seed=seed),
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
    config, data = RECIPES["tir_post_vitb16"](), first.data
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
            epochs=_epochs(first, steps),
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
    first = demo(steps[0], seed)
    weights = _trained(first, folder / "first") / "model.safetensors"
    for way, each in ways(post(first, weights, steps[1], probes)).items():
        if way in names:
            run_dir = _trained(each, folder / way.replace(" ", "_"))
            yield {"way": way, "seed": seed, "curve": curve(run_dir)}


def _trained(config: Config, run_dir: Path) -> Path:
    if not (run_dir / "model.safetensors").is_file():
        pretrain(config, _photographs(), run_dir, resume=(run_dir / "config.json").is_file())
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


def _epochs(config: Config, steps: int) -> int:
    data = config.data
    return max(round(steps * data.batch_size / (len(_photographs()) * data.samples_per_file)), 1)


if __name__ == "__main__":
    main()
