"""Images a second of decode_cpu, views_cpu and multi_crop_cpu (photographs, of which ten views are
made), as bench/results/README.md shows them: `python -m bench.view_tables FILE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMES = ("Pillow", "torchvision", "kornia", "OpenCV", "AlbumentationsX", "DALI", "ours")
_LEFT_OUT = ("floor", "triad", "decoding by DALI")  # the last is decode_cpu's line


def table(found: Mapping[str, Any]) -> str:
    """A line for each operation, a column for each library."""
    rates: dict[str, dict[str, float]] = {}
    for row in found["rows"]:
        if row["p50"] is None or row["provider"] in _LEFT_OUT:
            continue
        params = row["params"]
        what = {
            "decode_cpu": "decode",
            "multi_crop_cpu": "all, 2 of 224 and 8 of 96 px, {dtype}",
            "views_cpu": "{op}, {size} px",
        }[row["case"]].format(**params)
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
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python -m bench.view_tables FILE, what ci/cpu.sh made as views_cpu.json")
    print(table(json.loads(Path(sys.argv[1]).read_text())))
