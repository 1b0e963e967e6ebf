"""A GPU's results as bench/results/README.md shows them: `python -m bench.gpu_tables FOLDER`."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

from bench.opbench import OpBench
from bench.registry import all_cases

_NAMES = ("eager", "compile", "ours")


def table(folder: Path) -> str:
    """A line for every measured set of a loss or a view.

    Milliseconds of the GPU's own work, then those of whole calls, which a host may hold up.
    """
    heads = ("case", "shapes", *(f"{n} ms" for n in _NAMES), "eager / ours", "of R", "extra MB")
    heads = (*heads, "call, eager ms", "call, ours ms")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for rows in sets(folder):
        ours = rows.get("ours")
        if ours is None or cases()[ours["case"]].verdict is not None:
            continue
        times = [rows[n]["gpu_p50"] if n in rows else None for n in _NAMES]
        cells = ["" if t is None else f"{t:.3g}" for t in times]
        ratio = f"{times[0] / times[2]:.1f}x" if times[0] else ""
        where = ", ".join(f"{k} {v}" for k, v in ours["params"].items())
        share = f"{100 * ours['of_triad']:.0f} %" if ours["gbps"] else ""
        extra = f"{ours['extra_bytes'] / 1e6:.0f}"
        cells = [
            f"`{ours['case']}` {ours['mode']}",
            where,
            *cells,
            ratio,
            share,
            extra,
            f"{rows['eager']['p50']:.2f}" if "eager" in rows else "",
            f"{ours['p50']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps(folder: Path) -> list[str]:
    """What the cases of whole steps say of themselves."""
    said = []
    for rows in sets(folder):
        first = next(iter(rows.values()))
        verdict = cases()[first["case"]].verdict
        medians = {name: row["gpu_p50"] for name, row in rows.items()}
        if verdict is not None:
            said.append(verdict(first["params"], medians))
    return said


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def sets(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """The timed rows by provider, of one case and its parameters after the other."""
    found: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for file in files(folder):
        for row in json.loads(file.read_text())["rows"]:
            if row["refused"] is None and row["gpu_p50"] is not None:
                key = row["case"], row["mode"], json.dumps(row["params"])
                rows = found.setdefault(key, {})
                if row["provider"] in rows:
                    raise SystemExit(f"{file}: {' '.join(key)} is in another file too")
                rows[row["provider"]] = row
    order = list(cases())
    return sorted(found.values(), key=lambda rows: order.index(next(iter(rows.values()))["case"]))


@functools.cache
def cases() -> dict[str, OpBench]:
    return {case.name: case for case in all_cases()}


if __name__ == "__main__":
    print(table(Path(sys.argv[1])), *steps(Path(sys.argv[1])), sep="\n")
