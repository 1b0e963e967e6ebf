"""The shape of the paper's tables at small scale: which path teaches which transformation?

    python -m bench.equivariance --data FOLDER --out FOLDER

A GPU takes `--recipe tir_vicreg_vits16 --size 96 --batch 256`: ViT-S/16, as the paper has it.

Rows: the pixels, a random initialisation, VICReg, and VICReg with TIR along five paths at K = 2
steps, along one of them at more numbers; columns: R² of five transformations and of one out of
range, on photographs no row has seen; of the geometric ones also with the light, colours and
sharpness of both images changed independently. Every row has the same encoder, images, batches and
number of steps, those of the demo by default; every table is made for several seeds of everything.
What is finished lies in --out and is not made again.

The printed table is of one kind of features and one probe at a time, so that no row is helped by a
choice among them: mean over seeds ± their standard deviation. The JSON holds all others, with
intervals. VICReg alone sees its second view untransformed, as the paper's base does. Processes
share the work, each with seeds of its own (--seeds 0, --seeds 1) or, once the rows are trained,
--tasks and --photometric, into one --out; a last one with all of them finds everything done and
writes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.report import made_by
from fastequi.atomic import replace_text
from fastequi.config import Config, PathConfig
from fastequi.data.sources.image_sets import Source
from fastequi.data.sources.splits import photographs
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import load_encoder, random_init
from fastequi.evaluate.pair_reports import is_beyond
from fastequi.evaluate.pair_scores import PROBES
from fastequi.evaluate.probes import Fit
from fastequi.evaluate.tasks import GEOMETRIC, Budget, score_tasks, tasks
from fastequi.recipes import RECIPES
from fastequi.train import pretrain

FAMILIES = ("rotation", "translation", "se2", "color", "blur")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BEST_RAW = "raw pair, its best probe"
SHOWN = (
    ("patch", "token"),
    ("z_equi", "token"),
    ("patch", "mlp, mean token"),
    ("z_equi", "mlp, mean token"),
)


def base_of(recipe: str = "demo", size: int = 0, batch: int = 0) -> Config:
    """A recipe of TIR on VICReg with views of `size` px in batches of `batch`; 0: its own."""
    config = RECIPES[recipe]()
    data = config.data
    if size:
        margin = round((data.source_size - data.image_size) * size / data.image_size / 2) * 2
        data = data.resized(size, size + margin)
    return replace(config, data=replace(data, batch_size=batch or data.batch_size))


def config_of(config: Config, row: str, *, seed: int, steps: int, files: int) -> Config:
    """A row's run: "VICReg", or "TIR se2 K=2".

    Args:
        config: of :func:`base_of`, with the paths' ranges.
        row: its name.
        seed: of weights and data.
        steps: of the optimiser, the schedule's length.
        files: of the training set, whose repeats make an epoch of about that many steps.
    """
    data, tir = config.data, config.tir
    if row == "VICReg":
        path = replace(config.path, family="se2", degrees=0.0, pixels=0.0)
        tir = replace(tir, num_steps=0, equi_dim=0)
    else:
        _, family, steps_text = row.split()
        path = replace(config.path, family=family)  # type: ignore[arg-type]
        tir = replace(tir, num_steps=int(steps_text.removeprefix("K=")))
        if family == "blur":  # a blurred image is as large as it was
            data = data.resized(data.image_size, data.image_size)
    per_file = data.samples_per_decode
    repeat = -(-steps * data.batch_size // (files * per_file))
    return replace(
        config,
        data=replace(data, repeat=repeat),
        path=path,
        tir=tir,
        train=replace(config.train, minutes=0.0, epochs=1, seed=seed, tensorboard=False),
    )


def rows(families: Sequence[str], ks: Sequence[int], swept: Sequence[str]) -> list[str]:
    """All that are trained: K = 2, and for the `swept` families every one of `ks` as well.

    Raises:
        ValueError: a swept family is none of the families.
    """
    if others := set(swept) - set(families):
        raise ValueError(f"--sweep: expected some of --families, got {sorted(others)}")
    every = sorted({2, *ks})
    each = [(family, k) for family in families for k in (every if family in swept else (2,))]
    return ["VICReg", *(f"TIR {family} K={k}" for family, k in each)]


def trained(base: Config, row: str, source: Source, *, seed: int, steps: int, out: Path) -> Path:
    """A row's finished run; trained unless it is there."""
    run = out / f"seed{seed}" / row.replace(" ", "_")
    if not (run / "model.safetensors").is_file():
        config = config_of(base, row, seed=seed, steps=steps, files=len(source))
        start = time.monotonic()
        pretrain(config, source, run, resume=(run / "config.json").is_file(), max_steps=steps)
        (run / "seconds.txt").write_text(f"{time.monotonic() - start:.1f}\n")
    return run


