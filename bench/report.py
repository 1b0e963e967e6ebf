"""Measured rows as JSON, as a table for the terminal, and as the README's table."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from bench.isa import limit
from bench.opbench import YARDSTICKS, OpBench, Row
from fastequi import versions
from fastequi.runtime.machine import machine

_COLUMNS = (
    *("p20", "p50", "p80", "GPU", "host", "GB/s", "TFLOP/s"),
    *("of R", "of floor", "extra MB", "launches", "speed-up"),
)

# distributions that cases may compare with
_PEERS = ("opencv-python-headless", "kornia", "lightly", "torchvision", "albumentationsx", "pillow")

_NO_LIBRARY = ("eager", "compile", "pair by pair", *YARDSTICKS)


def document(rows: Sequence[Row], command: str, heap: str, tree: str) -> dict[str, Any]:
    """All that a quoted figure must carry; `tree` is :func:`commit` before anything was written."""
    peers = {name: versions.version_of(name) for name in _PEERS}
    return {
        "command": command,
        "commit": tree,
        "machine": {
            **machine(),
            "threads": torch.get_num_threads(),
            "heap": heap,
            **({"isa": f"{limit()} at most"} if limit() else {}),
        },
        "peers": {name: found for name, found in peers.items() if found != versions.MISSING},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def made_by(program: str) -> dict[str, Any]:
    """How and where figures come about; to be called before anything is measured or written.

    Args:
        program: "python -m bench.recipes", say; this process's options follow it.
    """
    command = " ".join([program, *map(shlex.quote, sys.argv[1:])])
    return {"command": command, "commit": commit(), "machine": machine()}


def commit() -> str:
    """Of the working tree, with a + where it was changed.

    Where the tree came without git, what BENCH_COMMIT says; else empty.
    """
    said = os.environ.get("BENCH_COMMIT")
    return versions.commit() if said is None else said


def console_table(
    case: OpBench, mode: str, params: Mapping[str, Any], rows: Sequence[Row]
) -> Table:
    """One parameter set; times in ms, p20, p50 and p80."""
    title = f"{case.name} {mode}: " + " ".join(f"{k}={v}" for k, v in params.items())
    lines = [(row, _cells(row)) for row in rows if not row.refused]
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("provider", no_wrap=True)
    shown = [i for i in range(len(_COLUMNS)) if any(cells[i] for _, cells in lines)]
    for i in shown:
        table.add_column(_COLUMNS[i], justify="right", no_wrap=True)
    for row, cells in lines:
        name = f"({row.provider})" if row.partial else row.provider
        table.add_row(name, *(cells[i] for i in shown))
    notes = [f"{row.provider}: {row.refused}" for row in rows if row.refused]
    if case.verdict is not None:
        medians = {row.provider: row.gpu_p50 or row.p50 for row in rows if row.p50 is not None}
        notes.append(case.verdict(params, {k: v for k, v in medians.items() if v is not None}))
    table.caption = Text("\n".join(notes))  # not markup: what others say may hold brackets
    table.caption_justify = "left"
    return table


def _cells(row: Row) -> list[str]:
    """Of one line, in the order of the columns; empty where nothing was measured."""
    times = [_number(value) for value in (row.p20, row.p50, row.p80, row.gpu_p50, row.host_p50)]
    work = "" if not row.gflops else f"{row.gflops / 1e3:.3g}"
    limits = ["" if of is None else f"{100 * of:.0f} %" for of in (row.of_triad, row.of_floor)]
    extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:.1f}"
    launches = "" if row.launches is None else str(row.launches)
    speedup = "" if row.speedup is None or row.partial else f"{row.speedup:.1f}x"
    return [*times, _number(row.gbps), work, *limits, extra, launches, speedup]


def markdown(measured: Mapping[str, Any], only: str = "") -> str:
    """The headline sets of a results file, a table per case and mode, with what made them.

    `only` ("warp_recon_cpu fwdbwd") leaves the other cases and modes out.
    """
    lines = []
    rows = [row for row in measured["rows"] if only in ("", f"{row['case']} {row['mode']}")]
    heads: dict[tuple[str, str], Any] = {}
    for row in rows:
        heads.setdefault((row["case"], row["mode"]), row["params"])
    for (case, mode), params in heads.items():
        shown = [r for r in rows if (r["case"], r["mode"], r["params"]) == (case, mode, params)]
        where = measured["machine"]
        device = where["cpu"] if where["device"] == "cpu" else where["device"]
        if "isa" in where:
            device += f", {where['isa']}"
        lines += [
            f"`{case}` {mode}, " + ", ".join(f"{k} {v}" for k, v in params.items()),
            f"({device}; torch {where['torch']}; commit {measured['commit']}; "
            f"`{measured['command']}`):",
            "",
            "| provider | p50 ms (p20..p80) | of R | of floor | extra MB | speed-up |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in shown:
            if row["refused"]:
                continue
            times = f"{row['p50']:.2f} ({row['p20']:.2f}..{row['p80']:.2f})"
            limits = " | ".join(
                "" if of is None else f"{100 * of:.0f} %"
                for of in (row["of_triad"], row["of_floor"])
            )
            extra = "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.0f}"
            speedup = "" if row["partial"] else f"{row['speedup']:.1f}x"
            lines.append(f"| {row['provider']} | {times} | {limits} | {extra} | {speedup} |")
        worst = _worst(rows, case, mode)
        if worst:
            lines += ["", worst]
        lines.append("")
    return "\n".join(lines)


FILES = (
    *("cpu", "warp_cpu", "gaussian_blur_cpu", "blur_recon_cpu", "rot90_cpu", "ssl_cpu"),
    *("dino_65536_cpu", "gtsa_losses_cpu", "maps_cpu", "gram_cpu", "short_attention_cpu"),
)
HEADLINES = (  # case, file of results
    ("warp_recon_cpu", "cpu_avx2"),
    ("warp_cpu", "warp_cpu_avx2"),
    ("rot90_batch_cpu", "rot90_cpu_avx2"),
    ("vicreg_cpu", "ssl_cpu_avx2"),
    ("dino_cpu", "dino_65536_cpu_avx2"),
    ("crop_align_cpu", "gtsa_losses_cpu_avx2"),
    ("nt_xent_cpu", "ssl_cpu_avx2"),
    ("sinkhorn_cpu", "dino_65536_cpu_avx2"),
)


def headlines(results: Path) -> str:
    """The README's table of eight ops, a row each, from the files in a folder of results."""
    return _overview([_first(results / f"{name}.json", case) for case, name in HEADLINES])


