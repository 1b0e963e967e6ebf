"""`fastequi pretrain` and `fastequi submit`: their options, and what they call."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastequi.cli.hints import unknown
from fastequi.cli.image_options import Patterned, Several, as_images, expect_places
from fastequi.cli.init_options import start_of, started, words_of
from fastequi.cli.network_options import for_network
from fastequi.cli.parsing import expect_known, given, is_given, memory_for, parse
from fastequi.config import Config
from fastequi.config_json import recipe_of
from fastequi.data.channels import ALL, plain, written
from fastequi.data.config import DataConfig
from fastequi.data.sources.images import Source
from fastequi.data.sources.urls import is_url
from fastequi.recipes import FROM_WEIGHTS, RECIPES
from fastequi.runtime import interrupts


@dataclass(frozen=True)
class PretrainOptions(Patterned):
    """Pretrains on folders of images, flat or nested, or on tar shards; no labels needed."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    data: Several = ()
    """Folder of images or of an MNIST-like set's IDX files; tar shards: one file, a quoted glob, or
    a range such as 'shards/train-{000..012}.tar', also by URL (s3://, gs://, https://, hf://); or a
    list: a .txt file with one path per line."""
    index: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Index written by `fastequi data scan`; by default the one beside the images, if there is one
    (for shards: if the scan used the same pattern; of a URL: in the cache folder). With several
    --data, one for each."""
    init: Path | None = None
    """File or folder of a ViT's weights that the encoder, and its teacher, start from: timm's,
    Meta's, transformers' or a run's. The model's settings are then theirs; see --init.path."""
    run_dir: Path | None = None
    """Folder of the run; by default a new one, named by date."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir. What is not given stays as in that run,
    but --data, as a run does not keep where its images are."""
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
        from fastequi.data.settling import settled

        named = config.data.channels == ALL and options.data
        if named:  # which says how many channels there are
            config = replace(config, data=settled(config.data, _source(options, config)))
        dry_run(config)
        if options.data and not named:
            print(
                f"--data: not read by --dry-run; whether its images have "
                f"data.channels={config.data.channels} is seen when the run begins"
            )
        return
    if name in FROM_WEIGHTS and not config.init.path:
        raise ValueError(
            f"--init: expected the weights that {name} goes on from, a file or a folder, got none"
        )
    again = "where the run's images are, as the run does not keep it: " if options.resume else ""
    what = f"{again}a folder of images or tar shards (only --dry-run needs none)"
    expect_places(options.data, what)
    if options.resume and options.run_dir is None:
        raise ValueError("--resume: expected --run-dir, the folder of the run to continue")

    from fastequi.models.foreign_names import expect_importable
    from fastequi.resuming import check_start
    from fastequi.runtime import checkpoint
    from fastequi.train import pretrain as run

    config = _with_whole_path(config)
    if options.run_dir is None and "WORLD_SIZE" in os.environ:
        raise ValueError("--run-dir: expected one under torchrun, whose processes share it")
    run_dir = options.run_dir or dated(name)
    check_start(config, run_dir, options.resume)
    if config.model.is_foreign:
        expect_importable(config.model.name)
    interrupts.outlook = partial(checkpoint.outlook, run_dir)
    source = _source(options, config)
    resume, max_steps = options.resume, options.max_steps
    advice = f"fastequi pretrain {name} --dry-run says how many fit"
    with memory_for("--data.batch-size", config.data.batch_size, advice):
        run(config, source, run_dir, resume=resume, max_steps=max_steps, recipe=name)
    if os.environ.get("RANK", "0") == "0":
        print(run_dir)


def _source(options: PretrainOptions, config: Config) -> Source:
    """The images that --data names, as the run asks for them."""
    from fastequi.data.read_ahead import cache_of
    from fastequi.data.settling import wanted
    from fastequi.data.sources.image_sets import open_source

    return open_source(
        as_images(options.selection(options.data)),
        index=options.index,
        tolerate=config.data.tolerate,
        cache=cache_of(config.data),
        wanted=wanted(config.data),
    )


def _with_whole_path(config: Config) -> Config:
    """The run's settings with a cache folder that is found from any working directory."""
    data = config.data
    if not data.cache_dir or is_url(data.cache_dir):  # a URL is refused where it is used
        return config
    whole = str(Path(data.cache_dir).expanduser().absolute())
    return replace(config, data=replace(data, cache_dir=whole))


