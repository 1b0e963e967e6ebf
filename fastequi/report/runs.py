"""What a run's folder holds; what is damaged becomes a note, not an error."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastequi.evaluate.results import Result, read

_NO_METRIC = ("step", "epoch", "seconds")
_OF_TRAINING = ("config.json", "machine.json")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        folder: it was read from.
        name: short, and unlike that of any other run on the page.
        config: what config.json holds, sections of fields; {} without one.
        rows: of metrics.jsonl, in the order of their steps; only numbers.
        machine: what it ran on, with versions.
        seconds: wall time of the training; None: not known.
        results: what evaluations wrote into the run, its eval/ and its checkpoints, by path.
        others: every other JSON file there, by path.
        notes: what is damaged or cannot be shown, in words.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    rows: tuple[dict[str, float], ...] = field(repr=False)
    machine: dict[str, str]
    seconds: float | None
    results: dict[str, Result] = field(repr=False)
    others: dict[str, dict[str, Any]] = field(repr=False)
    notes: tuple[str, ...]

    @property
    def metrics(self) -> list[str]:
        """Names of what was logged, in the order of the rows."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in _NO_METRIC]

    def series(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) where there is a finite value."""
        return [
            (row["step"], row[metric])
            for row in self.rows
            if metric in row and math.isfinite(row[metric])
        ]

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def flat(self) -> dict[str, Any]:
        """The config as section.field to value."""
        return flatten(self.config)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run, each under a name of its own: its folder's, with as many parents as that takes.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder is no run's: it has neither config.json nor metrics.jsonl nor results.
    """
    runs = [read_run(folder) for folder in {Path(f).resolve(): Path(f) for f in folders}.values()]
    for depth in range(2, 6):
        names = [run.name for run in runs]
        runs = [
            replace(run, name="/".join(run.folder.parts[-depth:]))
            if names.count(run.name) > 1
            else run
            for run in runs
        ]
    return runs


def read_run(folder: Path) -> Run:
    """One run; see :func:`read_runs`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"RUN: {folder} does not exist; expected a run's folder")
    notes: list[str] = []
    files = {
        str(file.relative_to(folder)): _json(file, notes)
        for pattern in ("*.json", "eval/*.json", "checkpoints/*/eval_*.json")
        for file in sorted(folder.glob(pattern))
    }
    results, others = _results(files, notes)
    rows = _rows(folder / "metrics.jsonl", notes)
    if not files and not rows and not (folder / "metrics.jsonl").is_file():
        raise ValueError(
            f"RUN: {folder} holds neither config.json nor metrics.jsonl nor results; "
            f"expected a run's folder"
        )
    machine = files.get("machine.json")
    if not machine:  # results without the rest of their run
        found = (result.document.get("machine") for result in results.values())
        machine = next((m for m in found if isinstance(m, dict)), {})
    return Run(
        folder=folder.resolve(),
        name=folder.resolve().name,
        config=files.get("config.json") or {},
        rows=rows,
        machine={str(name): str(value) for name, value in machine.items()},
        seconds=_seconds(folder, rows),
        results=results,
        others=others,
        notes=tuple(notes),
    )


def _results(
    files: dict[str, dict[str, Any]], notes: list[str]
) -> tuple[dict[str, Result], dict[str, dict[str, Any]]]:
    """Result files, and others, which say no schema; those of another schema become notes."""
    results, others = {}, {}
    for name, found in files.items():
        if not found or name in _OF_TRAINING:
            continue
        if "schema" not in found:
            others[name] = found
            if Path(name).name.startswith("eval_"):
                notes.append(f"{name} names no schema, so it is only listed, under other results")
            continue
        try:
            results[name] = read(found)
        except ValueError as error:
            notes.append(f"{name} is left out: {error}")
    return results, others


def _json(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        notes.append(f"{file.name} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{file.name}: expected an object, got a {type(found).__name__}")
        return {}
    return found


def _rows(file: Path, notes: list[str]) -> tuple[dict[str, float], ...]:
    """The readable lines of metrics.jsonl; the last one of a step counts (a resumed run's)."""
    if not file.is_file():
        notes.append("metrics.jsonl is missing: no curves")
        return ()
    rows: dict[int, dict[str, float]] = {}
    damaged, wild = [], 0
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            numbers = {str(k): float(v) for k, v in found.items() if isinstance(v, int | float)}
            rows[int(numbers["step"])] = numbers
        except (ValueError, KeyError, AttributeError, OverflowError):
            damaged.append(number)
            continue
        wild += any(not math.isfinite(value) for value in numbers.values())
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        what = "line" if len(damaged) == 1 else "lines"
        left_out = f"{len(damaged)} damaged {what} left out ({what} {shown})"
        notes.append(f"metrics.jsonl: {left_out}, {len(rows)} read")
    if wild:
        what = "line holds" if wild == 1 else "lines hold"
        notes.append(f"metrics.jsonl: {wild} {what} NaN or infinity, which no curve shows")
    if not rows and not damaged:
        notes.append("metrics.jsonl is empty: no curves")
    return tuple(rows[step] for step in sorted(rows))


def _seconds(folder: Path, rows: tuple[dict[str, float], ...]) -> float | None:
    """Of the last row; of runs that logged none, of the newest checkpoint."""
    found: list[object] = [row["seconds"] for row in rows[-1:] if "seconds" in row]
    for state in sorted(folder.glob("checkpoints/step_*/state.json"), reverse=True)[:1]:
        found.append(_json(state, []).get("seconds"))
    return next((float(s) for s in found if isinstance(s, int | float)), None)


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted names to values; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= flatten(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Fields of the configs that are not the same in all runs, None where one has no such field."""
    flats = [run.flat() for run in runs]
    names = dict.fromkeys(name for flat in flats for name in flat)
    values = {name: [flat.get(name) for flat in flats] for name in names}
    return {name: each for name, each in values.items() if any(v != each[0] for v in each)}