def overview(results: Path, suffix: str) -> str:
    """The same of every CPU case, from the files with `suffix` that are there."""
    rows = []
    for name in FILES:
        file = results / f"{name}{suffix}.json"
        if not file.exists():
            continue
        cases = dict.fromkeys(row["case"] for row in json.loads(file.read_text())["rows"])
        rows += [_first(file, case) for case in cases]
    return _overview(rows, wide=True)


def every_shape(results: Path, suffix: str) -> str:
    """The same of every set of parameters in the sweep over small shapes."""
    found = json.loads((results / f"small_cpu{suffix}.json").read_text())["rows"]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        cases.setdefault(f"{row['case']} {row['mode']} {row['params']}", []).append(row)
    return _overview(list(cases.values()), wide=True)


def _first(file: Path, case: str) -> list[dict[str, Any]]:
    """The rows of a case's first mode and parameter set."""
    rows = [row for row in json.loads(file.read_text())["rows"] if row["case"] == case]
    head = rows[0]["mode"], rows[0]["params"]
    return [row for row in rows if (row["mode"], row["params"]) == head]


def _overview(cases: Sequence[Sequence[Mapping[str, Any]]], wide: bool = False) -> str:
    """`wide`: with the fastest library, and how near ours is to the floor."""
    columns = ["case", "shapes", "eager ms", "compile ms", "ours ms", "eager / ours"]
    if wide:
        columns[4:4] = ["fastest library, ms"]
        columns += ["of its floor"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for rows in cases:
        p50 = {row["provider"]: row["p50"] for row in rows}
        eager, ours = p50["eager"], p50["ours"]
        libraries = {row["provider"]: row["p50"] for row in rows if not row["partial"]}
        shapes = ", ".join(f"{k} {v}" for k, v in rows[0]["params"].items())
        compiled = _ms(p50["compile"]) if p50.get("compile") else ""
        cells = [f"`{rows[0]['case']}` {rows[0]['mode']}", shapes, _ms(eager), compiled]
        if wide:
            cells.append(_library(libraries))
        cells += [_ms(ours), f"{eager / ours:.1f}x"]
        if wide:
            (near,) = (row["of_floor"] for row in rows if row["provider"] == "ours")
            cells.append("" if near is None else f"{100 * near:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _library(p50: Mapping[str, float | None]) -> str:
    """The fastest provider that is another library's, and its time; empty without one."""
    found = {
        name: time
        for name, time in p50.items()
        if time is not None and name not in _NO_LIBRARY and not name.startswith("ours")
    }
    if not found:
        return ""
    fastest = min(found, key=lambda name: found[name])
    return f"{fastest}: {_ms(found[fastest])}"


def _ms(time: float) -> str:
    return f"{time:.1f}" if time >= 10 else f"{time:.2f}"


def _worst(rows: Sequence[Mapping[str, Any]], case: str, mode: str) -> str:
    """Where ours gains least on the base: among the headline's transformations, and anywhere."""
    ours = [
        row
        for row in rows
        if (row["case"], row["mode"], row["provider"]) == (case, mode, "ours")
        and row["speedup"] is not None
        and "family" in row["params"]
    ]
    if len(ours) < 2:
        return ""
    head = {k: v for k, v in ours[0]["params"].items() if k != "family"}
    alike = [row for row in ours if {**row["params"], **head} == row["params"]]

    def least(of: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return min(of, key=lambda row: row["speedup"])

    worst, anywhere = least(alike), least(ours)
    words = ", ".join(f"{k} {v}" for k, v in anywhere["params"].items())
    return (
        f"Least over the {len(alike)} transformations at that size: {worst['speedup']:.1f}x "
        f"({worst['params']['family']}); over all {len(ours)} parameter sets: "
        f"{anywhere['speedup']:.1f}x at {words}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
