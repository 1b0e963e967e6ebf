"""Every recipe, scaled down, for some hundred steps on the embedded photographs: does it learn?

    python -m bench.recipes --steps 300 --json bench/results/recipes_cpu.json

The methods, losses, schedules, masks and crops are the recipes' own; the encoder, the images, the
prototypes and the batch are small enough for a CPU. Shown are the losses' means over the first and
the last tenth of the steps, and what a collapse would show in: the standard deviation of the
features (1: they fill the sphere; 0: all are one), the teacher's entropy (log N: uniform, 0:
always the same prototype) and how many prototypes it uses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.report import made_by
from fastequi.config import Config
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.recipes import FROM_WEIGHTS, RECIPES
from fastequi.train import pretrain

SHOWN = (
    "ssl", "class", "patch", "koleo", "recon", "crop", "correspondence", "rotation", "accuracy",
    "std", "teacher_entropy", "prototypes",
)  # fmt: skip
PROTOTYPES = 256
_OTHER = ("demo", "tir_distill_vits16", "distill_vits16", *FROM_WEIGHTS)
ALL = [name for name, recipe in RECIPES.items() if name not in _OTHER and recipe().method == "tir"]


def scaled(config: Config, batch: int = 32) -> Config:
    """A recipe at 32 or 48 px with a small ViT; its method and schedules are left as they are."""
    tir, data = config.tir, config.data
    teaches = tir.base in ("dino", "ibot", "dinov2")
    equi = 64 if tir.equi_dim else 0
    size = 48 if config.method == "gtsa" else 32  # whose maps are then 6x6 and 3x3
    return replace(
        config,
        model=replace(
            config.model,
            name="vit_tiny",
            patch_size=8,
            embed_dim=96,
            depth=3,
            num_heads=3,
            # 1e-5, made for 24 blocks and 100 epochs, keeps three blocks shut for all of 400 steps
            layer_scale=0.1 if config.model.layer_scale else None,
        ),
        data=replace(
            data,
            image_size=size,
            source_size=size,
            batch_size=batch,
            samples_per_decode=min(batch, 4),
            repeat=64,
            local_crops=min(data.local_crops, 2),
            local_crop_size=size // 2,
            num_threads=1,
        ),
        tir=replace(
            tir,
            dim=equi + (PROTOTYPES if teaches else 128),
            equi_dim=equi,
            decoder_width=64,
            expander=(256, 256),
            projector=(256, 64),
        ),
        # the teacher follows within a hundred steps, not thousands, and at one temperature: with
        # momentum .95 and a rate of 4e-3 DINO ends with a uniform teacher
        distill=replace(
            config.distill,
            prototypes=PROTOTYPES,
            hidden_dim=256,
            bottleneck_dim=64,
            momentum=0.99,
            teacher_temp=0.04,
            freeze=0.1,
        ),
        gtsa=replace(
            config.gtsa, dim=96, bins=4, local_bins=2, rotation_dims=(96, 64), momentum=0.99
        ),
        # rates scale with the batch: what 32 images would get is too little for some hundred steps
        optim=replace(
            config.optim,
            lr=5e-4 if teaches else 1e-3 if config.method == "gtsa" else 4e-3,
            base_batch=batch,
            scaling="linear",
            warmup=0.1,
        ),
    )


def run(name: str, steps: int, batch: int = 32, seed: int = 0) -> dict[str, Any]:
    """Trains a scaled-down recipe: what was logged, first and last tenth."""
    config = scaled(RECIPES[name](), batch)
    source = embedded_photos()
    per_epoch = len(source) * config.data.repeat * config.data.samples_per_decode // batch
    train = replace(
        config.train,
        epochs=max(round(steps / per_epoch), 1),
        log_every=1,
        checkpoint_every=0,
        tensorboard=False,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        pretrain(replace(config, train=train), source, run_dir, max_steps=steps)
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tenth = max(len(rows) // 10, 1)

    def values(key: str) -> list[float]:  # a loss may set in later
        return [row[key] for row in rows if key in row]

    shown = [key for key in SHOWN if key in rows[-1]]
    return {
        "recipe": name,
        "steps": len(rows),
        "batch": batch,
        "prototypes": PROTOTYPES,
        "first": {key: fmean(values(key)[:tenth]) for key in shown},
        "last": {key: fmean(values(key)[-tenth:]) for key in shown},
        "images_per_s": fmean(values("images_per_s")[tenth:]),
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The README's table: first tenth → last tenth of the steps."""
    known = {key for row in document["rows"] for key in row["last"]}
    columns = [key for key in SHOWN if key in known]
    lines = [f"| recipe | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for row in document["rows"]:
        cells = []
        for key in columns:
            pair = (row["first"][key], row["last"][key]) if key in row["first"] else ()
            cells.append(" → ".join(f"{value:.3g}" for value in pair))
        lines.append(f"| `{row['recipe']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=ALL)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    made = made_by("python -m bench.recipes")
    rows = []
    for name in options.recipes:
        rows.append(run(name, options.steps, options.batch))
        document = {**made, "rows": rows}
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    main()
