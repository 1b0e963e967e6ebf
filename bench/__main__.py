"""`python -m bench`: times declared cases and writes what was measured.

`python -m bench table FILE [CASE MODE]` renders the README's table from results,
`python -m bench plot FILE FOLDER` their plots.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from bench.isa import limit, restart_limited
from bench.opbench import FAILED, OpBench, Row, measure
from bench.options import Options, chosen, parse, sets_of
from bench.registry import all_cases
from bench.report import commit, console_table, document, markdown
from fastequi.runtime.heap import keep_heap


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["table"]:
        if len(argv) not in (2, 4):
            raise SystemExit("usage: python -m bench table FILE [CASE MODE]")
        print(markdown(json.loads(Path(argv[1]).read_text()), " ".join(argv[2:])))
        return 0
    if argv[:1] == ["plot"]:
        if len(argv) != 3:
            raise SystemExit("usage: python -m bench plot FILE FOLDER")
        rows = [Row(**row) for row in json.loads(Path(argv[1]).read_text())["rows"]]
        return _plot(rows, Path(argv[2]))
    options = parse(argv, "bench", __doc__ or "")
    if options.isa and options.isa != limit():
        restart_limited(options.isa, argv)
    cases = {case.name: case for case in all_cases()}
    if options.list:
        for case in cases.values():
            print(f"{case.name:16} {case.device:5} {case.title}; bytes: {case.formula}")
            print(f"{'':23}providers: {', '.join(map(repr, case.providers))}")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = options.case or [name for name, case in cases.items() if case.device == device]
    asked = chosen(cases, names, options)
    for case in asked:
        if case.device == "cuda" and device == "cpu":
            raise SystemExit(f"--case: {case.name} needs a CUDA device, and torch sees none")
    rows = []
    # peers at their best: eager code gains most, see fastequi/runtime/heap.py
    kept = not options.fresh_memory and keep_heap()
    heap = "malloc keeps its memory" if kept else "malloc as it is"
    console, tree = Console(width=150), commit()
    for case in asked:
        for mode in options.modes:
            for part in _run(case, mode, options, console):
                rows += part
                if options.json:  # after every set: a run that is cut short leaves what it has
                    command = "python -m bench " + shlex.join(argv)
                    text = json.dumps(document(rows, command, heap, tree), indent=1)
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(text + "\n")
    if options.plot:
        _plot(rows, options.plot)
    return 1 if any(bad in (row.refused or "") for row in rows for bad in ("WRONG", FAILED)) else 0


def _plot(rows: list[Row], folder: Path) -> int:
    from bench.plots import draw

    for file in draw(rows, folder):
        print(f"wrote {file}")
    return 0


def _run(case: OpBench, mode: str, options: Options, console: Console) -> Iterator[list[Row]]:
    """Rows of one parameter set after the other."""
    for params in sets_of(case, options):
        part = measure(case, params, mode, options.samples, options.without)
        console.print(console_table(case, mode, params, part))
        yield part


if __name__ == "__main__":
    sys.exit(main())
