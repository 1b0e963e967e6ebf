"""The commands and their options; `fastequi.cli.main` calls the function of a command's name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastequi.cli.hints import meant
from fastequi.cli.image_options import Patterned, Several, as_images, expect_places, flat
from fastequi.cli.init_options import start_of, started, words_of
from fastequi.cli.network_options import for_network
from fastequi.cli.parsing import expect_known, is_given, memory_for, parse
from fastequi.cli.vit_options import VitOptions
from fastequi.config import Config, recipe_of
from fastequi.recipes import FROM_WEIGHTS, RECIPES
from fastequi.runtime import interrupts

_SCENE = 1 << 10  # bytes kept of each image or clip that `data scenes` makes, until all are made


@dataclass(frozen=True)
class DemoOptions:
    """Pretrains TIR on the nine embedded photographs and evaluates its features."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; by default a new one, named by date."""
    minutes: float | None = None
    """Training time; short for --train.minutes."""


@dataclass(frozen=True)
class PretrainOptions(Patterned):
    """Pretrains on folders of images, flat or nested, or on tar shards; no labels needed."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    data: Several = ()
    """Folder of images or of an MNIST-like set's IDX files; tar shards: one file, a quoted glob, or
    a range such as 'shards/train-{000..012}.tar'; or a list: a .txt file with one path per line."""
    index: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Index written by `fastequi data scan`; by default the one beside the images, if there is one
    (for shards: if the scan used the same pattern). With several --data, one for each."""
    init: Path | None = None
    """File or folder of a ViT's weights that the encoder, and its teacher, start from: timm's,
    Meta's, transformers' or a run's. The model's settings are then theirs; see --init.path."""
    run_dir: Path | None = None
    """Folder of the run; by default a new one, named by date."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir. What is not given stays as in that run."""
    max_steps: int | None = None
    """Stop after this many optimiser steps; the schedule is not shortened."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; short for --train.checkpoint-every."""
    dry_run: bool = False
    """Print settings, parameter counts and one step's memory; needs no data."""


@dataclass(frozen=True)
class SubmitOptions:
    """A run as a SLURM job, requeued until it is done: submit ... -- RECIPE --data PATH ..."""

    nodes: int = 1
    """Machines."""
    gpus: int = 8
    """GPUs per machine, one process for each; 0: one process on the CPU."""
    minutes: int = 720
    """Time limit of one job, before it is requeued."""
    partition: str = ""
    """SLURM partition; empty: the cluster's default."""
    notice: int = 180
    """Seconds before the limit at which the run saves."""
    cluster: Literal["slurm", "local"] = "slurm"
    """local runs it on this machine, for a trial."""


@dataclass(frozen=True)
class ScanOptions(Patterned):
    """Decodes every image once; writes an index for training and the list of unreadable images."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Folders of images, tar shards or lists, as --data of pretrain; each gets its own index."""
    threads: int = 0
    """Threads that read and decode; 0: one per core."""
    index: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """File of the index, if the data's folder is read-only; then pass it to pretrain as well. With
    several places, one for each."""


@dataclass(frozen=True)
class ScenesOptions:
    """A test bed of exact truth, and never a benchmark: pieces pasted over photographs, with masks,
    as clips, at known depths, and in pairs of known homography. The same settings make the same."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder; nothing is done if it holds scenes of the same settings."""
    photos: Several = ()
    """Photographs, as --data of pretrain, of which every fifth is for validation; by default the
    embedded ones, their left 70 % for training and right 30 % for validation."""
    kinds: tuple[Literal["segment", "clips", "depth", "match"], ...] = (
        *("segment", "clips"),
        *("depth", "match"),
    )
    """What is made."""
    images: int = 64
    """Of segment and of depth, a quarter of them for validation; and pairs of match."""
    clips: int = 6
    """Of clips."""
    frames: int = 24
    """Of each clip."""
    size: int = 256
    """Side of images in pixels, and shorter side of clips (480: DAVIS')."""
    seed: int = 0
    """Of everything that is drawn."""


@dataclass(frozen=True)
class VisualizeOptions(Patterned, VitOptions):
    """Pictures of an encoder's features: reconstructions, PCA of patches, attention, rotations."""

    checkpoint: tyro.conf.Positional[str]
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Images, as --data of pretrain; the nine embedded photographs by default."""
    out: Path = Path("figures")
    """Folder of the PNG files."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:1."""
    windows: int = 0
    """Windows that the probe of rotations is fitted on; 0: 1500, 300 of large views on a CPU."""


