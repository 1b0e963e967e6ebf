"""Which cases at which shapes, as the command line says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.isa import LIMITS
from bench.opbench import MODES, OpBench
from fastequi.cli.hints import meant

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


def chosen(known: Mapping[str, OpBench], names: Sequence[str], options: Options) -> list[OpBench]:
    """The cases of these names, once all of --set and --without fits them.

    A parameter of --set has to be one of a case; the others have their own sets, which is said.

    Raises:
        SystemExit: there is no such case, parameter or provider, or a value is of another type.
    """
    for name in names:
        if name not in known:
            near = meant(name, known) or f"; there are {', '.join(known)}"
            raise SystemExit(f"--case: no case {name!r}{near}")
    cases = [known[name] for name in names]
    providers = sorted({name for case in cases for name in case.providers})
    for name in options.without:
        if name not in providers:
            there = ", ".join(map(repr, providers))
            near = meant(name, providers)
            raise SystemExit(f"--without: expected some of {there}, got {name!r}{near}")
    for name, text in options.set.items():
        _expect_parameter(name, text, cases)
    return cases


def _expect_parameter(name: str, text: str, cases: Sequence[OpBench]) -> None:
    """Checks one of --set, and says which cases it leaves as they are."""
    having = [case for case in cases if name in case.sweep[0]]
    if not having:
        known = {one: None for case in cases for one in case.sweep[0]}
        there = ", ".join(known) or "none"
        raise SystemExit(
            f"--set: expected parameters of {', '.join(case.name for case in cases)}, which are "
            f"{there}, got {name}{meant(name, known)}"
        )
    for case in having:
        _as_in(case, name, text)
    if others := [case.name for case in cases if case not in having]:
        print(f"--set {name}: no parameter of {', '.join(others)}", file=sys.stderr)


def _as_in(case: OpBench, name: str, text: str) -> Any:
    """The value of one of --set, of the type that the case's own has."""
    own = case.sweep[0][name]
    if isinstance(own, bool):
        if text not in ("True", "False"):
            raise SystemExit(f"--set {name}: expected True or False, got {text}")
        return text == "True"
    if isinstance(own, int):
        if not text.isdecimal() or int(text) < 1:
            raise SystemExit(f"--set {name}: expected an integer >= 1, got {text}")
        return int(text)
    return text


def sets_of(case: OpBench, options: Options) -> Iterator[dict[str, Any]]:
    """A case's parameter sets as --headline and --set leave them, each once."""
    seen: list[dict[str, Any]] = []
    for params in case.sweep[:1] if options.headline else case.sweep:
        given = {k: _as_in(case, k, v) for k, v in options.set.items() if k in params}
        changed = {**params, **given}
        if changed not in seen:
            seen.append(changed)
            yield changed


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
