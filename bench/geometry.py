"""Which pretraining keeps the geometry of an image in its tokens, at equal time?

    python -m bench.geometry --data PHOTOS --runs FOLDER --out bench/results/geometry_cpu.json

VICReg, TIR on it, DINO, TIR on it, GTSA and RotNet are trained for the same number of minutes each,
on one thread: six times fifteen minutes are an hour and a half of one core, two rows at a time. All
have the same ViT (three blocks, 96 wide, 8-px patches of 48-px views) and batches of 32 images;
methods and schedules are the recipes' (`bench.recipes.scaled`). The same ViT at random
initialisation, raw patches and position only are rows beside them.

Judged is what has exact truth, on photographs that no row has seen, with 95 % intervals over these:
`eval match`, `homography`, `layers` and `position` on the photographs, `segment`, `clusters`,
`depth` and `propagate` on scenes made of them (`fastequi data scenes`).

A finished run, and a finished evaluation of the same runs, lies in --runs and is not made again.
--words changes an evaluation: --words 'match --pairs 200'.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from bench import recipes
from bench.equivariance import brief, claim
from bench.report import made_by
from fastequi.atomic import replace_text
from fastequi.cli import evaluations
from fastequi.config import Config
from fastequi.data.scenes.job import make
from fastequi.data.scenes.settings import Settings
from fastequi.data.sources.image_sets import Source
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import photographs
from fastequi.recipes import RECIPES
from fastequi.runtime.preempt import Preempted
from fastequi.train import pretrain

ROWS = {
    "VICReg": "vicreg_vits16",
    "TIR-VICReg": "tir_vicreg_vits16",
    "DINO": "dino_vits16",
    "TIR-DINO": "tir_dino_vits16",
    "GTSA": "gtsa_vits16",
    "RotNet": "rotnet_vits16",
}
SCENES = {  # evaluations of made scenes, by the part that they read
    "segment": "segment",
    "clusters": "segment",
    "depth": "depth",
    "propagate": "clips",
}
EVALUATIONS = ("match", "homography", "layers", "position", *SCENES)
SIZE, DEPTH = 48, 3
_SCENE = 96  # px: four views of the encoder in each of `segment`'s and `depth`'s images
_MARGIN = 24  # px around a view that a path transforms: 72 / 48 > √2, so no corner is empty
_SHOWN = {  # the figure that is shown of an evaluation, the first if it is not here; some tables
    "match": (
        "recall, 1 patch",
        ("se2", "se2, photometric", "homography", "homography, photometric"),
    ),
    "homography": ("MCE, px", ("RANSAC", "RANSAC, photometric", "head", "head, photometric")),
}
_TOGETHER = ("match",), ("homography",), ("layers", "position"), tuple(SCENES)  # in a table

Tables = Mapping[str, Any]


def config_of(row: str, *, minutes: float, seed: int) -> Config:
    """A row's run.

    Args:
        row: of ROWS.
        minutes: of training.
        seed: of weights and data.
    """
    config = recipes.scaled(RECIPES[ROWS[row]]())
    data = replace(
        config.data,
        image_size=SIZE,
        source_size=SIZE,
        local_crop_size=SIZE // 2,
        samples_per_decode=8,  # with four the data took 38 % of a step
    )
    if config.method == "tir":  # a base alone sees the same windows
        data = replace(data, source_size=SIZE + _MARGIN)
    model = replace(config.model, embed_dim=96, depth=DEPTH, num_heads=3, drop_path=0.0)
    train = replace(
        config.train, minutes=minutes, seed=seed, device="cpu", tensorboard=False,
        checkpoint_every=0,
    )  # fmt: skip
    return replace(config, model=model, data=data, train=train)


def trained(row: str, source: Source, *, minutes: float, seed: int, runs: Path) -> Path:
    """A row's finished run, trained unless it is there.

    seconds.json says what it took in all processes; until then seconds_so_far.json.
    """
    run = runs / row
    if (run / "seconds.json").is_file():
        return run
    so_far, start, cpu = run / "seconds_so_far.json", time.monotonic(), time.process_time()
    before = json.loads(so_far.read_text()) if so_far.is_file() else {"wall": 0.0, "cpu": 0.0}

    def note(file: Path) -> None:
        wall, own = time.monotonic() - start, time.process_time() - cpu
        taken = {"wall": before["wall"] + wall, "cpu": before["cpu"] + own}
        replace_text(file, json.dumps(taken) + "\n")

    try:
        pretrain(
            config_of(row, minutes=minutes, seed=seed),
            source,
            run,
            resume=(run / "config.json").is_file(),
            recipe=ROWS[row],
        )
    except BaseException:
        if run.is_dir():
            note(so_far)
        raise
    note(run / "seconds.json")
    return run


def _alone(row: str, source: Source, threads: int, about: Mapping[str, Any]) -> None:
    """What a process of its own does."""
    torch.set_num_threads(threads)
    try:
        trained(row, source, **about)
    except Preempted as stopped:
        sys.exit(stopped.exit_code)


def all_trained(
    rows: Sequence[str], source: Source, *, jobs: int, threads: int, **about: Any
) -> dict[str, Path]:
    """Every row's run; `jobs` at a time, each in a process of its own on `threads` threads.

    They are asked to stop, and save, if this process is, or if one of them fails.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    spawn = multiprocessing.get_context("spawn")
    processes = {
        row: spawn.Process(target=_alone, args=(row, source, threads, about)) for row in rows
    }
    waiting, running = list(rows), list[str]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.pop(0))
                processes[running[-1]].start()
            wait([processes[row].sentinel for row in running])
            for row in [row for row in running if not processes[row].is_alive()]:
                running.remove(row)
                if status := processes[row].exitcode:
                    sys.exit(f"{row}: its training ended with exit status {status}")
    finally:
        for row in running:
            processes[row].terminate()
        for row in running:
            processes[row].join()
    return {row: about["runs"] / row for row in rows}


