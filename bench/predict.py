"""What a GPU run is expected to show, line by line of the goals, and how a run compares.

python -m bench.predict write            bench/results/predicted.json, by `bench.gpu_goals`
python -m bench.predict compare FOLDER   a run's files beside it: `ci/gpu.sh` does that last
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.gpu_goals import CARDS, DATA, EIGHT, LINES, PROFILE, RESULTS, Line
from bench.gpu_tables import sets

PREDICTED = RESULTS / "predicted.json"


def value_in(folder: Path, line: Line) -> float | None:
    """The figure as a run measured it, or None."""
    if line.case == DATA:
        file = folder / "data.jsonl"
        return _kept_busy(file) if file.is_file() else None
    if line.case == PROFILE:
        file = folder / "ncu_eight.csv"
        return _source_reads(file) if file.is_file() else None
    for rows in sets(folder):
        first = next(iter(rows.values()))
        if first["case"] == line.case and line.params.items() <= first["params"].items():
            try:
                return line.value(rows)
            except KeyError:  # a provider was left out or refused
                return None
    return None


def _kept_busy(file: Path) -> float:
    """Share of the time in which a run did not wait for images, its first half left out."""
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    waits = [step["data_wait"] for step in steps if "data_wait" in step]
    return 1 - sum(waits[len(waits) // 2 :]) / len(waits[len(waits) // 2 :])


def _source_reads(file: Path) -> float | None:
    """How often the images were read from memory by the path loss at eight steps, by the bytes that
    ncu counted, less those of the prediction; None where it counted none."""
    lines = [line for line in file.read_text().splitlines() if line.startswith('"')]
    read = [
        float(row["Metric Value"].replace(",", ""))
        for row in csv.DictReader(lines)
        if row["Metric Name"] == "dram__bytes_read.sum"
    ]
    if not read:
        return None
    source = EIGHT["B"] * 3 * 224**2
    return (read[0] - 2 * EIGHT["K"] * source) / source


def document() -> list[dict[str, Any]]:
    """The lines with their predictions, as predicted.json has them."""
    return [
        {
            "goal": line.goal,
            "what": line.what,
            "case": line.case,
            "params": dict(line.params),
            "wanted": f"{line.sense} {line.bound:g}",
            **{card: float(f"{line.predict(card):.3g}") for card in CARDS},
            "why": line.why,
        }
        for line in LINES
    ]


def compare(folder: Path) -> Table:
    """A run's figures beside the goals and what was predicted for its card."""
    machines = {
        json.loads(file.read_text()).get("machine", {}).get("device", "")
        for file in folder.glob("*.json")
    }
    card = next((name for name in CARDS if any(name in device for device in machines)), None)
    table = Table("line", "figure", "case", "wanted", f"predicted, {card}", "measured", "met")
    for line, row in zip(LINES, json.loads(PREDICTED.read_text()), strict=True):
        found = value_in(folder, line)
        met = "" if found is None else ("yes" if _met(line, found) else "no")
        expected = "" if card is None else f"{row[card]:g}"
        value = "not measured" if found is None else f"{found:.3g}"
        table.add_row(line.goal, line.what, line.case, row["wanted"], expected, value, met)
    return table


def _met(line: Line, found: float) -> bool:
    return found >= line.bound if line.sense == ">=" else found <= line.bound


def main(argv: list[str]) -> int:
    match argv:
        case ["write"]:
            PREDICTED.write_text(json.dumps(document(), indent=1) + "\n")
        case ["compare", folder]:
            if not any(Path(folder).glob(kind) for kind in ("*.json*", "ncu_eight.csv")):
                raise SystemExit(
                    f"FOLDER: expected one with a run's *.json, data.jsonl or ncu_eight.csv, got "
                    f"{folder}"
                )
            Console(width=150).print(compare(Path(folder)))
        case _:
            raise SystemExit("usage: python -m bench.predict write, or compare FOLDER")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
