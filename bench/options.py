"""Which cases at which shapes, as the command line says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.isa import LIMITS
from bench.opbench import MODES, OpBench

Options = argparse.Namespace


def parse(argv: list[str], module: str, text: str) -> Options:
    """The options of `python -m MODULE`, which `text` explains."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--case", nargs="+")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--headline", action="store_true")
    parser.add_argument("--set", nargs="+", action="extend", type=_assignment, default=[])
    parser.add_argument("--without", nargs="+", action="extend", default=[])
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--fresh-memory", action="store_true")
    parser.add_argument("--isa", choices=LIMITS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(argv)
    if options.samples < 1:
        parser.error(f"--samples: expected at least 1, got {options.samples}")
    options.set = dict(options.set)
    return options


def sets_of(case: OpBench, options: Options) -> Iterator[dict[str, Any]]:
    """A case's parameter sets as --headline and --set leave them, each once."""
    seen: list[dict[str, Any]] = []
    for params in case.sweep[:1] if options.headline else case.sweep:
        changed = {**params, **{k: v for k, v in options.set.items() if k in params}}
        if changed not in seen:
            seen.append(changed)
            yield changed


def _assignment(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, int(value) if value.isdigit() else value