def scenes(data: Path | None, seed: int, out: Path) -> Path:
    """The folder of scenes made of the photographs."""
    photos = Selection((str(data),), option="--data") if data else None
    settings = Settings(images=256, clips=12, size=_SCENE, seed=seed)
    make(out, photos, settings, lambda done, of: None)
    return out


def evaluated(
    kind: str, runs: Mapping[str, Path], data: Path | None, words: Sequence[str], file: Path
) -> Tables:
    """The tables of one evaluation of all runs; kept in a file."""
    if not file.is_file():
        *others, last = map(str, runs.values())
        place = ["--data", str(data)] if data else []
        side = ["--side", str(_SCENE)] if kind in SCENES else []
        against = [word for run in others for word in ("--against", run)]
        out = ["--device", "cpu", "--out", str(file)]
        getattr(evaluations, kind)([last, *place, *side, *against, *out, *words])
    tables: Tables = json.loads(file.read_text())["tables"]
    return {title: _of_last_blocks(found) for title, found in tables.items()}


def _of_last_blocks(found: Mapping[str, Any]) -> dict[str, Any]:
    """A table without the rows of earlier blocks, which stay in the evaluation's own file."""
    earlier = {"embedding", *(f"block{i}" for i in range(1, DEPTH))}
    scores = [score for score in found["scores"] if score["features"] not in earlier]
    left = {"{encoder}, {features}".format(**s) if s["encoder"] else s["features"] for s in scores}
    pairs = [d for d in found["differences"] if {d["label"], d["against"]} <= left]
    return {**found, "scores": scores, "differences": pairs}


def columns(results: Mapping[str, Tables]) -> Iterator[tuple[str, str, int]]:
    """(evaluation, table, figure) that a printed table shows."""
    for kind, tables in results.items():
        figure, titles = _SHOWN.get(kind, ("", ()))
        for title in [title for title in titles if title in tables] or tables:
            names = [each["name"] for each in tables[title]["figures"]]
            yield kind, title, names.index(figure) if figure in names else 0


def markdown(results: Mapping[str, Tables]) -> str:
    """Tables with a row for all features of the output, figures with their intervals."""
    groups = [{kind: results[kind] for kind in kinds if kind in results} for kinds in _TOGETHER]
    return "\n\n".join(_one_table(group) for group in groups if group)


