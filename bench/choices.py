"""With which settings does the demo learn best? Judged on a part that no test ever sees.

    python -m bench.choices --steps 1200 --out FOLDER \\
        "" "--tir.decoder blocks --tir.decoder-width 96" "--optim.lr 4e-3"

Every argument holds the settings of one run, as `fastequi pretrain demo` takes them. It is trained
on the left 70 % and upper 70 % of every photograph and judged on the left 70 % of its lower 30 %:
the gain of the predicted images, and R² of pairs, clean and photometric, from z_equi by its best
probe. The right 30 % of the photographs, on which the demo reports, are not touched. What is
finished lies in --out and is not made again: a run under a name made of all its settings, its
figures under one made of the run's and of all that they are judged by; both of the commit too, so
changed code that is not committed wants another --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from bench.report import commit, made_by
from fastequi import limits
from fastequi.atomic import replace_text
from fastequi.cli.parsing import parse
from fastequi.config import Config
from fastequi.data.sources.image_sets import embedded_photos
from fastequi.data.sources.splits import TRAIN_REGION
from fastequi.evaluate.encoders import of_method
from fastequi.evaluate.image_quality import LEAST_SIZE
from fastequi.evaluate.photometric import Photometric
from fastequi.evaluate.predicted_images import predictions
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.reconstruction import path_loader
from fastequi.evaluate.tasks import Budget, own_path, score_tasks
from fastequi.methods.tir import TIR
from fastequi.recipes import RECIPES
from fastequi.train import pretrain

_LEFT, _TOP, _RIGHT, _BOTTOM = TRAIN_REGION
_CUT = _TOP + 0.7 * (_BOTTOM - _TOP)
FITTED = _LEFT, _TOP, _RIGHT, _CUT
VALIDATION = _LEFT, _CUT, _RIGHT, _BOTTOM
_IMAGES, _SEED = 512, 3


@dataclass(frozen=True)
class Setting:
    """Settings of one run."""

    config: Annotated[Config, tyro.conf.arg(name="")]


def config_of(words: str, steps: int) -> Config:
    """The demo's recipe with changed settings, its schedule `steps` long (0: by minutes).

    Raises:
        ValueError: settings that cannot be trained, or not be judged afterwards; names the option.
    """
    default = Setting(RECIPES["demo"]())
    config = parse(Setting, "bench.choices", shlex.split(words), default).config
    limits.expect(config.method == "tir", "--method", "tir", config.method)
    size = config.data.image_size
    limits.expect(size >= LEAST_SIZE, "--data.image-size", f"at least {LEAST_SIZE}", size)
    own_path(config, torch.device("cpu"))
    if not steps:
        return config
    data = config.data
    files = len(embedded_photos(FITTED))
    repeat = -(-steps * data.batch_size // (files * data.samples_per_decode))
    return replace(
        config,
        data=replace(data, repeat=repeat),
        train=replace(config.train, minutes=0.0, epochs=1),
    )


def judged(method: TIR, config: Config, budget: Budget) -> dict[str, Any]:
    """What is known of a trained run on the validation part."""
    train, held_out = embedded_photos(FITTED), embedded_photos(VALIDATION)
    encoder = of_method(method, config, "TIR")
    found: dict[str, Any] = {}
    if method.decoder is not None:
        with path_loader(config, held_out, encoder.device, _SEED) as loader:
            quality = predictions(method, loader, _IMAGES, loader.images_of)
        found |= {"pooled": quality.pooled.gain, "mean of dB": quality.psnr.gain}
        found |= {"seams": quality.seams.predicted, "seams of targets": quality.seams.target}
        found |= {part.name: part.pooled for part in (*quality.by_texture, *quality.by_angle)}
    name = "z_equi" if method.decoder is not None else "patch"
    chosen, windows = own_path(config, encoder.device)
    reports = score_tasks(
        {"TIR": replace(encoder, names=(name,))},
        train,
        held_out,
        chosen,
        budget=budget,
        windows=windows,
    )
    for task, report in reports.items():
        for label in (f"TIR, {name}", "raw pair"):
            found[f"{task}: {label}"] = report.best(label).r2
    return found


def run_one(words: str, steps: int, out: Path, budget: Budget) -> dict[str, Any]:
    """Trains and judges one setting, unless that is done already."""
    config = config_of(words, steps)
    run = out / run_name(config, steps)
    judges = budget, Photometric(), VALIDATION, _IMAGES, _SEED
    file = out / f"{_name(run.name, words, *judges)}.json"
    if file.is_file():
        row: dict[str, Any] = json.loads(file.read_text())
        return row
    torch.manual_seed(config.train.seed)
    resume = (run / "config.json").is_file()
    last = steps or None
    method = pretrain(config, embedded_photos(FITTED), run, resume=resume, max_steps=last)
    assert isinstance(method, TIR)
    last_row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    row = {"options": words, "steps": last_row["step"], "seconds": round(last_row["seconds"], 1)}
    row |= {name: last_row[name] for name in ("ssl", "recon") if name in last_row}
    row |= judged(method, config, budget)
    replace_text(file, json.dumps(row) + "\n")
    return row


def run_name(config: Config, steps: int) -> str:
    """Of the folder of a run with all these settings and this commit's code."""
    return _name(config.to_json(), steps, FITTED, commit())


def _name(*parts: object) -> str:
    """A file's name that is another one whenever one of the parts is."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("settings", nargs="+", help="of one run each, as pretrain demo takes them")
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0: train.minutes")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of runs and of choices.json"
    )
    parser.add_argument("--pairs", type=int, default=3000, help="that the probes are fitted on")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(
        train_pairs=options.pairs,
        test_pairs=1000,
        probes=("token", "cosines", "mlp"),
        pixels=("raw pair",),
        fit=Fit(epochs=6, width=512, seeds=1),
    )
    document = made_by("python -m bench.choices")
    for words in options.settings:
        config_of(words, options.steps)  # all of them are refused or none, before any is trained
    rows = []
    for words in options.settings:
        rows.append(run_one(words, options.steps, options.out, budget))
        print(json.dumps(rows[-1]), flush=True)
    document |= {"pairs": options.pairs, "runs": rows}
    replace_text(options.out / "choices.json", json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