@dataclass(frozen=True)
class ExportOptions(VitOptions):
    """An encoder as another library loads it, with a model card; its tokens are compared first."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's folder, one of its checkpoints, or a file or folder of weights of any layout."""
    to: Literal["timm", "meta", "hf", "onnx", "torchscript"] | None = None
    """timm's own form; DINOv2's names (meta); a folder for transformers (hf); ONNX, for batches and
    images of any size; TorchScript, for images of one size."""
    out: Path | None = None
    """Folder; by default export-FORMAT in the run's folder or beside the file. An earlier export of
    the same format is replaced."""


@dataclass(frozen=True)
class ReportOptions(Patterned):
    """One HTML page about one or several runs; it needs neither network nor scripts."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The page."""
    pictures: bool = True
    """Draw pictures from the newest checkpoints."""
    data: Several = ()
    """Images for them, as --data of pretrain; the nine embedded photographs by default."""


def demo(argv: list[str]) -> None:
    recipe = RECIPES["demo"]()
    options = parse(DemoOptions, "fastequi demo", for_network(argv, recipe), DemoOptions(recipe))
    config = options.config
    if options.minutes is not None:
        if options.minutes <= 0:
            raise ValueError(f"--minutes: expected a time > 0, got {options.minutes}")
        config = replace(config, train=replace(config.train, minutes=options.minutes))
    _expect_one_end(argv, config)

    from fastequi.cli import demo as job

    job.demo(config, options.run_dir or _dated("demo"))


def pretrain(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_pretrain_usage())
        return
    name, options = _pretrain_options(argv)
    config = options.config
    if options.checkpoint_every is not None:
        train = replace(config.train, checkpoint_every=options.checkpoint_every)
        config = replace(config, train=train)
    if options.dry_run:
        from fastequi.cli.dryrun import dry_run

        dry_run(config)
        return
    if name in FROM_WEIGHTS and not config.init.path:
        raise ValueError(
            f"--init: expected the weights that {name} goes on from, a file or a folder, got none"
        )
    expect_places(options.data, "a folder of images or tar shards (only --dry-run needs none)")
    if options.resume and options.run_dir is None:
        raise ValueError("--resume: expected --run-dir, the folder of the run to continue")

    from fastequi.data.sources.image_sets import open_source
    from fastequi.runtime import checkpoint
    from fastequi.train import pretrain as run

    if options.run_dir is None and "WORLD_SIZE" in os.environ:
        raise ValueError("--run-dir: expected one under torchrun, whose processes share it")
    run_dir = options.run_dir or _dated(name)
    interrupts.outlook = partial(checkpoint.outlook, run_dir)
    tolerate = config.data.tolerate
    data = as_images(options.selection(options.data))
    source = open_source(data, index=options.index, tolerate=tolerate)
    resume, max_steps = options.resume, options.max_steps
    advice = f"fastequi pretrain {name} --dry-run says how many fit"
    with memory_for("--data.batch-size", config.data.batch_size, advice):
        run(config, source, run_dir, resume=resume, max_steps=max_steps, recipe=name)
    if os.environ.get("RANK", "0") == "0":
        print(run_dir)


def _pretrain_options(argv: list[str]) -> tuple[str, PretrainOptions]:
    """The recipe's name and the checked options of a command line."""
    begun = _run_to_resume(argv)
    if begun is not None and begun.recipe and argv[0].startswith("-"):
        argv = [begun.recipe, *argv]
    name, *rest = argv
    if name.startswith("-"):
        raise ValueError(f"RECIPE is missing before {name}\n\n{_pretrain_usage()}")
    if name not in RECIPES:
        raise _unknown("recipe", name, RECIPES, _pretrain_usage())
    if begun is not None and begun.recipe not in ("", name):
        raise ValueError(
            f"--resume: {begun.run_dir} is a run of the recipe {begun.recipe}, got {name}; "
            f"expected that recipe, or another --run-dir"
        )
    default = PretrainOptions(begun.config if begun is not None else RECIPES[name]())
    rest = for_network(rest, default.config)
    options = _parsed_with_weights(f"fastequi pretrain {name}", rest, default, begun is not None)
    _expect_one_end(rest, options.config)
    if options.max_steps is not None and options.max_steps < 1:
        raise ValueError(f"--max-steps: expected >= 1, got {options.max_steps}")
    return name, options