def _one_table(results: Mapping[str, Tables]) -> str:
    cells: dict[tuple[str | None, str], dict[int, str]] = {}
    heads = []
    for i, (kind, title, which) in enumerate(columns(results)):
        found = results[kind][title]
        figure = found["figures"][which]
        heads.append(f"{kind}, {title}: {figure['name']}")
        for score in found["scores"]:
            features = "patch" if score["features"] == f"block{DEPTH}" else score["features"]
            values = (score[part][which] for part in ("values", "low", "high"))
            value, low, high = (f"{v:.{figure['digits']}f}" for v in values)
            interval = f" [{low}, {high}]" if found["photographs"] > 1 else ""
            cells.setdefault((score["encoder"], features), {})[i] = f"{value}{interval}"
    lines = [f"| features | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for (encoder, features), row in cells.items():
        if encoder is not None and features not in ("patch", "z_equi"):
            continue  # an earlier block's
        label = features if encoder is None else f"{encoder}, {features}"
        lines.append(f"| {label} | " + " | ".join(row.get(i, "") for i in range(len(heads))) + " |")
    return "\n".join(lines)


def added(results: Mapping[str, Tables]) -> str:
    """What TIR adds to its base: differences of rows, paired over photographs; "" without both."""
    there = {s["encoder"] for each in results.values() for t in each.values() for s in t["scores"]}
    pairs = [
        (f"TIR-{base}, {features}", f"{base}, patch")
        for base in ("VICReg", "DINO")
        for features in ("patch", "z_equi")
        if {base, f"TIR-{base}"} <= there
    ]
    if not pairs:
        return ""
    heads = [f"{ours} less {base}" for ours, base in pairs]
    lines = [f"| figure | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for kind, title, which in columns(results):
        found = results[kind][title]
        figure = found["figures"][which]
        known = {(d["label"], d["against"]): d for d in found["differences"]}
        cells = []
        for ours, base in pairs:
            ours, base = (_last_block(name, found["scores"]) for name in (ours, base))
            cells.append(_between(known, ours, base, which, figure["digits"]))
        lower = ", lower is better" * (figure["better"] == "lower")
        lines.append(f"| {kind}, {title}: {figure['name']}{lower} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _last_block(name: str, scores: Sequence[Mapping[str, Any]]) -> str:
    """A row's label where an evaluation calls the last block's tokens by their number."""
    encoder, features = name.split(", ")
    there = {(score["encoder"], score["features"]) for score in scores}
    return name if (encoder, features) in there else f"{encoder}, block{DEPTH}"


def _between(
    known: Mapping[tuple[str, str], Mapping[str, Any]],
    ours: str,
    base: str,
    which: int,
    digits: int,
) -> str:
    sign, found = (1, known[ours, base]) if (ours, base) in known else (-1, known[base, ours])
    value, *ends = (sign * found[part][which] for part in ("values", "low", "high"))
    low, high = sorted(ends)
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of photographs; the embedded ones else")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/geometry"), help="goes on there")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, of every row")
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--jobs", type=int, default=2, help="rows that are trained at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluations", nargs="+", default=EVALUATIONS, choices=EVALUATIONS)
    parser.add_argument("--words", action="append", default=[], metavar="'KIND OPTION ...'")
    options = parser.parse_args()
    if len(set(options.rows)) < len(options.rows):
        parser.error(f"--rows: expected each once, got {' '.join(options.rows)}")
    for name in ("minutes", "threads", "jobs"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name}: expected > 0, got {getattr(options, name)}")
    try:
        _measure(options)
    except ValueError as error:
        parser.error(str(error))


def _measure(options: argparse.Namespace) -> None:
    made = made_by("python -m bench.geometry")
    train, test = photographs(options.data)
    words = _words(options.words, options.evaluations)
    names = "data", "rows", "minutes", "threads", "seed"
    settings = {name: getattr(options, name) for name in names}
    images = [train.fingerprint(), test.fingerprint()]
    claim(options.runs, {**settings, "words": words, "images": images})
    about = {"minutes": options.minutes, "seed": options.seed, "runs": options.runs}
    jobs = min(options.jobs, len(options.rows))
    runs = all_trained(options.rows, train, jobs=jobs, threads=options.threads, **about)
    seconds = {row: json.loads((run / "seconds.json").read_text()) for row, run in runs.items()}
    document: dict[str, Any] = {
        **made,
        **settings,
        "photographs": {"train": len(train), "test": len(test)},
        "steps": {row: _steps(run) for row, run in runs.items()},
        "seconds": seconds,
        "words": words,
        "results": {},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    made_scenes = scenes(options.data, options.seed, options.runs / "scenes")
    for kind in options.evaluations:
        file = options.runs / f"eval_{kind}.json"
        data = made_scenes / SCENES[kind] if kind in SCENES else options.data
        start = time.monotonic()
        document["results"][kind] = evaluated(kind, runs, data, words.get(kind, ()), file)
        print(f"eval {kind}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        options.out.write_text(brief({**document, "data": str(options.data)}))
    print(markdown(document["results"]), flush=True)
    if differences := added(document["results"]):
        print(f"\n{differences}", flush=True)


def _words(given: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """Options by evaluation.

    Raises:
        ValueError: of an evaluation that is not run.
    """
    found = {}
    for line in given:
        kind, *words = shlex.split(line) or [""]
        if kind not in kinds:
            raise ValueError(f"--words: expected to begin with {', '.join(kinds)}, got {line!r}")
        found[kind] = words
    return found


def _steps(run: Path) -> int:
    """That a run took, by its last checkpoint's name."""
    return max(int(step.name.split("_")[1]) for step in (run / "checkpoints").glob("step_*"))


if __name__ == "__main__":
    main()
