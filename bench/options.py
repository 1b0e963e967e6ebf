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
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("--list", action="store_true", help="cases, providers and bytes by formula; runs nothing")
    add("--case", nargs="+", metavar="CASE", help="these alone")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="forward, or with gradient")
    add("--headline", action="store_true", help="the first parameter set of each case alone")
    add("--set", **several, type=_assignment, metavar="NAME=VALUE", help="change a parameter")
    add("--without", **several, metavar="PROVIDER", help="leave these out")
    add("--samples", type=int, default=30, help="timed rounds (default %(default)s)")
    add("--fresh-memory", action="store_true", help="malloc returns memory to the system")
    add("--isa", choices=LIMITS, help="newest CPU instructions of ours and of every peer")
    add("--json", type=Path, metavar="FILE", help="write the rows there")
    add("--plot", type=Path, metavar="FOLDER", help="draw roofline and speed-up as PNG")
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