def _parsed_with_weights(
    prog: str, words: list[str], default: PretrainOptions, resumed: bool
) -> PretrainOptions:
    """The options, with the settings that --init stands for; a resumed run has them already."""
    if not {"-h", "--help"} & set(words):
        expect_known(PretrainOptions, words)
    init, num_heads = start_of(words)
    if not init.path:
        return parse(PretrainOptions, prog, words, default)
    if resumed:
        options = parse(PretrainOptions, prog, words, default)
        config = options.config
        return replace(options, config=replace(config, init=replace(config.init, path=init.path)))

    from fastequi.weights.start import init_weights

    weights = init_weights(init, num_heads)
    options = parse(PretrainOptions, prog, [*words_of(weights), *words], default)
    return replace(options, config=started(options.config, init, weights))


def _expect_one_end(argv: list[str], config: Config) -> None:
    """Raises ValueError for epochs that are asked for and would not count."""
    if is_given("--train.epochs", argv) and config.train.minutes > 0:
        raise ValueError(
            f"--train.epochs: expected --train.minutes 0 beside it, got train.minutes="
            f"{config.train.minutes:g}, after which the run ends whatever its epochs"
        )


def submit(argv: list[str]) -> None:
    cut = argv.index("--") if "--" in argv else len(argv)
    own, words = argv[:cut], argv[cut + 1 :]
    options = parse(SubmitOptions, "fastequi submit", own)
    if not words:
        raise ValueError(
            "submit: expected -- and then the arguments of pretrain: -- RECIPE --data ..."
        )
    for name, least in (("nodes", 1), ("gpus", 0), ("minutes", 1), ("notice", 0)):
        value = getattr(options, name)
        if value < least:
            raise ValueError(f"--{name}: expected >= {least}, got {value}")
    _, run = _pretrain_options(words)
    if run.run_dir is not None and (run.run_dir / "config.json").is_file():
        _pretrain_options([*words, "--resume"])  # the arguments of every start but the first
    if run.run_dir is None or not run.data:
        raise ValueError("submit: expected --data and --run-dir after --, the same for all starts")

    from fastequi.runtime.slurm import submit as send

    job = send(pretrain, words, run.run_dir.absolute(), **vars(options))
    print(f"job {job.job_id}; logs in {run.run_dir / 'slurm'}")


def data(argv: list[str]) -> None:
    jobs = {
        "scan": "decode every image once, write an index and the unreadable images",
        "scenes": "make a test bed of exact truth: masks, clips, depths, pairs of views",
    }
    chosen = _choose("data command", argv, jobs, "fastequi data COMMAND PATH")
    if chosen is not None:
        job, rest = chosen
        {"scan": _scan, "scenes": _scenes}[job](rest)


def _scan(argv: list[str]) -> None:
    options = parse(ScanOptions, "fastequi data scan", argv)
    if options.threads < 0:
        raise ValueError(f"--threads: expected 0 (every core) or more, got {options.threads}")

    from fastequi.data.scan import scan
    from fastequi.data.sources import index
    from fastequi.data.sources.image_sets import scanned_listings
    from fastequi.runtime.progress import Progress

    listings = scanned_listings(as_images(options.selection((options.data,), "data")))
    if options.index and len(options.index) != len(listings):
        raise ValueError(
            f"--index: expected one for each of {len(listings)} places, got {len(options.index)}"
        )
    files = options.index or tuple(listing.index for listing in listings)
    for file in files:
        index.expect_writable(file)
    for listing, file in zip(listings, files, strict=True):
        with Progress("scanning") as bar:
            found = scan(
                listing, options.threads, lambda i, n: bar.say(i / n, f"{i} of {n} images")
            )
        index.write(file, found.index)
        print(found.summary())
        print(f"index       {file}\nquarantine  {index.quarantine_of(file)}")


