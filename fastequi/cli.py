"""The command line: `fastequi demo | pretrain RECIPE | doctor`."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

_USAGE = """usage: fastequi COMMAND ...

  demo                     pretrain a small ViT on nine photographs and judge its features
  pretrain RECIPE --data PATH   pretrain on a folder of images
  doctor                   what is installed, and which backend each part would use

'fastequi COMMAND --help' lists a command's options."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; ends with exit code 2 on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    commands: dict[str, Callable[[list[str]], None]] = {
        "demo": _demo,
        "pretrain": _pretrain,
        "doctor": _doctor,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if argv[0] not in commands:
        _fail(f"unknown command {argv[0]!r}{_nearest(argv[0], commands)}\n\n{_USAGE}")
    try:
        commands[argv[0]](argv[1:])
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; --resume goes on from the last checkpoint", code=130)


def _demo(argv: list[str]) -> None:
    import tyro

    from fastequi.config import Config
    from fastequi.demo import demo
    from fastequi.recipes import RECIPES

    @dataclass(frozen=True)
    class Demo:
        """Pretrains TIR on the nine embedded photographs and judges its features."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        run_dir: Path | None = None
        """Where the run's files go; a new dated folder by default."""
        minutes: float | None = None
        """Training time; short for --train.minutes."""

    recipe = RECIPES["demo"]()
    args = tyro.cli(Demo, prog="fastequi demo", default=Demo(recipe), args=argv)
    config = args.config
    if args.minutes is not None:
        if args.minutes <= 0:
            raise ValueError(f"--minutes: expected a time > 0, got {args.minutes}")
        config = replace(config, train=replace(config.train, minutes=args.minutes))
    demo(config, args.run_dir or _dated("demo"))


def _pretrain(argv: list[str]) -> None:
    import tyro

    from fastequi.config import Config
    from fastequi.recipes import RECIPES

    if not argv or argv[0].startswith("-"):
        known = "\n".join(
            f"  {n:22s}{(f.__doc__ or '').splitlines()[0]}" for n, f in RECIPES.items()
        )
        usage = f"usage: fastequi pretrain RECIPE --data PATH [--section.field value]\n\n{known}"
        if argv and argv[0] in ("-h", "--help"):
            print(usage)
            return
        _fail(usage)
    name = argv[0]
    if name not in RECIPES:
        _fail(f"unknown recipe {name!r}{_nearest(name, RECIPES)}; there are: {', '.join(RECIPES)}")

    @dataclass(frozen=True)
    class Pretrain:
        """Pretrains on a folder of images, flat or nested, no labels needed."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        data: Path | None = None
        """Folder of images."""
        run_dir: Path | None = None
        """Where the run's files go; a new dated folder by default."""
        resume: bool = False
        """Go on from the newest checkpoint in --run-dir, with that run's settings."""
        max_steps: int | None = None
        """Stop after this many optimiser steps, on the full schedule."""
        checkpoint_every: int | None = None
        """Steps between checkpoints; short for --train.checkpoint-every."""
        dry_run: bool = False
        """Print settings, parameter counts and one step's memory; needs no data."""

    default = Pretrain(_resumed(argv) or RECIPES[name]())
    args = tyro.cli(Pretrain, prog=f"fastequi pretrain {name}", default=default, args=argv[1:])
    config: Config = args.config
    if args.checkpoint_every is not None:
        train = replace(config.train, checkpoint_every=args.checkpoint_every)
        config = replace(config, train=train)
    if args.max_steps is not None and args.max_steps < 1:
        raise ValueError(f"--max-steps: expected >= 1, got {args.max_steps}")
    if args.dry_run:
        from fastequi.dryrun import dry_run

        dry_run(config)
        return
    if args.data is None:
        raise ValueError("--data: expected a folder of images (only --dry-run needs none)")
    if args.resume and args.run_dir is None:
        raise ValueError("--resume: which run? name it with --run-dir")

    from fastequi.data.sources import image_folder
    from fastequi.train import pretrain

    run_dir = args.run_dir or _dated(name)
    pretrain(config, image_folder(args.data), run_dir, resume=args.resume, max_steps=args.max_steps)
    print(run_dir)


def _doctor(argv: list[str]) -> None:
    from fastequi.doctor import report

    if argv:
        _fail(f"doctor takes no options, got {' '.join(argv)}")
    print(report())


def _resumed(argv: list[str]) -> object | None:
    """The settings of the run that --resume goes on with: its own are the defaults."""
    from fastequi.config import Config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-dir", "--run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    given, _ = parser.parse_known_args(argv)
    if not given.resume or given.run_dir is None or not (given.run_dir / "config.json").is_file():
        return None
    return Config.from_json((given.run_dir / "config.json").read_text())


def _dated(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _nearest(word: str, known: object) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f", did you mean {match[0]!r}?" if match else ""


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"fastequi: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