def _pretrain_options(argv: list[str]) -> tuple[str, PretrainOptions]:
    """The recipe's name and the checked options of a command line."""
    behind = given("--resume", argv)
    if behind and not behind.startswith("-"):
        raise ValueError(
            f"--resume: expected no value, got {behind}; --run-dir {behind} --resume continues "
            f"the run in that folder"
        )
    begun = _run_to_resume(argv)
    if begun is not None and begun.recipe and argv[0].startswith("-"):
        argv = [begun.recipe, *argv]
    name, *rest = argv
    if name.startswith("-"):
        raise ValueError(
            f"RECIPE is missing before {name}, expected one of {', '.join(RECIPES)} "
            f"(fastequi pretrain --help lists all)"
        )
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES, "fastequi pretrain --help")
    if begun is not None and begun.recipe not in ("", name):
        raise ValueError(
            f"--resume: {begun.run_dir} is a run of the recipe {begun.recipe}, got {name}; "
            f"expected that recipe, or another --run-dir"
        )
    default = PretrainOptions(begun.config if begun is not None else RECIPES[name]())
    rest = for_network(rest, default.config)
    options = _parsed_with_weights(f"fastequi pretrain {name}", rest, default, begun is not None)
    expect_one_end(rest, options.config)
    expect_online_probe(rest, options.config)
    if options.max_steps is not None and options.max_steps < 1:
        raise ValueError(f"--max-steps: expected >= 1, got {options.max_steps}")
    return name, options


def _parsed_with_weights(
    prog: str, words: list[str], default: PretrainOptions, resumed: bool
) -> PretrainOptions:
    """The options, with the settings that --init stands for; a resumed run has them already."""
    if not {"-h", "--help"} & set(words):
        expect_known(PretrainOptions, words)
    init, num_heads, channels = start_of(words)
    if resumed and channels is not None:
        _expect_channels(channels, default.config.data)
    if not init.path:
        return parse(PretrainOptions, prog, words, default)
    if resumed:
        options = parse(PretrainOptions, prog, words, default)
        config = options.config
        return replace(options, config=replace(config, init=replace(config.init, path=init.path)))

    from fastequi.weights.start import init_weights

    data = default.config.data
    if channels is not None:
        data = DataConfig(channels=channels)
    in_chans = None if data.channels == ALL else data.in_chans
    weights = init_weights(init, num_heads, in_chans)
    options = parse(PretrainOptions, prog, [*words_of(weights, in_chans), *words], default)
    return replace(options, config=started(options.config, init, weights))


def _expect_channels(asked: str, data: DataConfig) -> None:
    """Raises ValueError for other channels than those of the run that --resume continues; before
    the settings are parsed, as value ranges, means and deviations are then too few or too many."""
    every, asked = written(tuple(range(data.file_channels))), plain(asked)
    if asked != data.channels and not (asked == ALL and data.channels == every):
        raise ValueError(
            f"--data.channels: expected {data.channels}, which --resume cannot change, got {asked}"
        )


def expect_one_end(argv: list[str], config: Config) -> None:
    """Raises ValueError for epochs that are asked for and would not count."""
    if not is_given("--train.epochs", argv):
        return
    for name in ("minutes", "steps"):
        if number := getattr(config.train, name):
            raise ValueError(
                f"--train.epochs: expected --train.{name} 0 beside it, got train.{name}="
                f"{number:g}, after which the run ends whatever its epochs"
            )


def expect_online_probe(argv: list[str], config: Config) -> None:
    """Raises ValueError for images of an online probe that is not asked for."""
    train = config.train
    if is_given("--train.knn-data", argv) and train.knn_data and not train.knn_every:
        raise ValueError(
            "--train.knn-data: expected --train.knn-every N beside it, the steps between probes "
            f"of {', '.join(train.knn_data)}, got train.knn_every=0, with which there are none"
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


def dated(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