def _scenes(argv: list[str]) -> None:
    options = parse(ScenesOptions, "fastequi data scenes", argv)

    import torch

    from fastequi.data.scenes.job import bytes_at_once, make
    from fastequi.data.scenes.settings import Settings
    from fastequi.data.sources.image_sets import Selection
    from fastequi.runtime.devices import expect_memory, expect_size
    from fastequi.runtime.progress import Progress

    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = Settings(**given)
    cpu, size = torch.device("cpu"), settings.size
    expect_size("--size", size, partial(bytes_at_once, settings), cpu)
    for name in ("images", "clips"):
        expect_memory(f"--{name}", getattr(settings, name), _SCENE, cpu)
    expect_size("--frames", settings.frames, partial(bytes_at_once, settings, size), cpu)
    places = flat(options.photos)
    photos = as_images(Selection(places, option="--photos")) if places else None
    with Progress("making scenes") as bar:
        made = make(options.out, photos, settings, lambda i, n: bar.say(i / n, f"{i} of {n}"))
    print(f"{options.out}" if made else f"{options.out} holds them already")


def eval(argv: list[str]) -> None:
    from fastequi.cli import evaluations

    form = "fastequi eval KIND CHECKPOINT --data PATH"
    chosen = _choose("evaluation", argv, evaluations.KINDS, form)
    if chosen is None:
        return
    kind, rest = chosen
    if kind == "all":
        from fastequi.cli.all_evaluations import every

        every(rest)
    else:
        getattr(evaluations, kind)(rest)


def embed(argv: list[str]) -> None:
    from fastequi.cli import evaluations

    evaluations.embed(argv)


def visualize(argv: list[str]) -> None:
    options = parse(VisualizeOptions, "fastequi visualize", argv)
    if options.windows and options.windows < 100:
        raise ValueError(f"--windows: expected 0 or at least 100, got {options.windows}")

    from fastequi.report.visualize import visualize as draw

    data = as_images(options.selection(options.data)) if options.data else None
    draw(
        options.checkpoint,
        data,
        options.out,
        device=options.device,
        windows=options.windows,
        stated=options.stated(),
    )


def export(argv: list[str]) -> None:
    options = parse(ExportOptions, "fastequi export", argv)
    if options.to is None:
        raise ValueError("--to: expected one of timm, meta, hf, onnx, torchscript")

    from fastequi.export.job import export as job

    job(options.checkpoint, options.to, options.out, options.stated())


def report(argv: list[str]) -> None:
    options = parse(ReportOptions, "fastequi report", argv)
    if not options.runs:
        raise ValueError("RUN: expected the folder of one run or more, got none")

    from fastequi.report.report import report as write

    data = as_images(options.selection(options.data)) if options.data else None
    write(options.runs, options.out, pictures=options.pictures, data=data)


def _choose(
    what: str, argv: list[str], known: dict[str, str], form: str
) -> tuple[str, list[str]] | None:
    """The first word, which must be known, and the rest; None if help was printed."""
    usage = f"usage: {form}\n\n" + "\n".join(f"  {name:14s}{does}" for name, does in known.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return None
    if argv[0].startswith("-"):
        raise ValueError(f"the {what} is missing before {argv[0]}\n\n{usage}")
    if argv[0] not in known:
        raise _unknown(what, argv[0], known, usage)
    return argv[0], argv[1:]


def _unknown(what: str, name: str, known: Iterable[str], usage: str) -> ValueError:
    return ValueError(f"unknown {what} {name!r}{meant(name, known)}\n\n{usage}")


def doctor(argv: list[str]) -> None:
    from fastequi.cli.doctor import report

    if argv in (["-h"], ["--help"]):
        print("usage: fastequi doctor\n\nShows what is installed, and the backend of each part.")
        return
    if argv:
        raise ValueError(f"doctor takes no options, got {' '.join(argv)}")
    print(report())


def _pretrain_usage() -> str:
    first = {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    lines = "\n".join(f"  {name:20s}{what}" for name, what in first.items())
    form = "fastequi pretrain RECIPE --data PATH [--init WEIGHTS] [--section.field value]"
    return f"usage: {form}\n\n{lines}"


@dataclass(frozen=True)
class _Begun:
    """A run that --resume continues: its settings become the defaults, its recipe ("": of none)
    need not be said again."""

    run_dir: Path
    config: Config
    recipe: str


def _run_to_resume(argv: list[str]) -> _Begun | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-dir", "--run_dir", type=Path, default=Path())
    parser.add_argument("--resume", action="store_true")
    given, _ = parser.parse_known_args(argv)
    file = given.run_dir / "config.json"
    if not given.resume or not file.is_file():
        return None
    text = file.read_text()
    try:
        return _Begun(given.run_dir, Config.from_json(text), recipe_of(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"--resume: {file} cannot be read: {error}") from error


def _dated(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