def evaluated(
    runs: Mapping[str, Path],
    ranges: PathConfig,
    *,
    train: Source,
    test: Source,
    budget: Budget,
    out: Path,
    chosen: Sequence[str] = FAMILIES,
    photometric: Sequence[str] = (),
) -> dict[str, Any]:
    """The tables of one seed's runs, a file in `out` for every task; one that is there is kept."""
    found: dict[str, Any] = {}
    loaded = {row: load_encoder(str(run)) for row, run in runs.items()}
    with_equi = next((e for e in loaded.values() if "z_equi" in e.names), loaded["VICReg"])
    encoders: dict[str, Encoder] = {"random init": random_init(with_equi), **loaded}
    encoders = {
        name: replace(encoder, names=tuple(n for n in encoder.names if n in ("patch", "z_equi")))
        for name, encoder in encoders.items()
    }
    out.mkdir(exist_ok=True)
    for name, task in tasks(chosen, ranges, photometric).items():
        file = out / f"{name}.json"
        if not file.is_file():
            reports = score_tasks(encoders, train, test, {name: task}, budget=budget)
            tables = {which: report.to_json() for which, report in reports.items()}
            replace_text(file, json.dumps(tables) + "\n")
            print(f"{out}: {name} evaluated", flush=True)
        found |= json.loads(file.read_text())
    return found


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Notes in `out` what its results are of.

    Raises:
        ValueError: they are of other settings than these; names those.
    """
    file = out / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    known = json.loads(file.read_text()) if file.is_file() else settings
    other = [f"{name} {known.get(name)}" for name in settings if known.get(name) != settings[name]]
    if other:
        raise ValueError(f"--out: {out} holds results of {', '.join(other)}; take another folder")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1) + "\n")


def brief(document: Mapping[str, Any]) -> str:
    """JSON with four digits and lists of numbers on one line: a tenth of a megabyte a seed."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, Mapping):
            return {name: rounded(inner) for name, inner in value.items()}
        return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

    text = json.dumps(rounded(document), indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def tables(document: Mapping[str, Any]) -> str:
    """Markdown: for each kind of features and probe that an encoder was read by, rows by tasks.

    Cells are means of R² over seeds, of angles beyond the range of the median error.
    """
    seeds = [entry["tasks"] for entry in document["seeds"]]
    columns = list(seeds[0])
    blocks = []
    for features, probe in SHOWN:
        lines = [
            f"{features}, probe: {probe}",
            "",
            f"| row | {' | '.join(columns)} |",
            "| --- |" + " --- |" * len(columns),
        ]
        read = False
        for name, kind in _rows_of(seeds[0][columns[0]], features):
            cells = []
            for task in columns:
                error = is_beyond(task)
                found = [_figure(entry[task], name, kind, probe, error=error) for entry in seeds]
                known = [value for value in found if value is not None]
                cells.append(_cell(known, error))
            if not any(cells):  # statistics of the pixels have no tokens
                continue
            read = read or name is not None
            lines.append(f"| {name or kind} | {' | '.join(cells)} |")
        if read:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def described(score: Mapping[str, Any]) -> tuple[str | None, str, bool]:
    """A row's encoder, features and whether it is a baseline (`fastequi.evaluate.results.Row`).

    Files of bench/results from before rows had these fields have "ENCODER, FEATURES" instead.
    """
    if "is_baseline" in score:
        return score["encoder"], score["features"], score["is_baseline"]
    encoder, _, features = score["features"].rpartition(", ")
    return encoder or None, features, encoder in ("", "random init")


def _rows_of(report: Mapping[str, Any], features: str) -> list[tuple[str | None, str]]:
    """(encoder, features): baselines of the pixels, then every encoder's rows of these features."""
    rows = dict.fromkeys(described(score)[:2] for score in report["scores"])
    pixels = [row for row in rows if row[0] is None and row[1] != "mean predictor"]
    ours = [row for row in rows if row[0] is not None and row[1] == features]
    return [*pixels, (None, BEST_RAW), *ours]


def _figure(
    report: Mapping[str, Any], encoder: str | None, features: str, probe: str, *, error: bool
) -> float | None:
    """The mean R² of a row by a probe, or its median error; of pixels by the probe of that kind."""
    wanted = {probe, probe.removesuffix(", mean token")}
    which = encoder, "raw pair" if features == BEST_RAW else features
    found = [score for score in report["scores"] if described(score)[:2] == which]
    if features == BEST_RAW:
        found = [max(found, key=lambda score: score["mean"])]
    else:
        found = [score for score in found if score["probe"] in wanted]
    if not found:
        return None
    value: float = found[0]["error"][0] if error else found[0]["mean"]
    return value


def _cell(values: Sequence[float], error: bool) -> str:
    if not values:
        return ""
    digits, unit = (1, "°") if error else (2, "")
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{unit}{spread}"


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """How probes are fitted and tested, the same for a table and for a curve."""
    parser.add_argument("--test-pairs", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=6, help="of the probes")
    parser.add_argument("--width", type=int, default=1024, help="of their hidden layers")
    parser.add_argument("--probes", nargs="+", default=PROBES, choices=PROBES)
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="the MLPs are fitted in")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of photographs; the embedded ones else")
    parser.add_argument("--out", type=Path, required=True, help="runs and results; goes on there")
    parser.add_argument("--json", type=Path, help="where the results go besides")
    parser.add_argument("--recipe", default="demo", choices=("demo", "tir_vicreg_vits16"))
    parser.add_argument("--size", type=int, default=0, help="of a view; the recipe's else")
    parser.add_argument("--batch", type=int, default=0, help="images; the recipe's else")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument(
        "--sweep",
        nargs="*",
        choices=FAMILIES,
        help="families trained at every --k, the others at K = 2 (default: se2)",
    )
    parser.add_argument(
        "--k", nargs="+", type=int, default=(1, 2, 3), help="numbers of steps (default: 1 2 3)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--tasks", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument(
        "--photometric",
        nargs="*",
        default=GEOMETRIC,
        choices=GEOMETRIC,
        help="families also tested with changed light, colours and sharpness; nothing: none "
        "(default: all three)",
    )
    parser.add_argument("--train-pairs", type=int, default=24_000)
    add_probe_options(parser)
    options = parser.parse_args()
    if options.sweep is None:
        options.sweep = [family for family in options.families if family == "se2"]
    if not options.sweep and options.k != parser.get_default("k"):
        parser.error("--k: expected --sweep with families that are trained at them")
    try:
        _measure(options)
    except ValueError as error:
        parser.error(str(error))


def _measure(options: argparse.Namespace) -> None:
    train, test = photographs(options.data)
    names = rows(options.families, options.k, options.sweep)
    base = base_of(options.recipe, options.size, options.batch)
    # what may differ between processes that share the work
    each = {"out", "json", "seeds", "tasks", "photometric"}
    settings = {name: value for name, value in vars(options).items() if name not in each}
    images = [train.fingerprint(), test.fingerprint()]
    claim(options.out, settings | {"images": images})
    document: dict[str, Any] = {
        **made_by("python -m bench.equivariance"),
        "photographs": {"train": len(train), "test": len(test)},
        "steps": options.steps,
        "seeds": [],
    }
    for seed in options.seeds:
        where = {"seed": seed, "steps": options.steps, "out": options.out}
        runs = {row: trained(base, row, train, **where) for row in names}
        fit = Fit(
            epochs=options.epochs,
            width=options.width,
            seeds=1,
            seed=seed,
            dtype=DTYPES[options.dtype],
        )
        budget = Budget(
            train_pairs=options.train_pairs,
            test_pairs=options.test_pairs,
            probes=tuple(options.probes),
            fit=fit,
            seed=seed,
        )
        document["budget"] = {**dataclasses.asdict(budget), "fit": dataclasses.asdict(fit)}
        document["budget"]["fit"]["dtype"] = str(fit.dtype)
        folder = options.out / f"seed{seed}" / "tasks"
        found = evaluated(
            runs,
            base.path,
            train=train,
            test=test,
            budget=budget,
            out=folder,
            chosen=options.tasks,
            photometric=options.photometric,
        )
        seconds = {row: float((run / "seconds.txt").read_text()) for row, run in runs.items()}
        document["seeds"].append({"seed": seed, "seconds": seconds, "tasks": found})
        text = brief(document)
        for file in filter(None, (options.out / "equivariance.json", options.json)):
            file.write_text(text)
        print(tables(json.loads(text)), flush=True)


if __name__ == "__main__":
    main()
