"""Images a second of views_cpu and decode_cpu, as bench/results/README.md shows them:
`python -m bench.view_tables FILE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMES = ("Pillow", "torchvision", "kornia", "OpenCV", "AlbumentationsX", "DALI", "ours")


def table(found: Mapping[str, Any]) -> str:
    """A line for each operation, a column for each library."""
    rates: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        if row["p50"] is None or row["provider"] in ("floor", "triad"):
            continue
        params = row["params"]
        what = "decode" if row["case"] == "decode_cpu" else f"{params['op']}, {params['size']} px"
        name = "DALI" if row["provider"] == "ours, by DALI" else row["provider"]
        rates.setdefault(what, {})[name] = 1e3 * params["B"] / row["p50"]
    shown = [name for name in _NAMES if any(name in each for each in rates.values())]
    lines = [f"| {' | '.join(('images a second', *shown))} |"]
    lines.append("| --- " * (len(shown) + 1) + "|")
    for what, each in rates.items():
        cells = (f"{each[name]:,.0f}" if name in each else "" for name in shown)
        lines.append(f"| {' | '.join((what, *cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
